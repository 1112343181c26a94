"""uvicorn, with signals left to the process that runs it, and bounds on what a connection may do."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.frontend.http.disconnect import Disconnect, mark_body_received

MAX_HEAD_BYTES = 64 * 2**10
"""Request line and headers together."""
KEEP_ALIVE_S = 75
"""Longer than the idle time-out of common load balancers, so that it is they who close."""
CANCELLED_ANSWERS_S = 2.0
READ_AHEAD_BYTES = 256 * 2**10
"""Of a body are kept until its request takes them: what one call to the system brings."""


async def serve(
    app: ASGIApp, sockets: Sequence[socket.socket], should_exit: asyncio.Event, drain_timeout_s: float
) -> None:
    """Serve on listening sockets until `should_exit`; then finish the requests in hand, and close the sockets.

    From then on no connection is accepted, idle ones are closed, and answers say `Connection: close`. A request
    that is not finished within `drain_timeout_s` is cancelled and answered 503.
    """
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http=BoundedHttp,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, math.ceil(drain_timeout_s)),
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve(list(sockets)))
    leaving = asyncio.create_task(should_exit.wait())
    try:
        await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        if server.server_state.tasks:
            # uvicorn cancelled them and does not wait for what they still have to say.
            await asyncio.wait(server.server_state.tasks, timeout=CANCELLED_ANSWERS_S)
    finally:
        leaving.cancel()
        serving.cancel()


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process's own handlers stay: uvicorn's would take SIGTERM away from them, and raise it again."""
        yield


class OneWrite(asyncio.Transport):
    """A transport on which an answer's head waits for the first of its body: one call to the system instead of two,
    and one that wakes the caller."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._head = b""

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif isinstance(data, bytes) and data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send a head that has no body."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401  (asyncio's own)
        return self._transport.get_extra_info(name, default)


class BoundedHttp(HttpToolsProtocol):
    """Refuses a request's head that is too long or too slow; neither parser nor uvicorn would. Requests get to know
    of their connection's end by a `Disconnect`."""

    head_timeout_s: ClassVar[float] = 20.0
    """From the head's first byte, or from the connection's beginning, to its end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  (uvicorn's own, passed on)
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._hangup = Disconnect()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = self._writing = OneWrite(transport)
        # A long answer is several writes. asyncio sees to this for listeners that it made itself.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self._hangup()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._hangup.put_into(cast(dict[str, Any], self.scope))
        self._stop_timer()
        self._in_head = True
        self._head_bytes = 0

    def on_body(self, body: bytes) -> None:
        """uvicorn copies a body twice and stops reading the socket after 64 KB of it; most come in one piece."""
        cycle = self.cycle
        if cycle.body or cycle.response_complete or len(body) > READ_AHEAD_BYTES:
            super().on_body(body)
            return
        cycle.body = body  # type: ignore[assignment]  # it is only added to, and `bytes` of it is itself
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        mark_body_received(cast(dict[str, Any], self.scope))

    def on_response_complete(self) -> None:
        self._writing.flush()
        super().on_response_complete()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse_head(b"431 Request Header Fields Too Large")
            elif self._head_timer is None:  # most heads come in one piece and need none
                self._start_timer()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._refuse_head, b"408 Request Timeout")

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse_head(self, status: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % status)
            self.transport.close()
