"""The gRPC front-end as its process puts it together, on a free port; only the device is a fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from prometheus_client import CollectorRegistry

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1.vision_pb2_grpc import VisionStub
from service.frontend.core.engine import Engine
from service.frontend.core.frontend import open_front_end
from service.frontend.grpc.server import KeepAlive, listen_at, serve_until
from service.frontend.grpc_main import create_rpc
from service.process import hold_port
from service.settings import Settings
from tests.fakes import FakeWorker, fake_worker

if TYPE_CHECKING:
    from convmlp.v1.vision_pb2_grpc import VisionAsyncStub


@dataclass(frozen=True)
class WholeRpc:
    """A running front-end, a channel to it, and the worker behind it."""

    address: str
    channel: grpc.aio.Channel
    engine: Engine
    registry: CollectorRegistry
    worker: FakeWorker
    stop: asyncio.Event
    serving: asyncio.Task[None]

    @property
    def vision(self) -> VisionAsyncStub:
        stub: VisionAsyncStub = VisionStub(self.channel)
        return stub

    @property
    def in_hand(self) -> float:
        """Images that the front-end has in hand."""
        return self.registry.get_sample_value("convmlp_in_flight_requests") or 0.0

    @property
    def health(self) -> Any:  # noqa: ANN401
        return health_of(self.channel)


def health_of(channel: grpc.aio.Channel) -> Any:  # noqa: ANN401  (its type stubs know no asyncio)
    return HealthStub(channel)


def reflection_of(channel: grpc.aio.Channel) -> Any:  # noqa: ANN401  (likewise)
    stub: Any = ServerReflectionStub
    return stub(channel).ServerReflectionInfo


async def next_reply(stream: grpc.aio.StreamStreamCall[Any, Any]) -> pb.ClassifyResponse:
    """The next reply of a stream that has not ended."""
    reply = await stream.read()
    assert isinstance(reply, pb.ClassifyResponse)
    return reply


@asynccontextmanager
async def open_whole(
    *,
    drain_timeout_s: float = 5.0,
    keep_alive: KeepAlive | None = None,
    credentials: grpc.ServerCredentials | None = None,
    worker_address: str = "",
    **overrides: Any,  # noqa: ANN401
) -> AsyncIterator[WholeRpc]:
    """A front-end whose settings have the given `overrides`, ready unless it is to ask a worker elsewhere."""
    base = Settings(heartbeat_interval_ms=50, **overrides)
    async with fake_worker(base) as worker:
        settings = base.with_changes(worker_address=worker_address or worker.address)
        async with open_front_end(settings) as front_end:
            rpc = create_rpc(front_end.engine, front_end.gate, settings, front_end.metrics, keep_alive)
            stop = asyncio.Event()
            with hold_port("127.0.0.1", 0) as held:
                address = listen_at(rpc.server, held, credentials)
                await rpc.server.start()
                serving = asyncio.create_task(serve_until(stop, rpc.server, rpc.health, rpc.drain, drain_timeout_s))
                try:
                    async with grpc.aio.insecure_channel(address) as channel:
                        while not worker_address and not front_end.engine.readiness().ready:
                            await asyncio.sleep(0.01)
                        yield WholeRpc(address, channel, front_end.engine, front_end.registry, worker, stop, serving)
                finally:
                    worker.runner.gate.set()
                    stop.set()
                    await serving
