"""The gate, for HTTP: credentials and rates are looked at before a byte of a body is read.

Whatever is not named open here needs a key where keys are set, so a new route is guarded from the start.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from model.errors import ConvMLPError
from model.types import Task
from service.frontend.gate import Caller, Gate
from service.frontend.rest.edge import exchange_in, header_of, refusal
from service.frontend.rest.pages import FILES
from service.metrics import FrontEndMetrics

OPEN = frozenset({*FILES, "/openapi.json", "/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
NO_PREDICTIONS = "/v2/repository/"
"""POSTs below it ask for no image's answer, so no rate counts them."""

_SCOPE_KEY = "convmlp.caller"
_SCHEME = "apiKey"


def caller_of(request: Request) -> Caller:
    """Whose request it is; only behind the guard."""
    caller: Caller = request.scope[_SCOPE_KEY]
    return caller


class Guard:
    """ASGI middleware inside of `Edge`. Every prediction is admitted as one image; further ones are charged later."""

    def __init__(self, app: ASGIApp, gate: Gate, metrics: FrontEndMetrics) -> None:
        self._app = app
        self._gate = gate
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            try:
                scope[_SCOPE_KEY] = self._let_in(scope)
            except ConvMLPError as error:
                self._count(scope, error)
                await refusal(Request(scope), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _let_in(self, scope: Scope) -> Caller:
        client = scope["client"]
        host = client[0] if client is not None else "local"
        caller = self._gate.identify(header_of(scope, b"authorization"), host)
        exchange_in(scope).caller = caller
        if _predicts(scope):
            self._gate.admit(caller)
        return caller

    def _count(self, scope: Scope, error: ConvMLPError) -> None:
        exchange = exchange_in(scope)
        if _predicts(scope):
            exchange.task = next((part for part in scope["path"].split("/") if part in _TASKS), "")
            self._metrics.request("rest", exchange.task, "", error.code, time.monotonic() - exchange.started_s)


_TASKS = frozenset(task.value for task in Task)


def _predicts(scope: Scope) -> bool:
    return scope["method"] == "POST" and not scope["path"].startswith(NO_PREDICTIONS)


def add_security(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """The app's OpenAPI text, which says that a key is needed and where."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        document["components"]["securitySchemes"] = {
            _SCHEME: {"type": "http", "scheme": "bearer", "description": "An API key of this service."}
        }
        for path, operations in document["paths"].items():
            if path not in OPEN:
                for operation in operations.values():
                    operation["security"] = [{_SCHEME: []}]
        return document

    return openapi
