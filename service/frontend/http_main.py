"""The HTTP front-end process, `convmlp rest`: its application, and how it starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib.metadata import version
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from model.types import Task
from service.frontend.api.compat.deepstack import deepstack, deepstack_document
from service.frontend.api.compat.labelstudio.http import label_studio
from service.frontend.api.compat.labelstudio.openapi import label_studio_document
from service.frontend.api.compat.roboflow.http import roboflow
from service.frontend.api.compat.roboflow.openapi import roboflow_document
from service.frontend.api.huggingface import SUMMARY as HUGGINGFACE_SUMMARY
from service.frontend.api.huggingface import HuggingFace, huggingface_components
from service.frontend.api.huggingface import operation as huggingface_operation
from service.frontend.api.oip.http import open_inference
from service.frontend.api.oip.openapi import open_inference_document
from service.frontend.api.rest.analyze import Analyze
from service.frontend.api.rest.embed import Embed
from service.frontend.api.rest.openapi import (
    SUMMARY,
    analysis_operation,
    embedding_operation,
    prediction_components,
    prediction_operation,
)
from service.frontend.api.rest.predict import ImageEndpoint, Predict
from service.frontend.api.rest.routes import FILES, page_routes, service_routes
from service.frontend.core.auth import Auth, InvalidKeysFile
from service.frontend.core.engine import Engine
from service.frontend.core.frontend import FrontEnd, open_front_end
from service.frontend.core.renewal import Reloaded
from service.frontend.core.request_log import RequestLog
from service.frontend.core.tls import InvalidCertificates, certificate_files, server_context
from service.frontend.http.connections import Connections
from service.frontend.http.middleware import PROBES, FastPath, HeadAsGet, RequestMiddleware, request_of
from service.frontend.http.openapi import add_components, add_security
from service.frontend.http.problems import problem, problem_response
from service.frontend.http.protocol import HttpService
from service.frontend.http.server import ProbesOnly, serve
from service.observability.metrics import FrontEndMetrics
from service.observability.tracing import NO_TRACING, Tracing, TracingUnavailable, open_tracing
from service.process import (
    EXIT_CONFIG,
    CannotListen,
    address_of,
    connection_limit,
    inherited_socket,
    open_listener,
    port_errors,
    run_process,
)
from service.settings import Settings
from service.wire.curve import InsecureWire

CORS_HEADERS = ("Retry-After", "Server-Timing", "X-Model-Precision", "X-Request-Id", "Inference-Header-Content-Length")
"""Headers of answers that pages of other origins may read."""
CORS_MAX_AGE_S = 600
"""How long a browser may keep the answer of a preflight."""

OPEN_PATHS = frozenset({*FILES, *PROBES, "/openapi.json"})
"""Paths that need no key, unless a setting protects them."""

DESCRIPTION = """Send an image, get labels, boxes and masks.

