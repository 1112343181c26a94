"""What is told of an HTTP request, by the semantic conventions of OpenTelemetry for HTTP servers.

Paths and query strings are no attributes: the route says what was asked for, and neither values nor keys.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType

from starlette.requests import Request
from starlette.types import Scope

from service.frontend.exchange import Exchange
from service.frontend.journal import Journal
from service.spans import Attributes, Span, TraceContext, received_context

PROBES = frozenset({"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
MAX_PATH = 200
"""Characters of a path that are logged."""


def told(journal: Journal, exchange: Exchange, scope: Scope) -> AbstractContextManager[object]:
    """Whatever is done for a request is done within."""
    path, method = scope["path"], scope["method"]
    exchange.path = path[:MAX_PATH]
    exchange.method = method if method in METHODS else "_OTHER"
    probe = path in PROBES
    if not journal.traces:
        return journal.request(exchange, method, TraceContext, {}, probe=probe)
    about: Attributes = {
        "http.request.method": exchange.method,
        "network.protocol.version": scope["http_version"],
        "url.scheme": scope["scheme"],
    }
    name = method if method in METHODS else "HTTP"
    request = journal.request(exchange, name, partial(_context_in, scope), about, probe=probe)
    return _Told(request, exchange, scope, name)


class _Told:
    """Adds to `within` what is known of a request at its end; `name` is its span's, without the route."""

    __slots__ = ("_exchange", "_name", "_scope", "_span", "_within")

    def __init__(self, within: AbstractContextManager[Span], exchange: Exchange, scope: Scope, name: str) -> None:
        self._within = within
        self._exchange = exchange
        self._scope = scope
        self._name = name

    def __enter__(self) -> None:
        self._span = self._within.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        span, exchange = self._span, self._exchange
        # What was not answered has no status, and what was answered late is not the caller's fault.
        if isinstance(exchange.status, int):
            exchange.failed = exchange.status >= 500
        if span.recording:
            if isinstance(exchange.status, int):
                span.set({"http.response.status_code": exchange.status})
            # Known by now, if there is one.
            route = exchange.route or getattr(self._scope.get("route"), "path", "")
            if route:
                span.rename(f"{self._name} {route}")
                span.set({"http.route": route})
        self._within.__exit__(kind, error, trace)


def _context_in(scope: Scope) -> TraceContext:
    headers = Request(scope).headers
    return received_context(headers.getlist("traceparent"), headers.getlist("tracestate"))
