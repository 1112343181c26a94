"""The outermost layer around every HTTP request: its record, credentials and rates, errors, and unread bodies.

Spans follow OpenTelemetry's semantic conventions for HTTP servers. Neither paths nor query strings are attributes of
them, only the route.

Credentials and rates are checked before a byte of a body is read. Paths that are not named open need a key where keys
are set, so a new route is guarded from the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.errors import ConvMLPError
from model.types import Task
from service.errors import INTERNAL_DETAIL, BadParameter, Internal, Unavailable
from service.frontend.core.auth import Auth, Caller
from service.frontend.core.parameters import Range, digits, shown
from service.frontend.core.request_log import RequestLog, RequestRecord
from service.frontend.http.problems import error_response, instance_of
from service.observability.tracing import CANCELLED, Span, TraceContext, received_context

PROBES = frozenset({"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
MAX_PATH = 200
"""Characters of a path that are logged."""


def _context_in(scope: Scope) -> TraceContext:
    headers = Request(scope).headers
    return received_context(headers.getlist("traceparent"), headers.getlist("tracestate"))


LINGER_S = 5.0
LINGER_BYTES = 256 * 2**20
"""How long, and for how much, the rest of a refused body is read and dropped, so that its sender sees the answer."""

TIMEOUT_MS = Range("a whole number", 1, 10**9)

_SCOPE_KEY = "convmlp.exchange"
_HEADERS_KEY = "convmlp.headers"

log = structlog.get_logger(__name__)


def header_of(scope: Scope, name: bytes) -> str | None:
    """The first header of that name, in lower case; without the objects that Starlette makes of all of them."""
    headers: dict[bytes, bytes] | None = scope.get(_HEADERS_KEY)
    if headers is None:
        headers = scope[_HEADERS_KEY] = dict(reversed(scope["headers"]))
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def read_timeout_ms(header: str | None) -> int | None:
    """The value of X-Request-Timeout-Ms.

    Raises:
        BadParameter: not a whole number of milliseconds from 1 on.
    """
    if header is None:
        return None
    milliseconds = digits(header.strip())
    if milliseconds is None or milliseconds not in TIMEOUT_MS:
        raise BadParameter(f"the header X-Request-Timeout-Ms is {shown(header)}; expected {TIMEOUT_MS}")
    return milliseconds


def record_in(scope: Scope) -> RequestRecord:
    record: RequestRecord = scope[_SCOPE_KEY]
    return record


def record_of(request: Request) -> RequestRecord:
    return record_in(request.scope)


def instance_uri(request: Request) -> str:
    return instance_of(request.scope["path"], record_of(request).request_id)


def refusal(request: Request, error: ConvMLPError) -> Response:
    """The answer to a request that ended with a domain error."""
    record_of(request).fail(error)
    return error_response(error, instance_uri(request))


class RequestMiddleware:
    """ASGI middleware around everything else. `let_in` raises domain errors for whom it does not let in."""

    def __init__(self, app: ASGIApp, request_log: RequestLog, let_in: Callable[[Scope], None]) -> None:
        self._app = app
        self._log = request_log
        self._let_in = let_in

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, method = scope["path"], scope["method"]
        record = self._log.request(
            header_of(scope, b"x-request-id") or "",
            method if method in METHODS else "_OTHER",
            probe=path in PROBES,
        )
        record.path = path[:MAX_PATH]
        scope[_SCOPE_KEY] = record
        if self._log.tracing.on and path not in PROBES:
            record.span = self._begin_span(scope, record)
        pipe = _Pipe(scope, record, receive, send)
        with record:
            try:
                self._let_in(scope)
                await self._app(scope, pipe.receive, pipe.send)
            except ClientDisconnect:
                record.outcome = CANCELLED  # nobody is left to answer
            except asyncio.CancelledError:
                # Only a server whose time to drain ran out cancels a request.
                if pipe.started:
                    raise
                late = "this process is shutting down and had no time left for the request; send it again"
                await _refuse(scope, pipe, Unavailable(late))
            except ConvMLPError as error:
                await _refuse(scope, pipe, error)
            except Exception:
                log.exception("unexpected error", request_id=record.request_id, path=record.path)
                record.outcome = Internal.code
                if pipe.started:
                    raise
                await _refuse(scope, pipe, Internal(INTERNAL_DETAIL))
            finally:
                if record.span is not None:
                    # By now the framework has found its own route.
                    record.route = record.route or getattr(scope.get("route"), "path", "")

    def _begin_span(self, scope: Scope, record: RequestRecord) -> Span:
        about = {
            "http.request.method": record.method,
            "network.protocol.version": scope["http_version"],
            "url.scheme": scope["scheme"],
        }
        name = record.method if record.method != "_OTHER" else "HTTP"
        return self._log.tracing.request(name, _context_in(scope), about)


async def _refuse(scope: Scope, pipe: _Pipe, error: ConvMLPError) -> None:
    await refusal(Request(scope), error)(scope, pipe.receive, pipe.send)


class _Pipe:
    """Adds the headers that every answer has, and sees to a body that was not read to its end.

    Closing a connection with unread bytes resets it, and the answer may be lost on its way. So the whole answer
    is sent, then what still comes is dropped for a while, and only then the connection is closed.
    """

    __slots__ = ("_exchange", "_receive", "_send", "_unread", "started")

    def __init__(self, scope: Scope, record: RequestRecord, receive: Receive, send: Send) -> None:
        self.started = False
        self._exchange = record
        self._receive = receive
        self._send = send
        length = header_of(scope, b"content-length") or "0"
        self._unread = length != "0" or header_of(scope, b"transfer-encoding") is not None

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._unread = False
        else:
            self._exchange.request_bytes += len(message["body"])
            self._unread = message["more_body"]
        return message

    def send(self, message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            self.started = True
            status = self._exchange.status = message["status"]
            self._exchange.failed = status >= 500
            headers = [
                *message.get("headers", []),
                (b"x-request-id", self._exchange.request_id.encode("ascii")),
                (b"server-timing", self._exchange.server_timing().encode("ascii")),
            ]
            if self._unread:
                headers.append((b"connection", b"close"))
            message["headers"] = headers
        else:
            self._exchange.reply_bytes += len(message.get("body", b""))
            if self._unread and not message.get("more_body", False):
                return self._send_last(message)
        return self._send(message)

    async def _send_last(self, message: Message) -> None:
        """The end of an answer to a body that was not read to its own."""
        await self._send({**message, "more_body": True})
        await self._drop_rest()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _drop_rest(self) -> None:
        dropped = 0
        try:
            async with asyncio.timeout(LINGER_S):
                while self._unread and dropped < LINGER_BYTES:
                    dropped += len((await self.receive()).get("body", b""))
        except TimeoutError:
            return


NO_PREDICTIONS = "/v2/repository/"
"""POSTs below it ask for no image's answer, so no rate counts them."""

