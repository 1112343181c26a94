"""The gate, for HTTP: credentials and rates are looked at before a byte of a body is read.

Whatever is not named open here needs a key where keys are set, so a new route is guarded from the start.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from starlette.requests import Request
from starlette.types import Scope

from model.errors import ConvMLPError
from model.types import Task
from service.frontend.gate import Caller, Gate
from service.frontend.rest.edge import exchange_in, header_of
from service.metrics import FrontEndMetrics

NO_PREDICTIONS = "/v2/repository/"
"""POSTs below it ask for no image's answer, so no rate counts them."""

_SCOPE_KEY = "convmlp.caller"


def caller_of(request: Request) -> Caller:
    """Whose request it is; only behind the guard."""
    caller: Caller = request.scope[_SCOPE_KEY]
    return caller


class Guard:
    """Who may do what. Every prediction is admitted as one image; further ones are charged later.

    `open_paths` need no key.
    """

    def __init__(self, gate: Gate, metrics: FrontEndMetrics, open_paths: Collection[str]) -> None:
        self._open_paths = open_paths
        self._gate = gate
        self._metrics = metrics

    def let_in(self, scope: Scope) -> None:
        """Look at a request that came.

        Raises:
            Unauthenticated, RateLimited: as `Gate.identify` and `Gate.admit`.
        """
        path = scope["path"]
        if path in self._open_paths:
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
