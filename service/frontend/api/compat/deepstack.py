"""DeepStack's API below /compat/deepstack, for software of cameras: Frigate, Home Assistant, Blue Iris.

Blue Iris speaks CodeProject.AI's form of it, whose answers have further members. The image is a part of a form, beside
`min_confidence`. Other parameters of detection go into the query string.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response

from model.bundle import BundleConfig
from model.postprocess.masks import rounded_score
from model.postprocess.results import postprocess
from model.types import ClassifyResult, DetectResult, RawOutput, Size, Task
from service.frontend.core.engine import Encode, Engine
from service.frontend.core.image_fetcher import image_bytes
from service.frontend.core.parameters import (
    PARAMETERS,
    SCORE_THRESHOLD,
    Parameter,
    PredictParams,
    parse_params,
    parse_value,
)
from service.frontend.http.fields import parse_values, query_texts, read_fields
from service.frontend.http.middleware import CUSTOM_MODELS, HttpRequest, request_of, within_deadline
from service.frontend.http.openapi import (
    BINARY,
    REF,
    RESPONSE_HEADERS,
    error_answers,
    header_parameters,
    query_parameters,
)
from service.settings import Settings
from service.types import ModelStatus, PredictRequest, Reply

PREFIX = "/compat/deepstack"
DETECTION = "/v1/vision/detection"
CUSTOM = "/v1/vision/custom/{model}"
SCENE = "/v1/vision/scene"

IMAGE_FIELDS = (b"image", b"file")
MIN_CONFIDENCE = "min_confidence"
DEFAULT_MIN_CONFIDENCE = 0.4
"""DeepStack's."""


def _confidence(text: str) -> float:
    value: float = PARAMETERS["score_threshold"].parse(text)
    if value not in SCORE_THRESHOLD:
        raise ValueError(str(SCORE_THRESHOLD))
    return value


CONFIDENCE = Parameter(
    "Return only objects of a higher confidence.",
    {
        "type": "number",
        "minimum": SCORE_THRESHOLD.low,
        "maximum": SCORE_THRESHOLD.high,
        "default": DEFAULT_MIN_CONFIDENCE,
    },
    _confidence,
)
QUERY: dict[str, Parameter] = {
    name: PARAMETERS[name]
    for name in (
        "model",
        "max_detections",
        "classes",
        "iou_threshold",
        "agnostic_nms",
        "min_area",
        "tiles",
        "tile_overlap",
    )
}
"""Of detection. Names beside these are ignored, because programs add their own."""

PING = "/v1/status/ping"
UPDATE = "/v1/status/updateavailable"

JSON = "application/json"
FORM, ERROR = "DeepStackForm", "DeepStackError"
"""Names of schemas."""

EXAMPLE = {
    "predictions": [{"label": "cat", "confidence": 0.93, "x_min": 94, "y_min": 40, "x_max": 302, "y_max": 288}],
    "count": 1,
    "message": "Found cat",
    "duration": 0.061,
    "inferenceMs": 41,
    "processMs": 58,
    "analysisRoundTripMs": 61,
    "code": 200,
    "success": True,
}

T = TypeVar("T")


class DeepStackObject(msgspec.Struct, frozen=True):
    """An object: its box in whole pixels of the upright picture, and its confidence from 0 to 1."""

    label: str
    confidence: float
    x_min: int
    y_min: int
    x_max: int
    y_max: int


class DeepStackDetection(msgspec.Struct, frozen=True, rename="camel"):
    """Objects by falling confidence. `duration`: seconds; the others: milliseconds of the network, of the request's
    work, and from the request's arrival."""

    predictions: list[DeepStackObject]
    count: int
    message: str
    duration: float
    inference_ms: int
    process_ms: int
    analysis_round_trip_ms: int
    code: int = 200
    success: bool = True


class DeepStackScene(msgspec.Struct, frozen=True):
    """The most probable class of a classifier. `duration`: seconds."""

    label: str
    confidence: float
    duration: float
    success: bool = True


class DeepStackModels(msgspec.Struct, frozen=True):
    """The models that `/v1/vision/custom/{model}` takes."""

    models: list[str]
    success: bool = True


class DeepStackUpdate(msgspec.Struct, frozen=True, rename="camel"):
    """There is never an update: Blue Iris asks."""

    message: str = ""
    update_available: bool = False
    success: bool = True


class DeepStackStatus(msgspec.Struct, frozen=True):
    success: bool = True


class _Answered(NamedTuple):
    """A prediction and what it took, in seconds from the request's arrival."""

    reply: Reply[Any]
    seconds: float


