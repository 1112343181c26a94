"""POST /compat/huggingface/{classify,detect,segment}: for the unmodified `huggingface_hub.InferenceClient`.

Give it the URL of a route as its model, with `?model=NAME` for another than the task's default model. A body is the
bytes of an image, or JSON with base64 and parameters. `segment` is answered by semantic models and by detectors with
masks, which do instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from starlette import datastructures
from starlette.types import Receive, Scope, Send

from model.families.registry import family_of
from model.spec import ClassifyPostSpec
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
from service.frontend.core.image_fetcher import ImageUrl
from service.frontend.core.parameters import PARAMETERS, parse_params
from service.frontend.core.sniffing import BOM, TEXT_STARTS, text_start
from service.frontend.http.body import image_of, image_of_text, off_loop
from service.frontend.http.middleware import REQUEST, HttpRequest, within_deadline
from service.frontend.http.openapi import BASE64, BINARY, REF, RESPONSE_HEADERS, error_answers, header_parameters
from service.settings import Settings
from service.types import ModelStatus, PredictRequest

HOW_TO_SEND = 'send the bytes of one image as the body, or JSON {"inputs": "<base64>", "parameters": {…}}'

SUMMARY = {
    Task.CLASSIFY: "For `InferenceClient.image_classification`",
    Task.DETECT: "For `InferenceClient.object_detection`",
    Task.SEGMENT: "For `InferenceClient.image_segmentation`",
}


class HuggingFace:
    """ASGI application of `POST /compat/huggingface/<task>`, behind `RequestMiddleware`."""

    def __init__(self, task: Task, engine: Engine, settings: Settings) -> None:
        self.path = f"/compat/huggingface/{task.value}"
        self._task = task
        self._engine = engine
        self._max_bytes = settings.max_request_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  (ASGI's)
        """Answer one request.

        Raises:
            ConvMLPError: the request's error.
            ClientDisconnect: the client left, and the work was cancelled.
        """
        request: HttpRequest = scope[REQUEST]
        record, engine, kind = request.record, self._engine, PARAMETERS_OF_TASK[self._task]
        record.predicts, record.task, record.route = True, self._task.value, self.path
        deadline_s = engine.deadline(request.timeout_ms)
        # Before the body is read, so that a wrong model name does not cost an upload.
        candidates = self._candidates(_model_name(scope["query_string"]))
        try:
            image = await request.read_by(deadline_s, self._max_bytes, engine.bodies)
            parameters, url = kind(), None
            if not image:
                raise BadRequest(f"the body is empty; {HOW_TO_SEND}")
            # No image format begins as a JSON object does, so the Content-Type does not matter.
            if image[:1] in TEXT_STARTS:
                parsing = off_loop(partial(read_text, kind, image), len(image))
                upload, parameters = await within_deadline(parsing, deadline_s)
                image, url = (b"", upload.text) if isinstance(upload, ImageUrl) else (upload, None)
            model = _select_model(candidates, parameters)
            record.model = model.config.name
            if isinstance(parameters, ClassifyParameters) and parameters.function_to_apply is not None:
                _check_function(parameters.function_to_apply, model)
            params = params_of(parameters)
            with request.connection.disconnect:
                if url is not None:
                    image = await engine.fetcher.fetch(url, record, deadline_s)
                prediction = PredictRequest(record.request_id, model, image, params, deadline_s, record.caller)
                reply = await engine.predict(prediction, partial(encode_elements, parameters))
        finally:
            engine.bodies.release(record)
        record.answered_by((reply,))
        await request.respond(reply.payload, "application/json")

    def _candidates(self, name: str | None) -> Sequence[ModelStatus]:
        """The models that may answer, the preferred first; never none."""
        engine = self._engine
        if self._task is not Task.SEGMENT:
            return [engine.resolve(self._task, name)]
        if name is not None:
            model = engine.resolve_any(name)
            return [model if _does_instances(model) else engine.resolve(self._task, name)]
        served = engine.resolve_all()
        semantic = [model for model in served if model.config.task is Task.SEGMENT]
        candidates = [*semantic, *(model for model in served if _does_instances(model))]
        if not candidates:
            raise ModelNotFound("this service has no model that segments; see /models")
        return candidates


def operation(task: Task, settings: Settings) -> dict[str, Any]:
    """The part of the operation `POST /compat/huggingface/<task>` that FastAPI does not know."""
    name = PARAMETERS["model"]
    document = {
        "type": "object",
        "properties": {
            "inputs": BASE64,
            "parameters": {"$ref": REF.format(name=PARAMETERS_OF_TASK[task].__name__)},
            "options": {"description": "Accepted and ignored."},
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
            "description": (
                "The bytes of one image, its base64 or data: URL, or JSON with base64; detected from the bytes, "
                "not from the Content-Type."
            ),
            "content": {
                "application/octet-stream": {"schema": BINARY},
                "application/json": {"schema": document},
            },
        },
        "responses": {
            "200": {
                "description": "A list of results",
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


def _model_name(query_string: bytes) -> str | None:
    if not query_string:
        return None
    given = datastructures.QueryParams(query_string).multi_items()
    if len(given) > 1 or any(name != "model" for name, _ in given):
        raise BadParameter(
            "the query string takes only `model`, once; other parameters go into the JSON body's `parameters`"
        )
    return parse_params(model=given[0][1] if given else None).model


def _does_instances(model: ModelStatus) -> bool:
    return family_of(model.config.architecture).masks


def _subtask(model: ModelStatus) -> Subtask:
    return Subtask.INSTANCE if _does_instances(model) else Subtask.SEMANTIC


def _select_model(models: Sequence[ModelStatus], parameters: Parameters) -> ModelStatus:
    """The first model that does the requested subtask; without one, the first."""
    if not isinstance(parameters, SegmentParameters) or parameters.subtask is None:
        return models[0]
    for model in models:
        if _subtask(model) is parameters.subtask:
            return model
    subtasks = ", ".join(f"{model.config.name} does {_subtask(model)}" for model in models)
    raise BadParameter(f"no served model does the subtask {parameters.subtask.value!r}; {subtasks}", "subtask")


def _check_function(function: Function, model: ModelStatus) -> None:
    """Raises BadParameter: the model's scores are made by another function."""
    post = model.config.postprocessing
    if isinstance(post, ClassifyPostSpec) and function != post.activation:
        raise BadParameter(
            f"function_to_apply is {function.value!r}, but the scores of {model.config.name} are made by "
            f"{post.activation}; leave it out",
            "function_to_apply",
        )


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    """`options` are hints to Hugging Face's own servers (caches, cold models) and change no answer."""

    inputs: msgspec.Raw
    parameters: msgspec.Raw = msgspec.Raw(b"null")
    options: msgspec.Raw = msgspec.Raw(b"null")


