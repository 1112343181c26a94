"""uvicorn, with signals left to the process that runs it, and bounds on what a connection may do."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator, Sequence
from functools import partial

import uvicorn

from service.frontend.http.protocol import BoundedHttp, HttpService

KEEP_ALIVE_S = 75
"""Longer than the idle timeout of common load balancers, so that they are the ones to close a connection."""
CANCELLED_ANSWERS_S = 2.0
"""How long requests that were cancelled at the end of the drain may take to send their answers."""


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
