"""A real service with a fake device, served over REST and gRPC from its own thread; and a uniform client for it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from anyio.from_thread import start_blocking_portal

from convmlp_client import AsyncClient, Client, Outcome
from service.frontend.core.frontend import FrontEnd, open_front_end
from service.frontend.http.server import serve
from service.frontend.http_main import create_app
from service.settings import Settings
from tests.fakes import FakeWorker, fake_settings, fake_worker
from tests.ports import closed_port
from tests.service.frontend.grpc_server import serving
from tests.waiting import PATIENCE_S

TRANSPORTS = ("rest", "grpc")


@dataclass(frozen=True)
class LocalService:
    """A running service, its ports, and control of its device."""

    worker: FakeWorker
    front_end: FrontEnd
    http_port: int
    grpc_port: int

    def url(self, transport: str) -> str:
        return f"http://127.0.0.1:{self.http_port}" if transport == "rest" else f"grpc://127.0.0.1:{self.grpc_port}"

    @property
    def in_flight(self) -> float:
        """Number of images that the service is working on."""
        return self.front_end.registry.get_sample_value("convmlp_in_flight_requests") or 0.0

    def request_count(self, outcome: str) -> float:
        """Number of requests that ended with an outcome."""
        return sum(
            sample.value
            for metric in self.front_end.registry.collect()
            for sample in metric.samples
            if sample.name == "convmlp_requests_total" and sample.labels["outcome"] == outcome
        )

    @contextmanager
    def device_blocked(self) -> Iterator[None]:
        """The device finishes no batch inside this block."""
        self.worker.runner.unblocked.clear()
        try:
            yield
        finally:
            self.worker.runner.unblocked.set()


@contextmanager
def open_service(**overrides: Any) -> Iterator[LocalService]:  # noqa: ANN401
    """A service that is ready. `overrides` replaces settings."""
    with (
        start_blocking_portal(name="service") as portal,
        portal.wrap_async_context_manager(_open(fake_settings(**overrides))) as service,
    ):
        yield service


@asynccontextmanager
async def _open(settings: Settings) -> AsyncIterator[LocalService]:
    async with fake_worker(settings) as worker:
        settings = settings.with_changes(worker_address=worker.address)
        async with open_front_end(settings) as front_end, serving(front_end, settings) as grpc_server:
            listener = socket.create_server(("127.0.0.1", 0))
            stop = asyncio.Event()
            service = create_app(front_end.engine, front_end.auth, settings, front_end.metrics, front_end.registry)
            rest = asyncio.create_task(serve(service, [listener], stop, PATIENCE_S))
            while not front_end.engine.readiness().ready:
                await asyncio.sleep(0.01)
            try:
                yield LocalService(worker, front_end, listener.getsockname()[1], grpc_server.port)
            finally:
                worker.runner.unblocked.set()
                stop.set()
                await rest


class UniformClient:
    """Calls the sync or the async client by the same awaitable methods."""

    def __init__(self, client: Client | AsyncClient) -> None:
        self.client = client

    async def call(self, method: str, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        """The return value of a method of the client."""
        if isinstance(self.client, AsyncClient):
            return await getattr(self.client, method)(*args, **options)
        return await asyncio.to_thread(getattr(self.client, method), *args, **options)

    async def call_many(self, method: str, images: Iterable[Any], **options: Any) -> list[Outcome[Any, Any]]:  # noqa: ANN401
        """All outcomes of a method for many images."""
        outcomes = getattr(self.client, method)(images, **options)
        if isinstance(self.client, AsyncClient):
            return [outcome async for outcome in outcomes]
        return await asyncio.to_thread(list, outcomes)

    async def close(self) -> None:
        if isinstance(self.client, AsyncClient):
            await self.client.aclose()
        else:
            await asyncio.to_thread(self.client.close)


@dataclass(frozen=True)
class Variant:
    """A combination of client and transport."""

    kind: type[Client] | type[AsyncClient]
    transport: str

    def open(self, service: LocalService, **options: Any) -> AbstractAsyncContextManager[UniformClient]:  # noqa: ANN401
        return self._open(service.url(self.transport), **options)

    @asynccontextmanager
    async def open_without_service(self, **options: Any) -> AsyncIterator[UniformClient]:  # noqa: ANN401
        """At a port where connections are refused."""
        scheme = "http" if self.transport == "rest" else "grpc"
        with closed_port() as port:
            async with self._open(f"{scheme}://127.0.0.1:{port}", **options) as client:
                yield client

    @asynccontextmanager
    async def _open(self, url: str, **options: Any) -> AsyncIterator[UniformClient]:  # noqa: ANN401
        client = UniformClient(self.kind(url, **options))
        try:
            yield client
        finally:
            await client.close()


VARIANTS = {
    f"{kind.__name__}-{transport}": Variant(kind, transport)
    for kind in (Client, AsyncClient)
    for transport in TRANSPORTS
}


def wait_until(condition: Callable[[], bool]) -> None:
    """As `until`, for tests without an event loop; AssertionError after `PATIENCE_S`."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"the condition did not hold within {PATIENCE_S} s"
        time.sleep(0.005)
