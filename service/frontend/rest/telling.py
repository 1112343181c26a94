"""What is told of an HTTP request, by the semantic conventions of OpenTelemetry for HTTP servers.

Paths and query strings are no attributes: the route says what was asked for, and neither values nor keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from starlette.requests import Request

from service.frontend.exchange import Exchange
from service.frontend.journal import Journal
from service.spans import Attributes, TraceContext, received_context

PROBES = frozenset({"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
MAX_PATH = 200
"""Characters of a path that are logged."""


@contextmanager
def told(journal: Journal, exchange: Exchange, request: Request) -> Iterator[None]:
    """Whatever is done for a request is done within."""
    path = request.scope["path"]
    exchange.path = path[:MAX_PATH]
    exchange.method = request.method if request.method in METHODS else "_OTHER"
    about: Attributes = {
        "http.request.method": exchange.method,
        "network.protocol.version": request.scope["http_version"],
        "url.scheme": request.scope["scheme"],
    }
    name = request.method if request.method in METHODS else "HTTP"
    with journal.request(exchange, name, partial(_context_of, request), about, probe=path in PROBES) as span:
        try:
            yield
        finally:
            # What was not answered has no status, and what was answered late is not the caller's fault.
            if isinstance(exchange.status, int):
                exchange.failed = exchange.status >= 500
                span.set({"http.response.status_code": exchange.status})
            # Known by now, if there is one.
            route = exchange.route or getattr(request.scope.get("route"), "path", "")
            if route:
                span.rename(f"{name} {route}")
                span.set({"http.route": route})


def _context_of(request: Request) -> TraceContext:
    return received_context(request.headers.getlist("traceparent"), request.headers.getlist("tracestate"))
