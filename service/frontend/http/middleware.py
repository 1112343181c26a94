"""The outermost layer around every HTTP request: its record, credentials and rates, its errors, and unread bodies.

Credentials and rates are checked before a byte of a body is read. Where keys are set, all paths but the
open ones need a key, and so does a new route.

Spans follow OpenTelemetry's semantic conventions for HTTP servers. Neither paths nor query strings are attributes of
them, only the route.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeVar

import structlog
from starlette.datastructures import Headers, QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.errors import ConvMLPError, ImageTooLarge
from model.types import Task
from service.errors import INTERNAL_DETAIL, BadParameter, DeadlineExceeded, Internal, Unavailable
from service.frontend.core.auth import Auth
from service.frontend.core.engine import ByteBudget
from service.frontend.core.image_fetcher import JOIN_BYTES
from service.frontend.core.parameters import ANALYZE, EMBED, Range, digits, shown
from service.frontend.core.request_log import RequestLog
from service.frontend.http.content_encoding import decoder_of
from service.frontend.http.other_servers import OtherConnection
from service.frontend.http.problems import DEEPSTACK_PATHS, ROBOFLOW_PATH, error_response, instance_of
from service.frontend.http.protocol import CONNECTION, BoundedHttp
from service.observability.tracing import CANCELLED, Span, received_context

PROBES = frozenset({"/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Paths that leave no line in the access log."""
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
OTHER_METHOD = "_OTHER"
"""What OpenTelemetry's conventions call methods that are not known."""
MAX_PATH = 200
"""Characters of a path that are logged."""
LINGER_S = 5.0
LINGER_BYTES = 256 * 2**20
"""The rest of a refused body is read and dropped for so long and up to so many bytes, so that its sender sees the
answer."""
TIMEOUT_MS = Range("a whole number", 1, 10**9)
CUSTOM_MODELS = "/v1/vision/custom/list"
"""DeepStack's path of its list of models."""
NOT_PREDICTIONS = ("/v2/repository/", "/compat/labelstudio/setup", "/compat/labelstudio/webhook")
LISTS = frozenset(f"{prefix}{CUSTOM_MODELS}{end}" for prefix in ("", "/compat/deepstack") for end in ("", "/"))
"""POSTs to paths that begin as the former or are of the latter predict nothing, so no rate limit applies to them."""
KEY_IN_QUERY = (*DEEPSTACK_PATHS, ROBOFLOW_PATH)
"""Below these paths a key may be `api_key` in the query string: their clients have no other place for it."""
CONTENT_ENCODING = b"content-encoding"
NOSNIFF = (b"x-content-type-options", b"nosniff")
SHUT_DOWN = "this process is shutting down and had no time left for the request; send it again"

REQUEST = "convmlp.request"
"""Key of the `HttpRequest` in a request's scope."""

