"""A Hugging Face client's body: the bytes of an image, or JSON with base64 and parameters.

The OpenAPI text of the routes for Hugging Face's clients, made from the structs that the code itself uses.

POST /compat/huggingface/{classify,detect,segment}: for the unmodified `huggingface_hub.InferenceClient`.

Give it the URL of a route as its model, with `?model=NAME` where the task's default model is not meant. `segment`
is answered by semantic models and by detectors with masks, which do instances.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from model.bundle import BundleConfig
from model.families.registry import family_of
from model.types import QueryParams, Task
from service.errors import BadParameter, BadRequest, ModelNotFound
from service.frontend.api.huggingface_schemas import (
    ELEMENT_OF_TASK,
    PARAMETERS_OF_TASK,
    ClassifyParameters,
    DetectParameters,
    Function,
    Parameters,
    SegmentParameters,
    Subtask,
    encode_elements,
)
from service.frontend.core.engine import Engine
from service.frontend.core.parameters import PARAMETERS, parse_params
from service.frontend.http.body import from_base64, read_body
from service.frontend.http.disconnect import cancel_on_disconnect, within_deadline
from service.frontend.http.middleware import read_timeout_ms, record_of
from service.frontend.http.openapi import BASE64, BINARY, REF, RESPONSE_HEADERS, error_answers, header_parameters
from service.settings import Settings
from service.types import PredictRequest

HOW_TO_SEND = 'send the bytes of one image as the body, or JSON {"inputs": "<base64>", "parameters": {…}}'


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    """`options` are hints to Hugging Face's own servers (caches, cold models) and change no answer."""

    inputs: str
    parameters: msgspec.Raw = msgspec.Raw(b"null")
    options: msgspec.Raw = msgspec.Raw(b"null")


@dataclass(frozen=True, slots=True)
class Ask:
    """One encoded image, and what is asked of it."""

    image: bytes
    parameters: Parameters

    @property
    def params(self) -> QueryParams:
        """The worker's part of the parameters."""
        match self.parameters:
            case ClassifyParameters(top_k=top_k):
                return parse_params(top_k=top_k).params
            case DetectParameters(threshold=threshold):
                return parse_params(score_threshold=threshold, masks=False).params
            case SegmentParameters(threshold=threshold):
                return parse_params(score_threshold=threshold).params


async def read_ask(task: Task, body: bytes) -> Ask:
    """What a body asks for at the route of `task`.

    No image format begins as a JSON object does, so the Content-Type does not matter.

    Raises:
        BadRequest: no body, broken JSON, or another form of it.
        BadParameter: a parameter is unknown, out of its range, or asks for what cannot be done.
    """
    kind = PARAMETERS_OF_TASK[task]
    if not body:
        raise BadRequest(f"the body is empty; {HOW_TO_SEND}")
    if body.lstrip()[:1] == b"{":
        return await asyncio.to_thread(_from_json, kind, body)
    return Ask(body, kind())


def _from_json(kind: type[Parameters], body: bytes) -> Ask:
    try:
        document = msgspec.json.decode(body, type=_Body)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the JSON body does not have the expected form: {error}; {HOW_TO_SEND}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    parameters = _parameters(kind, document.parameters)
    image = from_base64(document.inputs, "inputs")
    if isinstance(image, BadRequest):
        raise image
    return Ask(image, parameters)


def _parameters(kind: type[Parameters], text: msgspec.Raw) -> Parameters:
    try:
        parameters = msgspec.json.decode(text, type=kind | None) or kind()
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__)
        raise BadParameter(f"the JSON body's `parameters` cannot be taken: {error}; known are {known}") from None
    function = parameters.function_to_apply if isinstance(parameters, ClassifyParameters) else None
    if function not in (None, Function.SOFTMAX):
        raise BadParameter(
            f"function_to_apply {function!s} is not to be had: the scores are probabilities, by softmax; leave it out",
            "function_to_apply",
        )
    return parameters


SUMMARY = {
    Task.CLASSIFY: "For `InferenceClient.image_classification`",
    Task.DETECT: "For `InferenceClient.object_detection`",
    Task.SEGMENT: "For `InferenceClient.image_segmentation`",
}