def deepstack(engine: Engine, settings: Settings) -> APIRouter:
    """The routes, below `PREFIX` and, where the settings set it, at the root, too."""
    api = DeepStack(engine, settings)
    router = APIRouter()

    def add(path: str, answer: Callable[[Request], Awaitable[Response]], *methods: str) -> None:
        async def endpoint(request: Request) -> Response:
            request_of(request).record.route = path  # FastAPI sets it for its own routes only
            return await answer(request)

        for variant in (path, f"{path}/"):
            router.add_route(variant, endpoint, methods)

    for prefix in (PREFIX, "") if settings.deepstack_at_root else (PREFIX,):
        add(f"{prefix}{DETECTION}", api.detect, "POST")
        add(f"{prefix}{CUSTOM_MODELS}", api.list_models, "GET", "POST")
        add(f"{prefix}{CUSTOM}", api.detect, "POST")
        add(f"{prefix}{SCENE}", api.classify, "POST")
        add(f"{prefix}{PING}", api.ping, "GET")
        add(f"{prefix}{UPDATE}", api.update_available, "GET")
    return router


class DeepStack:
    """The routes' endpoints. All raise domain errors, and ClientDisconnect when the client leaves."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._max_bytes = settings.max_request_bytes

    async def detect(self, framework_request: Request) -> Response:
        texts = query_texts(framework_request.scope["query_string"])
        values = parse_values(QUERY, texts)
        name = framework_request.path_params.get("model") or values.get("model")
        model = self._engine.resolve(Task.DETECT, name)

        def params_of(in_form: str | None) -> PredictParams:
            given = texts.get(MIN_CONFIDENCE) if in_form is None else in_form
            threshold = DEFAULT_MIN_CONFIDENCE if given is None else parse_value(MIN_CONFIDENCE, CONFIDENCE, given)
            return parse_params(**{**values, "model": name}, score_threshold=threshold, masks=False)

        answered = await self._predict(request_of(framework_request), model, params_of, predictions_of)
        timings, predictions = answered.reply.timings, answered.reply.payload
        labels = ", ".join(dict.fromkeys(prediction.label for prediction in predictions))
        return _json(
            DeepStackDetection(
                predictions,
                len(predictions),
                f"Found {labels}" if labels else "No objects found",
                answered.seconds,
                round(timings.infer * 1000),
                round((timings.decode + timings.infer + timings.post) * 1000),
                round(answered.seconds * 1000),
            )
        )

    async def classify(self, framework_request: Request) -> Response:
        name = query_texts(framework_request.scope["query_string"]).get("model")
        model = self._engine.resolve(Task.CLASSIFY, name)

        def params_of(_: str | None) -> PredictParams:
            return parse_params(model=name, top_k=1)

        answered = await self._predict(request_of(framework_request), model, params_of, best_label_of)
        label, score = answered.reply.payload
        return _json(DeepStackScene(label, score, answered.seconds))

    async def list_models(self, _: Request) -> Response:
        detectors = [model for model in self._engine.resolve_all() if model.config.task is Task.DETECT]
        return _json(DeepStackModels([model.config.name for model in detectors]))

    async def ping(self, _: Request) -> Response:
        return _json(DeepStackStatus())

    async def update_available(self, _: Request) -> Response:
        return _json(DeepStackUpdate())

    async def _predict(
        self,
        request: HttpRequest,
        model: ModelStatus,
        params_of: Callable[[str | None], PredictParams],
        encode: Encode[T],
    ) -> _Answered:
        """The answer for the body's image. `params_of` gets the form's `min_confidence`; it raises BadParameter."""
        record, engine = request.record, self._engine
        record.predicts, record.task, record.model = True, model.config.task.value, model.config.name
        deadline_s = engine.deadline(request.timeout_ms)
        try:
            reading = read_fields(request, self._max_bytes, engine.bodies, IMAGE_FIELDS, (MIN_CONFIDENCE.encode(),))
            fields = await within_deadline(reading, deadline_s)
            parsed = params_of(fields.texts.get(MIN_CONFIDENCE))
            with request.connection.disconnect:
                image = await image_bytes(fields.image, engine.fetcher, record, deadline_s)
                prediction = PredictRequest(
                    record.request_id,
                    model,
                    image,
                    parsed.params,
                    deadline_s,
                    record.caller,
                    parsed.classes,
                    parsed.tiling,
                )
                reply = await engine.predict(prediction, encode)
        finally:
            engine.bodies.release(record)
        record.answered_by((reply,))
        return _Answered(reply, round(time.monotonic() - record.started_s, 6))


def predictions_of(raw: RawOutput, config: BundleConfig, size: Size) -> list[DeepStackObject]:
    """A detector's output as predictions, by falling confidence."""
    result = postprocess(raw, config, size)
    assert isinstance(result, DetectResult)
    predictions = []
    for detection in result.detections:
        box, confidence = detection.box, rounded_score(detection.score)
        corners = (round(box.xmin), round(box.ymin), round(box.xmax), round(box.ymax))
        predictions.append(DeepStackObject(detection.label, confidence, *corners))
    return predictions


