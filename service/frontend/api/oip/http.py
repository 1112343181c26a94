"""The protocol over HTTP: the routes under `/v2` of the REST front-end's application.

The application checks credentials and rates before a route runs, and turns errors into responses.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Never

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from service.content_negotiation import preferred_coding
from service.errors import BadRequest, Unavailable
from service.frontend.api.oip.http_codec import (
    HEADER_LENGTH,
    encode_response,
    json_length,
    read_request,
)
from service.frontend.api.oip.inference import Inference, offload
from service.frontend.api.oip.metadata import NO_SETTINGS, NO_SHARED_MEMORY, ModelRepository, server_metadata
from service.frontend.core.auth import Auth
from service.frontend.core.engine import Engine
from service.frontend.http.content_encoding import CODINGS
from service.frontend.http.middleware import request_of
from service.settings import Settings

NOT_IMPLEMENTED = 501
HEADER_LENGTH_KEY = HEADER_LENGTH.lower().encode()


class _ControlBody(msgspec.Struct):
    """The body of the repository's routes."""

    ready: bool = False
    parameters: dict[str, Any] = {}


def open_inference(engine: Engine, auth: Auth, settings: Settings) -> APIRouter:
    """All routes of the protocol."""
    server = OpenInferenceHttp(engine, auth, settings)
    router = APIRouter()

    def add(path: str, answer: Callable[[Request], Awaitable[Response]], *methods: str) -> None:
        async def endpoint(request: Request) -> Response:
            request_of(request).record.route = path  # FastAPI sets it for its own routes only
            return await answer(request)

        router.add_route(path, endpoint, methods)

    for path, answer in {
        "": server.metadata,
        "/": server.metadata,
        "/health/live": server.live,
        "/health/ready": server.ready,
        "/models/stats": server.statistics,
        "/systemsharedmemory/status": server.no_regions,
        "/cudasharedmemory/status": server.no_regions,
    }.items():
        add(f"/v2{path}", answer, "GET")
    for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        add(model, server.model_metadata, "GET")
        add(f"{model}/ready", server.model_ready, "GET")
        add(f"{model}/config", server.model_config, "GET")
        add(f"{model}/stats", server.statistics, "GET")
        add(f"{model}/infer", server.infer, "POST")
    add("/v2/repository/index", server.index, "POST")
    add("/v2/repository/models/{name}/load", server.load, "POST")
    add("/v2/repository/models/{name}/unload", server.unload, "POST")
    for memory in ("/v2/systemsharedmemory", "/v2/cudasharedmemory"):
        add(f"{memory}/{{rest:path}}", server.no_shared_memory, "GET", "POST")
    for path in ("/v2/logging", "/v2/trace/setting", "/v2/models/{name}/trace/setting"):
        add(path, server.no_settings, "GET", "POST")
    return router


class OpenInferenceHttp:
    """The routes' endpoints. All raise domain errors, and ClientDisconnect when the client leaves."""

    def __init__(self, engine: Engine, auth: Auth, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._repository = ModelRepository(engine, settings)
        self._inference = Inference(engine, auth, settings, self._repository)

    async def infer(self, framework_request: Request) -> Response:
        request = request_of(framework_request)
        record, headers, bodies = request.record, request.headers, self._engine.bodies
        record.predicts = True
        # Before the body is read, so that a wrong model name does not cost an upload.
        model = self._inference.resolve(record, *_model(framework_request))
        deadline_s = self._engine.deadline(request.timeout_ms)
        coding = preferred_coding(_text(headers.get(b"accept-encoding")), CODINGS)
        try:
            body = await request.read_by(deadline_s, self._settings.max_request_bytes, bodies)
            length = json_length(_text(headers.get(HEADER_LENGTH_KEY)), len(body))
            nbytes = len(body) if length is None else length
            parsed = await offload(partial(read_request, body, length), nbytes, deadline_s)
            with request.connection.disconnect:
                content, response_headers = await self._inference.infer(
                    model, record, deadline_s, parsed, partial(encode_response, coding=coding)
                )
        finally:
            bodies.release(record)
        return Response(content, headers=response_headers)

    async def metadata(self, _: Request) -> Response:
        return _json(server_metadata())

    async def live(self, _: Request) -> Response:
        return _json({"live": True})

    async def ready(self, _: Request) -> Response:
        readiness = self._engine.readiness()
        if not readiness.ready:
            raise Unavailable(readiness.reason, readiness.retry_after_s)
        return _json({"ready": True})

    async def model_ready(self, request: Request) -> Response:
        name, version = _model(request)
        if not self._repository.model(name, version).ready:
            readiness = self._engine.readiness()
            raise Unavailable(f"model {name!r} is not ready: {readiness.reason}", readiness.retry_after_s)
        return _json({"name": name, "ready": True})

    async def model_metadata(self, request: Request) -> Response:
        return _json(self._repository.metadata(*_model(request)))

    async def model_config(self, request: Request) -> Response:
        return _json(self._repository.config(*_model(request)))

    async def statistics(self, request: Request) -> Response:
        return _json(self._repository.statistics_of(*_model(request)))

    async def index(self, request: Request) -> Response:
        body = await self._control_body(request)
        with request_of(request).connection.disconnect:
            listing = await self._repository.index(only_ready=body.ready, deadline_s=_control_deadline_s(request))
        return _json(listing)

    async def load(self, request: Request) -> Response:
        name, _ = _model(request)
        parameters = (await self._control_body(request)).parameters
        with request_of(request).connection.disconnect:
            await self._repository.load(name, parameters, _control_deadline_s(request))
        return Response()

    async def unload(self, request: Request) -> Response:
        name, _ = _model(request)
        await self._control_body(request)
        with request_of(request).connection.disconnect:
            await self._repository.unload(name, _control_deadline_s(request))
        return Response()

    async def no_regions(self, _: Request) -> Response:
        return _json([])

    async def no_shared_memory(self, _: Request) -> Never:
        raise HTTPException(NOT_IMPLEMENTED, NO_SHARED_MEMORY)

    async def no_settings(self, _: Request) -> Never:
        raise HTTPException(NOT_IMPLEMENTED, NO_SETTINGS)

    async def _control_body(self, framework_request: Request) -> _ControlBody:
        request, bodies = request_of(framework_request), self._engine.bodies
        deadline_s = self._engine.deadline(request.timeout_ms)
        try:
            body = await request.read_by(deadline_s, self._settings.max_request_bytes, bodies)
            return msgspec.json.decode(body, type=_ControlBody) if body else _ControlBody()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"the body does not have the expected form: {error}") from None
        finally:
            bodies.release(request.record)


def _model(request: Request) -> tuple[str, str]:
    """The model's name and version in the path; empty where it has none."""
    return request.path_params.get("name", ""), request.path_params.get("version", "")


def _text(header: bytes | None) -> str | None:
    return None if header is None else header.decode("latin-1")


def _control_deadline_s(request: Request) -> float | None:
    """None without a timeout of the client's: loading may take longer than a prediction."""
    timeout_ms = request_of(request).timeout_ms
    return None if timeout_ms is None else time.monotonic() + timeout_ms / 1000


def _json(document: object) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
