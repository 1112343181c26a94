"""One HTTP connection: uvicorn's protocol class, with bounds on what a connection may do.

It uses uvicorn's private state; docs/decisions/0008-uvicorn.md has why.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import httptools
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import ConnectionEnd
from service.frontend.core.renewal import Reloaded
from service.frontend.http import connections
from service.frontend.http.connections import MAX_HEAD_BYTES, Connections, Disconnect, Refusal, malformed
from service.frontend.http.handshake import start_tls

READ_AHEAD_BYTES = 256 * 2**10
"""Of a body that are kept before its endpoint reads them: what one system call brings."""
SMALL_BYTES = 1024
"""What arrives in no more bytes is parsed at once: most heads, and few enough requests if they are pipelined."""
PIECE_BYTES = 8 * 2**10
"""A body of unknown length is parsed in pieces of this size, because requests may follow it."""
MAX_BODY_PARTS = 256
"""Chunks of a body, after which other connections are served: each costs time, however small it is."""
RESERVE_HEAD_S = 2.0
"""Time for the head of a request on a connection beyond the limit."""
OK_LINE = b"HTTP/1.1 200 OK"
CLOSE = (b"connection", b"close")
LINGER_S = 2.0
"""How long what arrives behind a refusal is read and dropped."""
FIRST_LOOK_S, LAST_LOOK_S = 0.05, 1.0
"""When to look whether a caller that sends no more is still there: first, and at most so far apart."""
CONNECTION = "convmlp.connection"
"""Key of the connection in a request's scope."""


@dataclass(frozen=True, slots=True)
class HttpService:
    """What a server serves: `reserve` answers on connections beyond the limit of `connections`.

    With `tls` callers use TLS alone.
    """

    app: ASGIApp
    reserve: ASGIApp
    connections: Connections
    tls: Reloaded[ssl.SSLContext] | None = None


