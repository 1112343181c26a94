"""The gate, for HTTP: credentials and rates are looked at before a byte of a body is read.

Whatever is not named open here needs a key where keys are set, so a new route is guarded from the start.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import Scope

from model.errors import ConvMLPError
from model.types import Task
from service.frontend.gate import Caller, Gate
from service.frontend.rest.edge import exchange_in, header_of
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
    """Who may do what. Every prediction is admitted as one image; further ones are charged later."""

    def __init__(self, gate: Gate, metrics: FrontEndMetrics) -> None:
        self._gate = gate
        self._metrics = metrics

    def let_in(self, scope: Scope) -> None:
        """Look at a request that came.

        Raises:
            Unauthenticated, RateLimited: as `Gate.identify` and `Gate.admit`.
        """
        path = scope["path"]
        if path in OPEN:
            return
        predicts = scope["method"] == "POST" and not path.startswith(NO_PREDICTIONS)
        exchange, client = exchange_in(scope), scope["client"]
        try:
            host = client[0] if client is not None else "local"
            caller = self._gate.identify(header_of(scope, b"authorization"), host)
            scope[_SCOPE_KEY] = exchange.caller = caller
            if predicts:
                self._gate.admit(caller)
        except ConvMLPError as error:
            if predicts:
                exchange.task = next((part for part in path.split("/") if part in _TASKS), "")
                self._metrics.request("rest", exchange.task, "", error.code, time.monotonic() - exchange.started_s)
            raise


_TASKS = frozenset(task.value for task in Task)


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