_CALLER_KEY = "convmlp.caller"


def caller_of(request: Request) -> Caller:
    """Whose request it is; only behind the guard."""
    caller: Caller = request.scope[_CALLER_KEY]
    return caller


class AuthMiddleware:
    """Who may do what. Every prediction is admitted as one image; further ones are charged later.

    `open_paths` need no key.
    """

    def __init__(self, gate: Auth, open_paths: Collection[str]) -> None:
        self._open_paths = open_paths
        self._gate = gate

    def let_in(self, scope: Scope) -> None:
        """Look at a request that came.

        Raises:
            Unauthenticated, RateLimited: as `Auth.identify` and `Auth.admit`.
        """
        path = scope["path"]
        if path in self._open_paths:
            return
        predicts = scope["method"] == "POST" and not path.startswith(NO_PREDICTIONS)
        record, client = record_in(scope), scope["client"]
        try:
            host = client[0] if client is not None else "local"
            caller = self._gate.identify(header_of(scope, b"authorization"), host)
            scope[_CALLER_KEY] = record.caller = caller
            if predicts:
                self._gate.admit(caller)
        except ConvMLPError:
            if predicts:
                record.predicts = True
                record.task = next((part for part in path.split("/") if part in _TASKS), "")
            raise


_TASKS = frozenset(task.value for task in Task)