class BoundedHttp(HttpToolsProtocol):
    """One connection. What its caller sends, or does not read, costs no other caller, which uvicorn does not ensure.

    Requests find it in their scope. Each connection answers one request at a time. Reading stops while a request waits
    behind an unanswered one: at most one more head has then been parsed, or `SMALL_BYTES` of heads, and what arrived
    behind it is kept as it is.
    """

    head_timeout_s: ClassVar[float] = 20.0
    """From the head's first byte, or from the connection's beginning, to the head's end."""
    unread_answer_s: ClassVar[float] = 30.0
    """The kernel ends a connection whose peer takes no byte of its answers for so long."""

    def __init__(self, service: HttpService, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  (uvicorn's)
        super().__init__(*args, **kwargs)
        self._service = service
        self._all = service.connections
        self._handshake: asyncio.Task[None] | None = None
        self._end_reason = ConnectionEnd.HANDSHAKE
        self._accepted_s = 0.0
        self._idle_since_s: float | None = None
        """When it was answered last, on the event loop's clock; None while a request arrives or is answered."""
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._bytes_without_progress = 0
        self._body_parts = 0
        self._body_left = 0  # bytes of the body that have not arrived; 0 for a body in chunks
        self._blocked = False
        """Nothing is read, because a request or a refusal waits behind an unanswered request."""
        self._unparsed = b""
        self._refusing = False
        """A refusal waits behind unanswered requests, or was sent."""
        self.disconnect = Disconnect()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._accepted_s = self.loop.time()
        accepted = transport.get_extra_info("socket")
        # A long answer is several writes. asyncio does this for listeners that it made itself.
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.unread_answer_s * 1000))
        if not self._all.add(self):
            self.app = self._service.reserve
        if self._service.tls is None:
            self._begin(transport)
        else:
            transport.pause_reading()
            self._handshake = self.loop.create_task(self._secure(transport, self._service.tls.get()))

    async def _secure(self, transport: asyncio.Transport, context: ssl.SSLContext) -> None:
        # A listener with TLS would call this class only after the handshake, and count no connection before.
        try:
            secure = await start_tls(transport, self, context, self._take_unparsed)
        except (OSError, asyncio.CancelledError):
            self._all.ended(self._end_reason)
            self._all.remove(self)
            transport.abort()
            return
        finally:
            self._handshake = None
        if secure is not None:  # else it is closed already
            self._begin(secure)
            if request := self._take_unparsed():
                self.data_received(request)

    def _begin(self, transport: asyncio.Transport) -> None:
        """Requests may come."""
        super().connection_made(transport)
        self._start_head_timer(RESERVE_HEAD_S if self.app is self._service.reserve else self.head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        self._take_unparsed()
        self._all.remove(self)
        if isinstance(exc, TimeoutError):
            self._all.ended(ConnectionEnd.UNREAD)
        super().connection_lost(exc)
        self.disconnect.notify()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, piece by piece, so that a request is found that waits behind another one."""
        if self._blocked or self._refusing or self._handshake is not None:
            self._keep(data)
            return
        start, end, self._body_parts = 0, len(data), 0
        while start < end:
            stop, cycle = end, self.cycle
            if cycle is not None and not (cycle.keep_alive or cycle.more_body):  # this is behind the last request
                cycle.transport = SimpleNamespace(  # type: ignore[assignment]
                    write=self.transport.write, is_closing=self.transport.is_closing, close=self._close_later
                )
                return
            if end - start > SMALL_BYTES:
                if not self._in_head and self.cycle.more_body:
                    stop = start + (self._body_left or PIECE_BYTES)
                else:  # up to the end of the next head: then the length of its body is known
                    largest = start + MAX_HEAD_BYTES - self._bytes_without_progress
                    head_end = data.find(b"\r\n\r\n", start, largest)
                    stop = head_end + 4 if head_end >= 0 else largest
            piece = data if start == 0 and stop >= end else memoryview(data)[start:stop]
            start += len(piece)
            self._bytes_without_progress += len(piece)
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                self._ignore_upgrade(bytes(piece[upgrade.args[0] :]) + data[start:])
                return
            except httptools.HttpParserError as error:
                self._refuse(malformed(error, piece))
                return
            if self.pipeline:
                self._block()
                self._keep(data[start:])
                return
            if self._body_parts > MAX_BODY_PARTS and start < end and self._all.hold(end - start):
                self._unparsed = data[start:]
                self._block()
                self.loop.call_soon(self._unblock)
                return
            if self._bytes_without_progress >= MAX_HEAD_BYTES:
                self._refuse(connections.HEAD_TOO_LARGE)
                return
        if self._in_head and self._head_timer is None:  # most heads come in one piece and need none
            self._start_head_timer(self.head_timeout_s)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[CONNECTION] = self  # type: ignore[literal-required]
        if self._head_timer is not None:
            self._stop_head_timer()
        self._in_head = True
        self._body_left = 0
        self._idle_since_s = None

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._bytes_without_progress = 0
        if self._head_timer is not None:
            self._stop_head_timer()
        version = self.parser.get_http_version()
        self._body_left = connections.check_head(self.headers, version)
        self.expect_100_continue &= version != "1.0"  # RFC 9110, section 10.1.1
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self.headers = []  # uvicorn would add the trailers behind a body to the headers of the request

    def on_body(self, body: bytes) -> None:
        """Pass on a body that arrives in one piece, as most do.

        uvicorn would copy it twice, and stop reading the socket after 64 KB of it.
        """
        cycle = self.cycle
        self._bytes_without_progress = 0
        self._body_parts += 1
        if self._body_left:
            self._body_left -= len(body)
        if cycle.body or cycle.response_complete or len(body) > READ_AHEAD_BYTES:
            so_far: Any = cycle.body
            if type(so_far) is bytes:  # many small pieces would each copy all before them
                cycle.body = bytearray(so_far)
            super().on_body(body)
            return
        cycle.body = body  # type: ignore[assignment]  # uvicorn only adds to it, and `bytes` of it is itself
        cycle.message_event.set()

    def take_body(self) -> bytes | None:
        """The whole body of the request, as ASGI's `receive` would return it; None where it has not arrived."""
        cycle = self.cycle
        if cycle.more_body or cycle.disconnected or cycle.response_complete:
            return None
        self.flow.resume_reading()
        body, cycle.body = cycle.body, bytearray()
        return bytes(body)

    def write_answer(self, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
        """Write a whole answer 200 in one system call, as ASGI's `send` would in two, but without a check of `headers`.

        False: the connection has ended, or is slow to read, which `send` waits for.
        """
        cycle = self.cycle
        if cycle.disconnected or self.flow.write_paused:
            return False
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        head = (*cycle.default_headers, *headers) if cycle.keep_alive else (*cycle.default_headers, *headers, CLOSE)
        cycle.transport.write(b"\r\n".join((OK_LINE, *map(b": ".join, head), b"", body)))
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
        return True

    def on_response_complete(self) -> None:
        """As uvicorn's, but without a timer for each answer: see `Connections.watch`."""
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._idle_since_s = self.loop.time()
        if self._blocked:
            self._unblock()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The caller sends no more. It may still read: then it gets its answer.

        Returns whether the connection stays open for that.
        """
        cycle = self.cycle
        if self._refusing or self._in_head or cycle.more_body or cycle.response_complete or self.scheme == "https":
            return False
        cycle.keep_alive = False
        # A caller that closed its connection sends the same as one that closed its sending half, but it resets the
        # connection as soon as it receives something. Callers ignore this interim response (RFC 9110, section 15.2).
        if self.scope["http_version"] == "1.1" and not cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._watch_half_closed(FIRST_LOOK_S)
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._all.unread(self, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._all.read(self)

    def waiting_since_s(self) -> float | None:
        """When it began to wait for a request, on the event loop's clock; None while it does not wait."""
        if self._handshake is not None:
            return self._accepted_s
        if self._head_timer is not None:
            return self._head_timer.when() - self.head_timeout_s
        return self._idle_since_s

    def close_idle(self, since_s: float) -> None:
        """Close it if it waits for another request since then, on the event loop's clock, or longer."""
        if self._idle_since_s is not None and self._idle_since_s <= since_s:
            self.transport.close()

    def end(self, reason: ConnectionEnd) -> None:
        """Close it now, and free what it holds."""
        if self._handshake is not None:
            self._end_reason = reason
            self._handshake.cancel()
            return
        self._all.ended(reason)
        self.transport.abort()

    def _should_upgrade(self) -> bool:
        return True  # no request is begun before `_ignore_upgrade` has parsed it

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Parse the request again without its offer of another protocol (RFC 9110, section 7.8).

        The parser takes such a request for the last one of this protocol, without its body. `rest` is what arrived
        behind the head.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode("ascii")
        if method == b"CONNECT":
            self._refuse(connections.CONNECT)
            return
        headers = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(headers))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._in_head = True  # the request has not begun yet, though its headers are complete
        self.data_received(head + rest)

    def _block(self) -> None:
        """Read no more until `_unblock`."""
        self._blocked = True
        self._stop_head_timer()
        self.transport.pause_reading()
        self.flow.read_paused = False  # else uvicorn would read on after the first answer

    def _unblock(self) -> None:
        """No request waits any more, or other connections were served: go on."""
        if not self._blocked or self.pipeline or self._refusing or self.transport.is_closing():
            return
        self._blocked = False
        if unparsed := self._take_unparsed():
            self.data_received(unparsed)
        if self._blocked or self._refusing:
            return
        if len(self.cycle.body) > READ_AHEAD_BYTES:
            self.flow.read_paused = True  # the endpoint resumes it when it reads
        else:
            self.transport.resume_reading()

    def _keep(self, data: bytes) -> None:
        """Keep what cannot be parsed yet; drop what will not be parsed at all."""
        if self._refusing or not data:
            return
        if self._all.hold(len(data)):
            self._unparsed += data
        elif self._handshake is not None:
            self.end(ConnectionEnd.HANDSHAKE)
        else:
            self._take_unparsed()
            self._refuse(connections.TOO_MUCH_PIPELINED)

    def _take_unparsed(self) -> bytes:
        unparsed, self._unparsed = self._unparsed, b""
        self._all.release(len(unparsed))
        return unparsed

    def _refuse(self, refusal: Refusal) -> None:
        """Refuse what the caller sent, behind the answers of the requests before it, and close the connection."""
        if self._refusing or self.transport.is_closing():
            return
        self._refusing = True
        self._all.ended(refusal.end)
        cycle = self.cycle
        broken = not self._in_head and cycle is not None and cycle.more_body
        if broken and self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()  # it has not begun
            cycle.response_complete = True
        elif cycle is None or cycle.response_complete or broken:
            self._send_refusal(refusal)
            return
        self.pipeline.appendleft((_QueuedAction(partial(self._send_refusal, refusal)), self.app))  # type: ignore[arg-type]
        if not self._blocked:
            self._block()

    def _send_refusal(self, refusal: Refusal) -> None:
        self._stop_head_timer()
        cycle, transport = self.cycle, self.transport
        if cycle is not None and not cycle.response_complete:  # the request is broken itself
            cycle.disconnected = True
            cycle.message_event.set()
            self.disconnect.notify()
            if cycle.response_started:
                transport.close()
                return
        transport.write(refusal.response())
        self._close_later()

    def _close_later(self) -> None:
        """Close for sending. What still arrives is dropped for a while: a reset would lose the answers."""
        self._refusing, transport = True, self.transport
        if is_plain := transport.can_write_eof():  # TLS has no half-closed connections
            transport.write_eof()
        transport.resume_reading()
        self._linger_timer = self.loop.call_later(LINGER_S, transport.abort if is_plain else transport.close)

    def _watch_half_closed(self, after_s: float) -> None:
        """End the work for a caller that has closed its connection, and not its sending half alone."""
        transport = self.transport
        if transport.is_closing():
            return
        if transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            transport.abort()
            return
        self._linger_timer = self.loop.call_later(after_s, self._watch_half_closed, min(2 * after_s, LAST_LOOK_S))

    def _start_head_timer(self, after_s: float) -> None:
        self._head_timer = self.loop.call_later(after_s, self._refuse, connections.HEAD_TIMEOUT)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _QueuedAction:
    """An entry of uvicorn's queue of pipelined requests: an action that runs once those before it are answered."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    async def run_asgi(self, _: ASGIApp) -> None:
        self._action()