def best_label_of(raw: RawOutput, config: BundleConfig, size: Size) -> tuple[str, float]:
    """A classifier's most probable label, and its probability."""
    result = postprocess(raw, config, size)
    assert isinstance(result, ClassifyResult)
    return result.labels[0].label, rounded_score(result.labels[0].score)


def _json(document: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(document), media_type=JSON)


def deepstack_document(settings: Settings) -> dict[str, Any]:
    """The API's part of the OpenAPI document: `paths`, and the `components` they refer to."""
    model = PARAMETERS["model"]
    in_path = {"name": "model", "in": "path", "required": True, "schema": dict(model.schema)}
    rest = {name: parameter for name, parameter in QUERY.items() if name != "model"}
    own = {MIN_CONFIDENCE: CONFIDENCE}
    predictions: dict[str, tuple[str, str, list[dict[str, Any]], type[msgspec.Struct]]] = {
        DETECTION: ("detection", "Detect objects", query_parameters({**QUERY, **own}), DeepStackDetection),
        CUSTOM: (
            "custom",
            "Detect objects with a named model",
            [in_path, *query_parameters({**rest, **own})],
            DeepStackDetection,
        ),
        SCENE: ("scene", "The most probable class of the image", query_parameters({"model": model}), DeepStackScene),
    }
    paths: dict[str, dict[str, Any]] = {}
    for path, (name, summary, parameters, answer) in predictions.items():
        # Generated clients send the first form; few libraries of theirs can send forms.
        forms = {"application/octet-stream": BINARY, "multipart/form-data": {"$ref": REF.format(name=FORM)}}
        body = {"required": True, "content": {medium: {"schema": schema} for medium, schema in forms.items()}}
        operation = {"parameters": [*parameters, *header_parameters(settings)], "requestBody": body}
        errors = error_answers(media_type=JSON, schema=ERROR)
        paths[path] = {"post": _operation(name, summary, answer, errors) | operation}
    others: list[tuple[str, str, str, str, type[msgspec.Struct]]] = [
        ("post", CUSTOM_MODELS, "custom_models", "The models that /v1/vision/custom/{model} takes", DeepStackModels),
        ("get", PING, "ping", "Whether the API answers", DeepStackStatus),
        ("get", UPDATE, "update_available", "Whether there is an update: never", DeepStackUpdate),
    ]
    for method, path, name, summary, answer in others:
        paths[path] = {method: _operation(name, summary, answer, error_answers((), JSON, ERROR))}
    structs = (DeepStackDetection, DeepStackScene, DeepStackModels, DeepStackStatus, DeepStackUpdate)
    _, schemas = msgspec.json.schema_components(structs, ref_template=REF)
    schemas[FORM] = {
        "type": "object",
        "description": "An image, and fields of which all but `min_confidence` are ignored.",
        "properties": {
            "image": BINARY,
            MIN_CONFIDENCE: {"description": CONFIDENCE.description, **CONFIDENCE.schema},
        },
        "required": ["image"],
    }
    text, number = {"type": "string"}, {"type": "integer"}
    schemas[ERROR] = {
        "type": "object",
        "description": "An error, with the members of a problem besides. An image that cannot be read has status 400.",
        "properties": {"success": {"type": "boolean"}, "error": text, "code": number},
        "required": ["success", "error", "code"],
    }
    return {"paths": {f"{PREFIX}{path}": item for path, item in paths.items()}, "components": {"schemas": schemas}}


def _operation(
    name: str, summary: str, answer: type[msgspec.Struct], errors: dict[int | str, dict[str, Any]]
) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": REF.format(name=answer.__name__)}}
    if answer is DeepStackDetection:
        content["example"] = EXAMPLE
    answered = {"description": "The answer", "headers": RESPONSE_HEADERS, "content": {JSON: content}}
    return {
        "tags": ["deepstack"],
        "operationId": f"deepstack_{name}",
        "summary": summary,
        "responses": {"200": answered, **errors},
    }
