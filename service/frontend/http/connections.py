"""The HTTP connections of one process: bounds on their number, bytes and idle time; refusals where there is no request
that the application could answer.

At the limit of connections a new one takes the place of those that wait for a request for the longest time. If none
waits, it comes into a small reserve, where probes are answered and everything else is refused. So an orchestrator sees
a live process, and callers an answer, whatever the other connections do.

A refusal is problem+json, as all errors are. It ends its connection.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from http import HTTPMethod, HTTPStatus
from types import TracebackType
from typing import Any, ClassVar, Never, Protocol

import httptools
import msgspec
from starlette.requests import ClientDisconnect

from service.errors import ConnectionEnd
from service.frontend.core.request_log import usable_id
from service.frontend.http.problems import PROBLEM_MEDIA_TYPE, problem
from service.observability.metrics import FrontEndMetrics

RESERVED = 64
"""Connections beyond the limit. Each is closed after one answer, and the oldest gives way to a new one."""
WAITING_S = 1.0
"""A connection that has waited for a request for less time is not closed: its request may be on the way."""
CLOSED_AT_ONCE = 16
"""One in so many connections is closed when room is needed, so that the search for them is rare."""
MAX_HEAD_BYTES = 64 * 2**10
"""Request line and headers together."""
IS_HOST = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]*").fullmatch
"""Whether a Host header has only characters of a host and a port (RFC 9110, section 7.2)."""


class Connection(Protocol):
    """What is needed of a connection here."""

    def waiting_since_s(self) -> float | None:
        """When it began to wait for a request, on the event loop's clock; None while it does not wait."""

    def close_idle(self, since_s: float) -> None:
        """Close it if it waits for another request since then, on the event loop's clock, or longer."""

    def end(self, reason: ConnectionEnd) -> None:
        """Close it now."""


class Disconnect:
    """Cancels the work for a request when its connection ends: use as a context manager around that work.

    Each connection has one, because it answers one request at a time. ASGI's own message about a disconnect would
    take another task for each request.

    Raises:
        ClientDisconnect: the connection ended, before the work or during it.
    """

    __slots__ = ("_cancellations", "_task", "happened")

    def __init__(self) -> None:
        self.happened = False
        self._task: asyncio.Task[Any] | None = None

    def notify(self) -> None:
        """The connection ended."""
        self.happened = True
        if self._task is not None:
            self._task.cancel()

    def __enter__(self) -> None:
        if self.happened:
            raise ClientDisconnect
        self._task = task = asyncio.current_task()
        assert task is not None
        self._cancellations = task.cancelling()  # by others, as `asyncio.timeout` distinguishes them

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        task, self._task = self._task, None
        if not self.happened:
            return
        assert task is not None
        if kind is None:  # the work was done before the cancellation took effect
            task.uncancel()
            raise ClientDisconnect
        if isinstance(error, asyncio.CancelledError) and task.uncancel() <= self._cancellations:
            raise ClientDisconnect from None