Coordinates are pixels of the upright image (EXIF orientation applied), origin at the top left. Errors are
`application/problem+json` (RFC 9457), under `/v2` `application/json`; `Retry-After` has the seconds to wait where
trying again may help."""

log = structlog.get_logger(__name__)


def run_rest(settings: Settings) -> int:
    """Serve HTTP until a signal; the exit status."""
    return run_process("rest", settings, lambda stop: _serve(settings, stop))


def create_app(
    engine: Engine,
    auth: Auth,
    settings: Settings,
    metrics: FrontEndMetrics,
    registry: CollectorRegistry,
    tracing: Tracing = NO_TRACING,
) -> HttpService:
    """The application, and what its server needs. `/metrics` exposes `registry`."""
    app = FastAPI(
        title="ConvMLP Serving",
        description=DESCRIPTION,
        version=version("convmlp-serving"),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _http_error},
    )
    open_paths = OPEN_PATHS - set(settings.protected_paths)
    request_log = RequestLog("rest", metrics, tracing, access_log=settings.access_log)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestMiddleware, request_log=request_log, auth=auth, open_paths=open_paths)
    direct: dict[str, ASGIApp] = {}
    document = partial(app.add_api_route, endpoint=_answered_directly, methods=["POST"], response_class=Response)
    endpoints: list[tuple[ImageEndpoint[Any, Any], dict[str, Any]]] = [
        *((Predict(task, engine, auth, settings), prediction_operation(task, settings)) for task in Task),
        (Embed(engine, auth, settings), embedding_operation(settings)),
        (Analyze(engine, auth, settings), analysis_operation(settings)),
    ]
    for endpoint, operation in endpoints:
        direct[endpoint.path] = RequestMiddleware(endpoint, request_log, auth, open_paths)
        summary = SUMMARY[operation["operationId"]]
        document(endpoint.path, tags=["predictions"], summary=summary, openapi_extra=operation)
    for task in Task:
        huggingface = HuggingFace(task, engine, settings)
        direct[huggingface.path] = RequestMiddleware(huggingface, request_log, auth, open_paths)
        document(
            f"/compat/huggingface/{task.value}",
            tags=["huggingface"],
            summary=HUGGINGFACE_SUMMARY[task],
            openapi_extra=huggingface_operation(task, settings),
        )
    app.include_router(label_studio(engine, auth, settings))
    app.include_router(open_inference(engine, auth, settings))
    app.include_router(deepstack(engine, settings))
    app.include_router(roboflow(engine, auth, settings))
    app.include_router(service_routes(engine, registry))
    app.include_router(page_routes(lambda: app.openapi()))
    # FastAPI's own way to extend it.
    documents = [
        {"components": {"schemas": {**prediction_components(settings), **huggingface_components()}}},
        open_inference_document(settings),
        deepstack_document(settings),
        label_studio_document(settings),
        roboflow_document(settings),
    ]
    app.openapi = add_components(app, documents)  # type: ignore[method-assign]
    if auth.needs_key:
        app.openapi = add_security(app, open_paths)  # type: ignore[method-assign]
    fast = FastPath(app, direct)
    connections = Connections(connection_limit(settings.max_connections), metrics)
    outer: ASGIApp = fast
    reserve: ASGIApp = ProbesOnly(fast, request_log)
    if settings.cors_origins:
        outer, reserve = _with_cors(outer, settings.cors_origins), _with_cors(reserve, settings.cors_origins)
    files = certificate_files(settings, "http")
    return HttpService(outer, reserve, connections, None if files is None else Reloaded(files, server_context))


def _with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Browsers let pages of these origins call the application, with API keys, and read its own headers."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=CORS_HEADERS,
        max_age=CORS_MAX_AGE_S,
    )


# Stands among the framework's routes for the endpoints that `FastPath` calls: it documents them, and the framework
# refuses other methods of their paths. It also matches such a path with a newline at its end.
async def _answered_directly() -> None:
    raise HTTPException(404)


async def _http_error(request: Request, error: Exception) -> Response:
    """The framework's own errors: unknown paths and methods; and OPTIONS, which no route has."""
    assert isinstance(error, HTTPException)
    allowed = set(error.headers["Allow"].split(", ")) if error.headers and "Allow" in error.headers else set()
    if "GET" in allowed:  # `HeadAsGet` adds HEAD
        allowed.add("HEAD")
    headers = {"Allow": ", ".join(sorted({*allowed, "OPTIONS"}))} if allowed else {}
    if request.method == "OPTIONS" and (allowed or request.scope["path"] == "*"):
        return Response(None, 204, headers)
    path = request.url.path[:200]
    bare = path.rstrip("/")
    advice = f"; the path is {bare!r}" if bare != path and _has_path(request, bare) else ""
    code, title, detail = {
        404: ("not-found", "Not found", f"there is nothing at {path!r}{advice}; see /docs"),
        405: ("method-not-allowed", "Method not allowed", f"{path!r} takes other methods; see /docs"),
    }.get(error.status_code, ("http-error", "The request failed", str(error.detail)))
    http_request = request_of(request)
    http_request.record.outcome = code
    answer = problem(code, error.status_code, title, detail, http_request.instance)
    return problem_response(answer, headers)


def _has_path(request: Request, path: str) -> bool:
    """Whether a route takes this path, with any method."""
    scope = {**request.scope, "path": path}
    return any(route.matches(scope)[0] is not Match.NONE for route in request.app.routes)


OpenFrontEnd = Callable[[], AbstractAsyncContextManager[FrontEnd]]


class RestApplication:
    """The REST API as an ASGI application for any server: it opens and closes with the server's lifespan.

    The server bounds its connections itself. `open_front_end` opens the parts that the API needs.
    """

    def __init__(self, settings: Settings, open_front_end: OpenFrontEnd) -> None:
        self._settings = settings
        self._open = open_front_end
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._app is None:
            raise RuntimeError("the server sent no lifespan.startup, which opens this application; turn lifespans on")
        else:
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with contextlib.AsyncExitStack() as stack:
                tracing = stack.enter_context(open_tracing(self._settings, "rest"))
                parts = await stack.enter_async_context(self._open())
                self._app = create_app(
                    parts.engine, parts.auth, self._settings, parts.metrics, parts.registry, tracing
                ).app
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as error:
            if self._app is not None:
                raise
            log.exception("cannot start")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
        else:
            await send({"type": "lifespan.shutdown.complete"})
        finally:
            self._app = None


async def _serve(settings: Settings, stop: asyncio.Event) -> int:
    try:
        with port_errors("--http-port", settings.http_port):
            listener = inherited_socket() or open_listener(settings.host, settings.http_port)
    except CannotListen as error:
        error.log(settings.host)
        return EXIT_CONFIG
    try:
        with open_tracing(settings, "rest") as tracing:
            async with open_front_end(settings) as front_end:
                service = create_app(
                    front_end.engine,
                    front_end.auth,
                    settings,
                    front_end.metrics,
                    front_end.registry,
                    tracing,
                )
                scheme = "http" if service.tls is None else "https"
                log.info("listening", url=f"{scheme}://{address_of(listener)}")
                await serve(service, [listener], stop, settings.drain_timeout_ms / 1000)
    except InvalidCertificates as error:
        log.error("cannot use the TLS certificates", error=str(error))
        return EXIT_CONFIG
    except InvalidKeysFile as error:
        log.error("cannot read the API keys", error=str(error))
        return EXIT_CONFIG
    except InsecureWire as error:
        log.error("cannot reach the workers", error=str(error))
        return EXIT_CONFIG
    except TracingUnavailable as error:
        log.error("cannot trace", error=str(error))
        return EXIT_CONFIG
    return 0
