"""uvicorn, with signals left to the process that runs it, and bounds on what a connection may do."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator, Sequence
from functools import partial

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Overloaded, Refusal
from service.frontend.core.request_log import RequestLog
from service.frontend.http.middleware import PROBES, HttpRequest
from service.frontend.http.protocol import CONNECTION, BoundedHttp, HttpService

CANCELLED_ANSWERS_S = 2.0
"""How long requests that were cancelled at the end of the drain may take to send their answers."""
NO_CONNECTION = "this process has as many connections as it may have; keep connections open and use them again"
RETRY_CONNECTION_S = 1.0


async def serve(
    service: HttpService, sockets: Sequence[socket.socket], should_exit: asyncio.Event, drain_timeout_s: float
) -> None:
    """Serve on listening sockets until `should_exit`; then finish the requests in progress, and close the sockets.

    From then on no connection is accepted, idle ones are closed, and answers have `Connection: close`. A request
    that is not finished within `drain_timeout_s` is cancelled and answered 503.
    """
    config = uvicorn.Config(
        service.app,
        interface="asgi3",
        http=partial(BoundedHttp, service),  # type: ignore[arg-type]  # it is called
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, math.ceil(drain_timeout_s)),
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve(list(sockets)))
    exiting = asyncio.create_task(should_exit.wait())
    watching = asyncio.create_task(service.connections.watch(), name="idle-connections")
    try:
        await asyncio.wait({serving, exiting}, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
        if server.server_state.tasks:
            # uvicorn cancelled them and does not wait for their answers.
            await asyncio.wait(server.server_state.tasks, timeout=CANCELLED_ANSWERS_S)
    finally:
        for task in (exiting, serving, watching):
            task.cancel()


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process keeps its own signal handlers: uvicorn would replace that of SIGTERM, and raise it again."""
        yield


class ProbesOnly:
    """ASGI application for connections beyond the limit: probes are answered, everything else is refused.

    Each connection is closed after one answer.
    """

    def __init__(self, app: ASGIApp, request_log: RequestLog) -> None:
        self._app = app
        self._log = request_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[CONNECTION].cycle.keep_alive = False
        if scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        request = HttpRequest(scope, receive, send, self._log)
        with request.record:
            request.count_refused()
            await request.refuse(Overloaded(NO_CONNECTION, RETRY_CONNECTION_S, Refusal.CONNECTIONS))
