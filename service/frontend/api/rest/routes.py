"""GET /models, /livez, /readyz, /metrics; PUT /models/{name}/split; the playground at `/`, the reference at `/docs`.

The pages load nothing from another host.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from model.bundle import Accuracy, Quantisation, Source
from model.families.registry import Architecture
from model.model_name import version_of
from model.reference import REFERENCE_PICTURE
from model.spec import Colour, Postprocessing, Preprocessing
from model.types import Task
from service.content_negotiation import preferred_coding
from service.errors import BadParameter, BadRequest, DeadlineExceeded, Forbidden, ModelNotFound, Unavailable
from service.frontend.core.engine import Engine
from service.frontend.http.content_encoding import CODINGS, ENCODERS
from service.frontend.http.middleware import request_of
from service.frontend.http.openapi import error_answers, problem_content
from service.observability.exposition import exposition
from service.types import ModelStatus

METRICS_TYPES = ("text/plain", "application/openmetrics-text")

WEB = Path(__file__).parents[2] / "web"

FILES = {
    "/": WEB / "playground.html",
    "/docs": WEB / "docs.html",
    "/web/samples/tabby.jpg": REFERENCE_PICTURE,
    **{f"/web/{file.relative_to(WEB).as_posix()}": file for file in WEB.glob("**/*.*") if file.suffix != ".html"},
}

MAX_SPLIT_BYTES = 4096
SPLIT_EXAMPLE = '{"1": 90, "2": 10}'
SPLIT_ERRORS = (BadParameter, BadRequest, DeadlineExceeded, Forbidden, ModelNotFound, Unavailable)
SPLIT_BODY = {
    "required": True,
    "description": "Percent of the requests by version; they sum to 100. `{}`: the first served version gets all.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "additionalProperties": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
                "example": {"1": 90, "2": 10},
            }
        }
    },
}

HEADERS = {
    # The playground shows chosen images and the camera's from blob: URLs, and the icon is a data: URL.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class ModelCard(BaseModel):
    """A version of a served model. `name`: with the version, unless that is 1. `default`: used if a request of its
    task names no model; of several versions the one with the largest share. `share`: of the requests for the model's
    name without a version, 0 to 1, while all versions that have a share are ready. `labels` and
    `palette` are by class index. `palette`: the colours of drawings, RGB; null: they follow from the labels.
    `embedding_dimension`: the length of a classifier's embeddings.

    `form`: of the network: `trained`, or `deploy`, an equivalent one with less to compute, into which it was changed
    when it was loaded. `form_difference`: the largest difference between both forms, measured then on the reference
    picture, relative to the spread of the outputs.
    """

    name: str
    version: str
    task: Task
    default: bool
    share: float
    ready: bool
    device: str
    precision: str
    form: Literal["trained", "deploy"]
    form_difference: float | None
    labels: tuple[str, ...]
    palette: tuple[Colour, ...] | None
    embedding_dimension: int | None
    input: Preprocessing
    postprocessing: Postprocessing
    architecture: Architecture
    weights_sha256: str
    source: Source
    accuracy: Accuracy | None
    quantisation: Quantisation | None


class ModelList(BaseModel):
    models: list[ModelCard]


class Liveness(BaseModel):
    live: bool


class ReadyAnswer(BaseModel):
    ready: bool
    reason: str


def service_routes(engine: Engine, registry: CollectorRegistry) -> APIRouter:
    router = APIRouter(responses={"default": problem_content("An error (RFC 9457)")})

    @router.get(
        "/models",
        tags=["models"],
        operation_id="list_models",
        summary="List the served models",
        responses=error_answers([Unavailable]),
    )
    async def models() -> ModelList:
        return ModelList(models=[_card(engine, model) for model in engine.models()])

    @router.get(
        "/models/{name}",
        tags=["models"],
        operation_id="describe_model",
        summary="Describe one model",
        responses=error_answers([ModelNotFound, Unavailable]),
    )
    async def model(name: str) -> ModelCard:
        return _card(engine, engine.model(name))

    @router.get("/livez", tags=["operation"], operation_id="liveness", summary="Liveness of this process")
    async def livez() -> Liveness:
        return Liveness(live=True)

    @router.get(
        "/readyz",
        tags=["operation"],
        operation_id="readiness",
        summary="Readiness to answer predictions; 503 with the reason if not",
        responses={503: problem_content("Not ready")},
    )
    async def readyz() -> ReadyAnswer:
        readiness = engine.readiness()
        if not readiness.ready:
            raise Unavailable(readiness.reason, readiness.retry_after_s)
        return ReadyAnswer(ready=True, reason=readiness.reason)

    @router.get(
        "/metrics",
        tags=["operation"],
        operation_id="metrics",
        summary="Prometheus metrics",
        response_class=Response,
        responses={200: {"content": {media_type: {"schema": {"type": "string"}} for media_type in METRICS_TYPES}}},
    )
    def metrics(request: Request) -> Response:
        # Not async, so that it runs in a thread: with several processes it reads their files.
        text, media_type = exposition(registry, request.headers.get("accept", ""))
        headers = {"Content-Type": media_type, "Vary": "Accept, Accept-Encoding"}
        coding = preferred_coding(request.headers.get("accept-encoding"), CODINGS)
        if coding is not None:
            text, headers["Content-Encoding"] = ENCODERS[coding](text), coding
        return Response(text, headers=headers)

    @router.put(
        "/models/{name}/split",
        tags=["models"],
        operation_id="split_model",
        summary="Split the requests for a model's name among its versions",
        responses=error_answers(SPLIT_ERRORS),
        openapi_extra={"requestBody": SPLIT_BODY},
    )
    async def split(name: str, framework_request: Request) -> ModelList:
        request = request_of(framework_request)
        deadline_s = engine.deadline(request.timeout_ms)
        try:
            body = await request.read_by(deadline_s, MAX_SPLIT_BYTES, engine.bodies)
            shares = msgspec.json.decode(body, type=dict[str, float])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"the body does not have the expected form, such as {SPLIT_EXAMPLE}: {error}") from None
        finally:
            engine.bodies.release(request.record)
        with request.connection.disconnect:
            await engine.control.set_split(name, shares, None if request.timeout_ms is None else deadline_s)
        return ModelList(models=[_card(engine, model) for model in engine.versions(name)])

    return router


def page_routes(openapi: Callable[[], dict[str, Any]]) -> APIRouter:
    """The pages, and the document that `openapi` returns. It is encoded once: that takes longer than a prediction."""

    @cache
    def document() -> bytes:
        return bytes(JSONResponse(openapi()).body)

    async def openapi_json() -> Response:
        return Response(document(), media_type="application/json")

    router = APIRouter(include_in_schema=False)
    for path, file in FILES.items():
        router.add_api_route(path, _page(file), methods=["GET"])
    router.add_api_route("/openapi.json", openapi_json, methods=["GET"])
    return router


def _card(engine: Engine, model: ModelStatus) -> ModelCard:
    config = model.config
    return ModelCard(
        name=config.name,
        version=version_of(config.name),
        task=config.task,
        default=engine.is_default(model),
        share=round(engine.share(model), 6),
        ready=model.ready,
        device=model.device,
        precision=model.precision,
        form=model.deployment.form,
        form_difference=model.deployment.largest_difference,
        labels=config.labels,
        palette=config.palette,
        embedding_dimension=config.embedding_dimension,
        input=config.preprocessing,
        postprocessing=config.postprocessing,
        architecture=config.architecture,
        weights_sha256=config.weights_sha256,
        source=config.source,
        accuracy=config.accuracy,
        quantisation=config.quantisation,
    )


def _page(file: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        return FileResponse(file, headers=HEADERS)

    return page
