"""uvicorn, with signals left to the process that runs it, and bounds on what a connection may do.

`Disconnect` and `BoundedHttp.on_body` use uvicorn's private state; docs/decisions/0008-uvicorn.md has what they save.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, ClassVar

import uvicorn
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 2**10
"""Request line and headers together."""
KEEP_ALIVE_S = 75
"""Longer than the idle timeout of common load balancers, so that they are the ones to close a connection."""
CANCELLED_ANSWERS_S = 2.0
"""How long requests that were cancelled at the end of the drain may take to send their answers."""
READ_AHEAD_BYTES = 256 * 2**10
"""Of a body that are kept before its endpoint reads them: what one system call brings."""
CONNECTION = "convmlp.connection"
"""Key of the connection in a request's scope."""


async def serve(
    app: ASGIApp, sockets: Sequence[socket.socket], should_exit: asyncio.Event, drain_timeout_s: float
) -> None:
    """Serve on listening sockets until `should_exit`; then finish the requests in progress, and close the sockets.

    From then on no connection is accepted, idle ones are closed, and answers have `Connection: close`. A request
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
    exiting = asyncio.create_task(should_exit.wait())
    try:
        await asyncio.wait({serving, exiting}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        if server.server_state.tasks:
            # uvicorn cancelled them and does not wait for their answers.
            await asyncio.wait(server.server_state.tasks, timeout=CANCELLED_ANSWERS_S)
    finally:
        exiting.cancel()
        serving.cancel()


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process keeps its own signal handlers: uvicorn would replace that of SIGTERM, and raise it again."""
        yield


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


class BoundedHttp(HttpToolsProtocol):
    """One connection. Refuses a request's head that is too long or too slow, which uvicorn does not.

    Requests find it in their scope.
    """

    head_timeout_s: ClassVar[float] = 20.0
    """From the head's first byte, or from the connection's beginning, to the head's end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  (uvicorn's)
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self.disconnect = Disconnect()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # A long answer is several writes. asyncio does this for listeners that it made itself.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self.disconnect.notify()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[CONNECTION] = self  # type: ignore[literal-required]
        if self._head_timer is not None:
            self._stop_timer()
        self._in_head = True
        self._head_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Pass on a body that arrives in one piece, as most do.

        uvicorn would copy it twice, and stop reading the socket after 64 KB of it.
        """
        cycle = self.cycle
        if cycle.body or cycle.response_complete or len(body) > READ_AHEAD_BYTES:
            super().on_body(body)
            return
        cycle.body = body  # type: ignore[assignment]  # uvicorn only adds to it, and `bytes` of it is itself
        cycle.message_event.set()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
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