def operation(task: Task, settings: Settings) -> dict[str, Any]:
    """What FastAPI merges into the operation of `POST /compat/huggingface/<task>`."""
    name = PARAMETERS["model"]
    document = {
        "type": "object",
        "properties": {
            "inputs": BASE64,
            "parameters": {"$ref": REF.format(name=PARAMETERS_OF_TASK[task].__name__)},
            "options": {"description": "Taken and not looked at."},
        },
        "required": ["inputs"],
    }
    elements = {"type": "array", "items": {"$ref": REF.format(name=ELEMENT_OF_TASK[task].__name__)}}
    return {
        "operationId": f"huggingface_{task.value}",
        "parameters": [
            {"name": "model", "in": "query", "description": name.description, "schema": dict(name.schema)},
            *header_parameters(settings),
        ],
        "requestBody": {
            "required": True,
            "description": "The bytes of one image, or JSON with base64: told by the bytes, not by the Content-Type.",
            "content": {
                "image/*": {"schema": BINARY},
                "application/octet-stream": {"schema": BINARY},
                "application/json": {"schema": document},
            },
        },
        "responses": {
            "200": {
                "description": "A bare list",
                "headers": RESPONSE_HEADERS,
                "content": {"application/json": {"schema": elements}},
            },
            **error_answers(),
        },
    }


def huggingface_components() -> dict[str, Any]:
    """The schemas that `operation` refers to, by name."""
    structs = [*PARAMETERS_OF_TASK.values(), *ELEMENT_OF_TASK.values()]
    _, schemas = msgspec.json.schema_components(structs, ref_template=REF)
    return schemas


def huggingface(engine: Engine, settings: Settings) -> APIRouter:
    router = APIRouter(prefix="/compat/huggingface", tags=["huggingface"])
    compat = HuggingFace(engine, settings)
    for task in Task:
        router.add_api_route(
            f"/{task.value}",
            _route(compat, task),
            methods=["POST"],
            summary=SUMMARY[task],
            openapi_extra=operation(task, settings),
            response_class=Response,
        )
    return router


class HuggingFace:
    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings

    async def answer(self, task: Task, request: Request) -> Response:
        """The whole way of one request; `task` is that of the route.

        Raises:
            ConvMLPError: what is wrong.
            ClientDisconnect: the caller left; the work was withdrawn.
        """
        record = record_of(request)
        record.predicts, record.task = True, task.value
        deadline_s = self._engine.deadline(read_timeout_ms(request.headers.get("x-request-timeout-ms")))
        # Before the body is read: a wrong model's name should not cost an upload.
        able = self._able(task, _model_name(request))
        with self._engine.body_budget() as take:
            ask = await within_deadline(self._read(task, request, take), deadline_s)
            config = _chosen(able, ask.parameters)
            record.model = config.name
            prediction = PredictRequest(record.request_id, config.task, config.name, ask.image, ask.params, deadline_s)
            with cancel_on_disconnect(request):
                reply = await self._engine.predict(prediction, lambda result: encode_elements(ask.parameters, result))
        record.timings = reply.timings
        return Response(reply.payload, media_type="application/json")

    async def _read(self, task: Task, request: Request, take: Callable[[int], None]) -> Ask:
        return await read_ask(task, await read_body(request, self._settings, take))

    def _able(self, task: Task, name: str | None) -> Sequence[BundleConfig]:
        """The models that may answer, the preferred first; never none."""
        if task is not Task.SEGMENT:
            return [self._engine.resolve(task, name).config]
        if name is not None:
            config = self._engine.model(name).config
            return [config if _does_instances(config) else self._engine.resolve(task, name).config]
        served = [status.config for status in self._engine.models()]
        semantic = [config for config in served if config.task is Task.SEGMENT]
        able = [*semantic, *(config for config in served if _does_instances(config))]
        if not able:
            raise ModelNotFound("this service has no model that segments; see /models")
        return able


def _route(compat: HuggingFace, task: Task) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await compat.answer(task, request)

    return answer


def _model_name(request: Request) -> str | None:
    given = request.query_params.multi_items()
    if len(given) > 1 or any(name != "model" for name, _ in given):
        raise BadParameter("the query string takes `model`, once; all else belongs into the JSON body's `parameters`")
    return parse_params(model=given[0][1] if given else None).model


def _does_instances(config: BundleConfig) -> bool:
    return family_of(config.architecture).masks


def _subtask(config: BundleConfig) -> Subtask:
    return Subtask.INSTANCE if _does_instances(config) else Subtask.SEMANTIC


def _chosen(able: Sequence[BundleConfig], parameters: Parameters) -> BundleConfig:
    """The first model that does the subtask, where one is asked for."""
    if not isinstance(parameters, SegmentParameters) or parameters.subtask is None:
        return able[0]
    for config in able:
        if _subtask(config) is parameters.subtask:
            return config
    does = ", ".join(f"{config.name} does {_subtask(config)}" for config in able)
    raise BadParameter(f"no model does the subtask {parameters.subtask.value!r} here; {does}", "subtask")
