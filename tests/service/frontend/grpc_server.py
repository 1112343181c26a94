"""A real gRPC front-end on a free port: real server, real channel, the real engine and wire; the device is a fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from convmlp.v1.vision_pb2_grpc import VisionStub
from service.frontend.core.frontend import FrontEnd, open_front_end
from service.frontend.grpc_main import create_rpc
from service.settings import Settings
from tests.fakes import FakeWorker, fake_worker

if TYPE_CHECKING:
    from convmlp.v1.vision_pb2_grpc import VisionAsyncStub

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Rpc:
    """A running front-end, and a client for it."""

    stub: VisionAsyncStub
    front_end: FrontEnd
    port: int

    def count(self, metric: str, **labels: str) -> float:
        return self.front_end.registry.get_sample_value(metric, labels) or 0.0

    def outcomes(self, task: str, outcome: str, model: str | None = None) -> float:
        """How many requests of a task ended so; by default those of its fake model."""
        model = f"fake_{task}" if model is None else model
        labels = {"transport": "grpc", "task": task, "model": model, "outcome": outcome}
        return self.count("convmlp_requests_total", **labels)

    @property
    def in_hand(self) -> float:
        return self.count("convmlp_in_flight_requests")


@dataclass(frozen=True)
class RpcAtWork(Rpc):
    worker: FakeWorker

    @property
    def waiting(self) -> float:
        """Images of the fake classifier that wait for the device."""
        return self.worker.registry.get_sample_value("convmlp_queue_depth", {"model": "fake_classify"}) or 0.0


@asynccontextmanager
async def open_rpc(
    channel_options: Sequence[tuple[str, Any]] = (),
    **overrides: Any,  # noqa: ANN401
) -> AsyncIterator[RpcAtWork]:
    """A front-end that is ready, and its worker; settings have the given `overrides`."""
    settings = Settings(heartbeat_interval_ms=50, **overrides)
    async with (
        fake_worker(settings) as worker,
        open_rpc_at(worker.address, settings, channel_options) as rpc,
    ):
        await until(lambda: rpc.front_end.engine.readiness().ready)
        try:
            yield RpcAtWork(rpc.stub, rpc.front_end, rpc.port, worker)
        finally:
            worker.runner.gate.set()


@asynccontextmanager
async def open_rpc_at(
    worker_address: str, settings: Settings, channel_options: Sequence[tuple[str, Any]] = ()
) -> AsyncIterator[Rpc]:
    """A front-end of whatever is at a worker's address."""
    settings = settings.with_changes(worker_address=worker_address)
    async with (
        open_front_end(settings) as front_end,
        serving(front_end, settings) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=list(channel_options)) as channel,
    ):
        yield Rpc(stub_of(channel), front_end, port)


@asynccontextmanager
async def serving(front_end: FrontEnd, settings: Settings) -> AsyncIterator[int]:
    """The port of the gRPC server of a front-end."""
    server = create_rpc(front_end.engine, front_end.gate, settings, front_end.metrics).server
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=None)


def stub_of(channel: grpc.aio.Channel) -> VisionAsyncStub:
    stub: VisionAsyncStub = VisionStub(channel)
    return stub


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def refusal(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call was answered")


def rich(error: grpc.aio.AioRpcError) -> Status:
    """The status in `grpc-status-details-bin`, which must agree with the call's own."""
    status: Status | None = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has all that is looked at
    assert status is not None
    return status


def detail(status: Status, kind: type[M]) -> M | None:
    """The detail of a kind, of which there is at most one."""
    found = kind()
    return found if any(packed.Unpack(found) for packed in status.details) else None


def reason(status: Status) -> str:
    info = detail(status, ErrorInfo)
    assert info is not None
    assert info.domain == "convmlp.v1"
    name: str = info.reason
    return name


def field(status: Status) -> str | None:
    violations = detail(status, BadRequest)
    if violations is None:
        return None
    (violation,) = violations.field_violations
    assert violation.description == status.message
    name: str = violation.field
    return name


def retry_s(status: Status) -> float | None:
    info = detail(status, RetryInfo)
    return None if info is None else info.retry_delay.ToMilliseconds() / 1000


def request_id(status: Status) -> str:
    info = detail(status, RequestInfo)
    assert info is not None
    told: str = info.request_id
    return told
