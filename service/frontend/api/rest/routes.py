"""GET /models, /livez, /readyz, /metrics; and the pages: the playground at `/`, the reference at `/docs`.

The pages load nothing from another host.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from model.bundle import Accuracy, Source
from model.families.registry import Architecture
from model.reference import REFERENCE_PICTURE
from model.spec import Postprocessing, Preprocessing
from model.types import Task
from service.errors import ModelNotFound, Unavailable
from service.frontend.core.engine import Engine
from service.frontend.http.content_encoding import ENCODERS, negotiate_coding
from service.frontend.http.openapi import error_answers, problem_content
from service.observability.exposition import exposition
from service.types import ModelStatus

METRICS_TYPES = ("text/plain", "application/openmetrics-text")

WEB = Path(__file__).parents[2] / "web"

FILES = {
    "/": WEB / "playground.html",
    "/docs": WEB / "docs.html",
    "/web/playground.js": WEB / "playground.js",
    "/web/docs.js": WEB / "docs.js",
    "/web/style.css": WEB / "style.css",
    "/web/sample.jpg": REFERENCE_PICTURE,
}

HEADERS = {
    # The playground shows chosen images from blob: URLs, and the icon is a data: URL.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class ModelCard(BaseModel):
    """A served model. `default`: used if a request of its task names no model. `labels` are by class index.
    `embedding_dimension`: the length of a classifier's embeddings.

    `form`: of the network: `trained`, or `deploy`, an equivalent one with less to compute, into which it was changed
    when it was loaded. `form_difference`: the largest difference between both forms, measured then on the reference
    picture, relative to the spread of the outputs.
    """

    name: str
    task: Task
    default: bool
    ready: bool
    device: str
    precision: str
    form: Literal["trained", "deploy"]
    form_difference: float | None
    labels: tuple[str, ...]
    embedding_dimension: int | None
    input: Preprocessing
    postprocessing: Postprocessing
    architecture: Architecture
    weights_sha256: str
    source: Source
    accuracy: Accuracy | None


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
        coding = negotiate_coding(request.headers.get("accept-encoding"))
        if coding is not None:
            text, headers["Content-Encoding"] = ENCODERS[coding](text), coding
        return Response(text, headers=headers)

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
        task=config.task,
        default=engine.resolve(config.task, None).config.name == config.name,
        ready=model.ready,
        device=model.device,
        precision=model.precision,
        form=model.deployment.form,
        form_difference=model.deployment.largest_difference,
        labels=config.labels,
        embedding_dimension=config.embedding_dimension,
        input=config.preprocessing,
        postprocessing=config.postprocessing,
        architecture=config.architecture,
        weights_sha256=config.weights_sha256,
        source=config.source,
        accuracy=config.accuracy,
    )


def _page(file: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        return FileResponse(file, headers=HEADERS)

    return page