class Connections:
    """The connections of one process. `clock` is that of the event loop, in seconds."""

    max_pipelined_bytes: ClassVar[int] = 32 * 2**20
    """Requests behind unanswered ones, as bytes that were received and not parsed, of all connections."""
    max_unread_bytes: ClassVar[int] = 256 * 2**20
    """Answers that their callers do not read, of all connections."""

    keep_alive_s: ClassVar[float] = 75.0
    """How long a connection may wait for another request: longer than the idle timeout of common load balancers, so
    that they are the ones to close it."""
    idle_look_s: ClassVar[float] = 5.0
    """Between two looks for connections that wait longer. A timer for each answer would cost 3 % of a prediction."""

    def __init__(self, limit: int, metrics: FrontEndMetrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._metrics = metrics
        self._clock = clock
        self._open: set[Connection] = set()
        self._reserve: dict[Connection, None] = {}  # the oldest first
        self._unread: dict[Connection, int] = {}  # the longest unread first
        self._unread_bytes = 0
        self._pipelined_bytes = 0
        self._none_waits_until_s = 0.0
        metrics.connections_limit(limit)

    def add(self, connection: Connection) -> bool:
        """Count a new connection. False: it is one of the reserve."""
        within = len(self._open) < self._limit or self._make_room()
        if within:
            self._open.add(connection)
        else:
            if len(self._reserve) >= RESERVED:
                oldest = next(iter(self._reserve))
                del self._reserve[oldest]
                oldest.end(ConnectionEnd.LIMIT)
            self._reserve[connection] = None
        self._metrics.connections(len(self._open) + len(self._reserve))
        return within

    def remove(self, connection: Connection) -> None:
        """The connection is closed. It may have been removed before."""
        self._open.discard(connection)
        self._reserve.pop(connection, None)
        self.read(connection)
        self._metrics.connections(len(self._open) + len(self._reserve))

    async def watch(self) -> Never:
        """Close connections that wait for another request for longer than `keep_alive_s`, until cancelled."""
        while True:
            await asyncio.sleep(self.idle_look_s)
            since_s = self._clock() - self.keep_alive_s
            for connection in tuple(self._open):
                connection.close_idle(since_s)

    def ended(self, reason: ConnectionEnd) -> None:
        """Count a connection that the service ends by itself."""
        self._metrics.connection_ended(reason)

    def unread(self, connection: Connection, nbytes: int) -> None:
        """So many bytes wait for a connection to read them. Those that wait the longest are ended at the bound."""
        self.read(connection)
        self._unread[connection] = nbytes
        self._unread_bytes += nbytes
        while self._unread_bytes > self.max_unread_bytes:
            slowest = next(iter(self._unread))
            self.read(slowest)
            slowest.end(ConnectionEnd.UNREAD)

    def read(self, connection: Connection) -> None:
        """The connection has read its answers, or is closed."""
        self._unread_bytes -= self._unread.pop(connection, 0)

    def hold(self, nbytes: int) -> bool:
        """Hold the bytes of requests that wait behind unanswered ones; False: there is no room for them."""
        if self._pipelined_bytes + nbytes > self.max_pipelined_bytes:
            return False
        self._pipelined_bytes += nbytes
        return True

    def release(self, nbytes: int) -> None:
        """The bytes are held no more."""
        self._pipelined_bytes -= nbytes

    def _make_room(self) -> bool:
        """Close some of the connections that have waited for a request the longest. False: none waits."""
        now_s = self._clock()
        if now_s < self._none_waits_until_s:
            return False
        waiting = [
            (since_s, connection)
            for connection in self._open
            if (since_s := connection.waiting_since_s()) is not None and since_s <= now_s - WAITING_S
        ]
        if not waiting:
            self._none_waits_until_s = now_s + WAITING_S
            return False
        waiting.sort(key=lambda pair: pair[0])
        for _, connection in waiting[: len(self._open) // CLOSED_AT_ONCE + 1]:
            self._open.discard(connection)
            connection.end(ConnectionEnd.LIMIT)
        return True


@dataclass(frozen=True, slots=True)
class Refusal:
    """`end` is for the metrics; `code` is the last part of the problem's type."""

    end: ConnectionEnd
    code: str
    status: HTTPStatus
    title: str
    detail: str
    retry_after_s: int | None = None

    def response(self) -> bytes:
        """The whole response, with a request id of its own."""
        request_id = usable_id("")
        body = msgspec.json.encode(problem(self.code, self.status, self.title, self.detail, f"#{request_id}"))
        retry = "" if self.retry_after_s is None else f"retry-after: {self.retry_after_s}\r\n"
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n"
            f"content-type: {PROBLEM_MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n{retry}"
            f"x-content-type-options: nosniff\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        return head.encode("ascii") + body


HEAD_TOO_LARGE = Refusal(
    ConnectionEnd.HEAD_TOO_LARGE,
    "head-too-large",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "The request's head is too large",
    f"the request line and the headers have more than {MAX_HEAD_BYTES:,} bytes; send images in the body",
)
HEAD_TIMEOUT = Refusal(
    ConnectionEnd.HEAD_TIMEOUT,
    "head-timeout",
    HTTPStatus.REQUEST_TIMEOUT,
    "The request's head did not arrive in time",
    "no complete request line and headers arrived in time; send them at once, and the body after them",
)
TOO_MUCH_PIPELINED = Refusal(
    ConnectionEnd.PIPELINED,
    "overloaded",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The service is overloaded",
    "too many requests wait behind unanswered ones of the same connections; read answers before sending more",
    retry_after_s=1,
)
CONNECT = Refusal(
    ConnectionEnd.MALFORMED,
    "method-not-allowed",
    HTTPStatus.NOT_IMPLEMENTED,
    "Method not implemented",
    "CONNECT is for proxies, and this service is none; see /docs",
)
HOST = Refusal(
    ConnectionEnd.MALFORMED,
    "malformed-request",
    HTTPStatus.BAD_REQUEST,
    "The request is not valid HTTP",
    "a request of HTTP/1.1 has exactly one Host header, with a host and, where needed, a port (RFC 9112, section 3.2)",
)
TRANSFER_CODING = Refusal(
    ConnectionEnd.MALFORMED,
    "transfer-coding",
    HTTPStatus.NOT_IMPLEMENTED,
    "Transfer coding not implemented",
    "the only transfer coding of request bodies is `chunked`; name a compression in Content-Encoding instead",
)
VERSION = Refusal(
    ConnectionEnd.MALFORMED,
    "http-version",
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
    "HTTP version not supported",
    "this port takes HTTP/1.1 and HTTP/1.0; gRPC has a port of its own",
)
_METHODS = ("Invalid method encountered", "Expected space after method")
"""llhttp's reasons for a method that it does not know, and for what is no HTTP at all."""
_request_lines = re.compile(rb"(?:\A|\r\n\r\n)([!#$%&'*+.^_`|~\w-]{1,40}) [!-~]+ HTTP/1\.[01]\r\n").findall
_KNOWN_METHODS = frozenset(method.encode("ascii") for method in HTTPMethod)
_VERSIONS = ("Invalid HTTP version", "Pause on PRI/Upgrade")
"""llhttp's reasons for a request of another version; the second is HTTP/2's preface."""


class RefusedHead(Exception):
    """Raised in a callback of the parser: the request's head is refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


def check_head(headers: Iterable[tuple[bytes, bytes]], version: str) -> int:
    """Check what the parser leaves unchecked. Returns the body's length in bytes; 0 where there is none, or chunks.

    Raises:
        RefusedHead: another version, Host header or transfer coding.
    """
    if version not in ("1.0", "1.1"):
        raise RefusedHead(VERSION)
    hosts = nbytes = 0
    for name, value in headers:
        if name == b"content-length":
            nbytes = int(value)
        elif name == b"host":
            hosts += 1 if IS_HOST(value) else 2
        elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            # The parser would drop other codings before it, such as gzip.
            raise RefusedHead(TRANSFER_CODING)
    if hosts != 1 and (hosts or version != "1.0"):
        raise RefusedHead(HOST)
    return nbytes


def _unknown_method(method: str) -> Refusal:
    return replace(CONNECT, detail=f"the method {method!r} is not implemented; upper and lower case differ; see /docs")


def malformed(error: httptools.HttpParserError, data: bytes | memoryview) -> Refusal:
    """The refusal of what the parser, or one of its callbacks, does not accept in `data`."""
    if isinstance(error.__context__, RefusedHead):
        return error.__context__.refusal
    reason = str(error)
    if reason in _VERSIONS:
        return VERSION
    if reason in _METHODS and (unknown := [one for one in _request_lines(data) if one not in _KNOWN_METHODS]):
        return _unknown_method(unknown[-1].decode("ascii"))
    if isinstance(error, httptools.HttpParserCallbackError):  # it has no reason of its own
        reason = "the request's target is not a valid path"
    if "-" not in reason.split(" ", 1)[0]:  # a header's name keeps its capital
        reason = reason[:1].lower() + reason[1:]
    return Refusal(
        ConnectionEnd.MALFORMED,
        "malformed-request",
        HTTPStatus.BAD_REQUEST,
        "The request is not valid HTTP",
        f"the request is not valid HTTP/1.1 (RFC 9112): {reason}",
    )
