"""A real service behind both transports, in a thread of its own; only the device is a fake. And clients to ask it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from anyio.from_thread import start_blocking_portal

from convmlp_client import AsyncClient, Client, Outcome
from service.frontend.core.frontend import FrontEnd, open_front_end
from service.frontend.http.server import serve
from service.frontend.http_main import create_app
from service.settings import Settings
from tests.fakes import FakeWorker, fake_worker
from tests.service.frontend.grpc_server import serving

TRANSPORTS = ("rest", "grpc")


@dataclass(frozen=True)
class Service:
    worker: FakeWorker
    front_end: FrontEnd
    http_port: int
    grpc_port: int

    def url(self, transport: str) -> str:
        return f"http://127.0.0.1:{self.http_port}" if transport == "rest" else f"grpc://127.0.0.1:{self.grpc_port}"

    @property
    def in_hand(self) -> float:
        """Images that the service is at."""
        return self.front_end.registry.get_sample_value("convmlp_in_flight_requests") or 0.0

    def answered(self, outcome: str) -> float:
        """How many requests ended with an outcome."""
        return sum(
            sample.value
            for metric in self.front_end.registry.collect()
            for sample in metric.samples
            if sample.name == "convmlp_requests_total" and sample.labels["outcome"] == outcome
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """No picture leaves the device within."""
        self.worker.runner.gate.clear()
        try:
            yield
        finally:
            self.worker.runner.gate.set()


@contextmanager
def open_service(**overrides: Any) -> Iterator[Service]:  # noqa: ANN401
    """A service that is ready; settings have the given `overrides`."""
    with (
        start_blocking_portal(name="service") as portal,
        portal.wrap_async_context_manager(_open(Settings(heartbeat_interval_ms=50, **overrides))) as service,
    ):
        yield service


@asynccontextmanager
async def _open(settings: Settings) -> AsyncIterator[Service]:
    async with fake_worker(settings) as worker:
        settings = settings.with_changes(worker_address=worker.address)
        async with open_front_end(settings) as front_end, serving(front_end, settings) as grpc_port:
            listener = socket.create_server(("127.0.0.1", 0))
            stop = asyncio.Event()
            app = create_app(front_end.engine, front_end.gate, settings, front_end.metrics, lambda: (b"", ""))
            rest = asyncio.create_task(serve(app, [listener], stop, 5.0))
            while not front_end.engine.readiness().ready:
                await asyncio.sleep(0.01)
            try:
                yield Service(worker, front_end, listener.getsockname()[1], grpc_port)
            finally:
                worker.runner.gate.set()
                stop.set()
                await rest


class Asker:
    """Either client, asked without blocking the test's event loop."""

    def __init__(self, client: Client | AsyncClient) -> None:
        self.client = client

    async def __call__(self, method: str, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        """What a method of the client gives."""
        if isinstance(self.client, AsyncClient):
            return await getattr(self.client, method)(*args, **options)
        return await asyncio.to_thread(getattr(self.client, method), *args, **options)

    async def many(self, method: str, images: Iterable[Any], **options: Any) -> list[Outcome[Any, Any]]:  # noqa: ANN401
        """All that a method for many images gives."""
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
class Way:
    """One of the four ways to ask."""

    kind: type[Client] | type[AsyncClient]
    transport: str

    @asynccontextmanager
    async def open(self, service: Service, **options: Any) -> AsyncIterator[Asker]:  # noqa: ANN401
        asker = Asker(self.kind(service.url(self.transport), **options))
        try:
            yield asker
        finally:
            await asker.close()


WAYS = {
    f"{kind.__name__}-{transport}": Way(kind, transport) for kind in (Client, AsyncClient) for transport in TRANSPORTS
}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def wait_until(condition: Callable[[], bool]) -> None:
    """As `until`, for tests without an event loop."""
    end_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end_s, "it never happened"
        time.sleep(0.005)