_TASKS = frozenset({*(task.value for task in Task), EMBED, ANALYZE})
"""Parts of paths that name what is predicted."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class HttpRequest:
    """One HTTP request: its scope, headers, record and connection, its body and its answer.

    Every answer gets the headers X-Request-Id, Server-Timing and X-Content-Type-Options, that of a prediction also
    X-Model-Precision. A connection that is closed with unread bytes is reset, and the client may lose the answer. So
    where the body was not read to its end the whole answer is sent, then the rest of the body is read and dropped for a
    while, and then the connection is closed.

    `headers` has the first header of each name, in lower case, as bytes.
    """

    __slots__ = ("_receive", "_send", "_unread", "connection", "headers", "record", "scope", "started")

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_log: RequestLog) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.started = False
        self.headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        self.connection: BoundedHttp | OtherConnection = scope.get(CONNECTION) or OtherConnection(self.receive)
        path, method = scope["path"], scope["method"]
        self.record = record = request_log.request(
            self.headers.get(b"x-request-id", b"").decode("latin-1"),
            method if method in METHODS else OTHER_METHOD,
            probe=path in PROBES,
        )
        record.path = path[:MAX_PATH]
        self._unread = self.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self.headers
        scope[REQUEST] = self

    async def receive(self) -> Message:
        """ASGI's `receive`."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._unread = False
        else:
            self.record.request_bytes += len(message["body"])
            self._unread = message["more_body"]
        return message

    async def read(self, max_bytes: int, bodies: ByteBudget, use: Callable[[bytes], object] | None = None) -> bytes:
        """The whole body, decoded by its Content-Encoding, or each chunk of it to `use`.

        Its bytes are taken from `bodies` as they come, or as they are decoded.

        Raises:
            UnsupportedEncoding, BadRequest: the body is encoded in a way that is not supported, or is not of its
                coding.
            ImageTooLarge: it has more than `max_bytes`, as it comes or decoded.
            Overloaded: `bodies` has no room.
            ClientDisconnect: the client left before its end.
        """
        record, body = self.record, b""
        decoder = None
        if CONTENT_ENCODING in self.headers:
            values = [value.decode("latin-1") for name, value in self.scope["headers"] if name == CONTENT_ENCODING]
            decoder = decoder_of(values, max_bytes, partial(bodies.take, record))
        length = self.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > max_bytes:
            raise _too_long(max_bytes)
        chunks: list[bytes] = []
        total = 0
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._unread = False
                raise ClientDisconnect
            body, more = message["body"], message["more_body"]
            self._unread = more
            count = len(body)
            record.request_bytes += count
            total += count
            if total > max_bytes:
                raise _too_long(max_bytes)
            if decoder is not None:
                await decoder.feed(body, chunks.append if use is None else use)
                body = b""
                continue
            bodies.take(record, count)
            if use is not None:
                use(body)
            elif more or chunks:
                chunks.append(body)
        if decoder is not None:
            decoder.finish()
            total = decoder.nbytes
        if not chunks:
            return body
        return await asyncio.to_thread(b"".join, chunks) if total > JOIN_BYTES else b"".join(chunks)

    async def read_by(self, deadline_s: float, max_bytes: int, bodies: ByteBudget) -> bytes:
        """`read`, by a deadline on the clock of `time.monotonic`. What has arrived takes no timer and no message.

        Raises as `read`, and DeadlineExceeded: the body did not come in time.
        """
        connection, record, body = self.connection, self.record, None
        if isinstance(connection, BoundedHttp) and self._receive == connection.cycle.receive:
            body = None if CONTENT_ENCODING in self.headers else connection.take_body()
        if body is None:
            return await within_deadline(self.read(max_bytes, bodies), deadline_s)
        self._unread = False
        record.request_bytes = len(body)
        if len(body) > max_bytes:
            raise _too_long(max_bytes)
        bodies.take(record, len(body))
        return body

    def send(self, message: Message) -> Awaitable[None]:
        """ASGI's `send`."""
        record = self.record
        if message["type"] == "http.response.start":
            self.started = True
            message["headers"] = self._head(message["status"], message.get("headers", []))
        else:
            record.reply_bytes += len(message.get("body", b""))
            if self._unread and not message.get("more_body", False):
                return self._send_last(message)
        return self._send(message)

    async def respond(self, body: bytes, media_type: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Answer 200 with a body that needs no charset. `headers` are more of them, names in lower case.

        uvicorn's `send`, which checks each header, is used where `BoundedHttp.write_answer` cannot be: another server
        has the connection, it ended or is slow to read, or an application around this one sees the messages.
        """
        head = [*headers, (b"content-length", b"%d" % len(body)), (b"content-type", media_type.encode("latin-1"))]
        connection, send = self.connection, self._send
        if self._unread:
            send = self.send
        else:
            self.started = True
            self.record.reply_bytes = len(body)
            head = self._head(200, head)
            if (
                isinstance(connection, BoundedHttp)
                and send == connection.cycle.send
                and connection.write_answer(head, body)
            ):
                return
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": body})

    @property
    def predicts(self) -> bool:
        """Whether it asks for predictions, by its method and path."""
        path = self.scope["path"]
        return self.scope["method"] == "POST" and not path.startswith(NOT_PREDICTIONS) and path not in LISTS

    def count_refused(self) -> None:
        """Count it among the predictions, although it is refused before its endpoint sees it."""
        if self.predicts:
            self.record.predicts = True
            self.record.task = next((part for part in self.scope["path"].split("/") if part in _TASKS), "")

    async def refuse(self, error: ConvMLPError) -> None:
        """Answer with an error."""
        self.record.fail(error)
        await error_response(error, self.instance)(self.scope, self.receive, self.send)

    @property
    def instance(self) -> str:
        """The URI reference of this occurrence of an error."""
        return instance_of(self.scope["path"], self.record.request_id)

    @property
    def timeout_ms(self) -> int | None:
        """The value of X-Request-Timeout-Ms. Raises BadParameter."""
        header = self.headers.get(b"x-request-timeout-ms")
        return None if header is None else read_timeout_ms(header.decode("latin-1"))

    def _head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        record = self.record
        record.status, record.failed = status, status >= 500
        head = [
            *headers,
            (b"x-request-id", record.request_id.encode("ascii")),
            (b"server-timing", record.server_timing().encode("ascii")),
            NOSNIFF,
        ]
        if record.precision:
            head.append((b"x-model-precision", record.precision.encode("ascii")))
        if self._unread:
            head.append((b"connection", b"close"))
        return head

    async def _send_last(self, message: Message) -> None:
        """The end of an answer to a body that was not read to its own end."""
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


def request_of(request: Request) -> HttpRequest:
    """The request that the framework passes to an endpoint as its own type."""
    http_request: HttpRequest = request.scope[REQUEST]
    return http_request


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


async def within_deadline(reading: Awaitable[T], deadline_s: float) -> T:
    """What was read of a request's body. `deadline_s` is on the clock of `time.monotonic`.

    Raises:
        DeadlineExceeded: the body did not come in time.
    """
    try:
        async with asyncio.timeout(deadline_s - time.monotonic()):
            return await reading
    except TimeoutError:
        raise DeadlineExceeded("timed out before the upload finished") from None


class RequestMiddleware:
    """ASGI middleware around everything else. `open_paths` need no key.

    Every prediction is admitted as one image; further ones are charged later.
    """

    def __init__(self, app: ASGIApp, request_log: RequestLog, auth: Auth, open_paths: Collection[str]) -> None:
        self._app = app
        self._log = request_log
        self._auth = auth
        self._proxies = auth.proxies
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = HttpRequest(scope, receive, send, self._log)
        record = request.record
        if self._log.tracing.on and record.path not in PROBES:
            record.span = self._begin_span(request)
        with record:
            try:
                if scope["path"] not in self._open_paths:
                    client = scope["client"]
                    host = client[0] if client is not None else "local"
                    if self._proxies is not None:
                        host = self._proxies.caller(host, Headers(scope=scope).getlist(self._proxies.header))
                    if self._auth.is_open:
                        record.caller = host
                    else:
                        self._authenticate(request, host)
                await self._app(scope, request.receive, request.send)
            except ClientDisconnect:
                record.outcome = CANCELLED
            except asyncio.CancelledError:
                # Only a server whose time to drain ran out cancels a request; some others do so for a caller that left.
                if request.started:
                    raise
                if request.connection.disconnect.happened:
                    record.outcome = CANCELLED
                    raise
                await request.refuse(Unavailable(SHUT_DOWN))
            except ConvMLPError as error:
                await request.refuse(error)
            except Exception:
                log.exception("unexpected error", request_id=record.request_id, path=record.path)
                record.outcome = Internal.code
                if request.started:
                    raise
                await request.refuse(Internal(INTERNAL_DETAIL))
            finally:
                if record.span is not None:
                    # By now the framework has found its own route.
                    record.route = record.route or getattr(scope.get("route"), "path", "")

    def _authenticate(self, request: HttpRequest, host: str) -> None:
        """Raises Unauthenticated, RateLimited."""
        record = request.record
        header, scope = request.headers.get(b"authorization"), request.scope
        authorization = None if header is None else header.decode("latin-1")
        if authorization is None and scope["path"].startswith(KEY_IN_QUERY):
            key = QueryParams(scope["query_string"]).get("api_key")
            authorization = f"Bearer {key}" if key else None
        try:
            caller = self._auth.identify(authorization, host)
            record.caller = caller
            if request.predicts:
                self._auth.admit(caller)
        except ConvMLPError:
            request.count_refused()
            raise

    def _begin_span(self, request: HttpRequest) -> Span:
        method, scope = request.record.method, request.scope
        attributes = {
            "http.request.method": method,
            "network.protocol.version": scope["http_version"],
            "url.scheme": scope["scheme"],
        }
        headers = Request(scope).headers
        context = received_context(headers.getlist("traceparent"), headers.getlist("tracestate"))
        return self._log.tracing.request(method if method != OTHER_METHOD else "HTTP", context, attributes)


class FastPath:
    """ASGI application: POSTs to the paths of `direct` go there, everything else to the framework.

    The framework's way to an endpoint (some forty routes, dependencies, exit stacks) costs more than all that the
    endpoint itself does for a prediction.
    """

    def __init__(self, framework: ASGIApp, direct: Mapping[str, ASGIApp]) -> None:
        self._framework = framework
        self._direct = direct

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        app = self._framework
        if scope["type"] == "http" and scope["method"] == "POST":
            app = self._direct.get(scope["path"], app)
        return app(scope, receive, send)


class HeadAsGet:
    """ASGI middleware: HEAD wherever GET is (RFC 9110, section 9.3.2). The server leaves out the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") != "HEAD":
            await self._app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send)
        finally:
            scope["route"] = as_get.get("route")


def _too_long(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"the request's body has more than {max_bytes:,} bytes; send a smaller image, or fewer")
