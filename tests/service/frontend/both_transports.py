"""The REST and the gRPC front-end side by side, each with its own engine, over one worker."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from service.frontend.core.frontend import FrontEnd, open_front_end
from service.frontend.http.server import serve
from service.frontend.http_main import create_app
from service.settings import Settings
from tests.fakes import FakeWorker, fake_settings, fake_worker
from tests.service.frontend.grpc_server import Rpc, open_rpc_at
from tests.waiting import until


@dataclass(frozen=True)
class Pair:
    """Two running front-ends, and a client for each."""

    http: httpx2.AsyncClient
    rest: FrontEnd
    rpc: Rpc

    @property
    def ready(self) -> bool:
        return self.rest.engine.readiness().ready and self.rpc.front_end.engine.readiness().ready


@dataclass(frozen=True)
class PairAtWork(Pair):
    worker: FakeWorker


@asynccontextmanager
async def open_pair(**overrides: Any) -> AsyncIterator[PairAtWork]:  # noqa: ANN401
    """Front-ends that are ready, and their worker; settings have the given `overrides`."""
    settings = fake_settings(**overrides)
    async with fake_worker(settings) as worker, open_pair_at(worker.address, settings) as pair:
        await until(lambda: pair.ready)
        try:
            yield PairAtWork(pair.http, pair.rest, pair.rpc, worker)
        finally:
            worker.runner.unblocked.set()


@asynccontextmanager
async def open_pair_at(worker_address: str, settings: Settings) -> AsyncIterator[Pair]:
    """Front-ends of whatever is at a worker's address."""
    settings = settings.with_changes(worker_address=worker_address)
    async with (
        open_front_end(settings) as rest,
        serving_http(rest, settings) as url,
        httpx2.AsyncClient(base_url=url, timeout=60) as http,
        open_rpc_at(worker_address, settings) as rpc,
    ):
        yield Pair(http, rest, rpc)


@asynccontextmanager
async def serving_http(front_end: FrontEnd, settings: Settings) -> AsyncIterator[str]:
    """The URL of the REST server of a front-end."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = asyncio.Event()
    service = create_app(front_end.engine, front_end.auth, settings, front_end.metrics, front_end.registry)
    serving = asyncio.create_task(serve(service, [listener], stop, drain_timeout_s=1.0))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