def params_of(parameters: Parameters) -> QueryParams:
    """The worker's part of the parameters."""
    match parameters:
        case ClassifyParameters(top_k=top_k):
            return parse_params(top_k=top_k).params
        case DetectParameters(threshold=threshold):
            return parse_params(score_threshold=threshold, masks=False).params
        case SegmentParameters(threshold=threshold):
            return parse_params(score_threshold=threshold).params


def read_text(kind: type[Parameters], body: bytes) -> tuple[bytes | ImageUrl, Parameters]:
    """The image and the parameters of a body that begins as text: JSON, base64 or a URL; else the body itself.

    Raises:
        BadRequest: broken JSON or base64, or another form of it.
        BadParameter: a parameter is unknown, out of its range, or not supported.
    """
    if text_start(body)[:1] != b"{":
        image = image_of_text(body)
        if isinstance(image, BadRequest):
            raise image
        return image, kind()
    try:
        document = msgspec.json.decode(body.removeprefix(BOM), type=_Body)
        image = image_of(document.inputs, "inputs")
    except msgspec.ValidationError as error:
        raise BadRequest(f"the JSON body does not have the expected form: {error}; {HOW_TO_SEND}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise BadRequest("the JSON body is nested too deeply") from None
    parameters = _parameters(kind, document.parameters)
    if isinstance(image, BadRequest):
        raise image
    return image, parameters


def _parameters(kind: type[Parameters], text: msgspec.Raw) -> Parameters:
    try:
        parameters = msgspec.json.decode(text, type=kind | None) or kind()
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__)
        raise BadParameter(f"the JSON body's `parameters` are invalid: {error}; known parameters: {known}") from None
    return parameters
