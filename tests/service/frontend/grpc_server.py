"""A real gRPC front-end on a free port, a channel to it, and what its statuses carry; only the device is a fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from grpc_status import rpc_status

from convmlp.v1.vision_pb2_grpc import VisionStub
from model.bundle import Bundle
from service.frontend.core.frontend import FrontEnd, open_front_end
from service.frontend.core.tls import CertificateFiles
from service.frontend.grpc.server import KeepAlive, listen_at, serve_until
from service.frontend.grpc_main import create_rpc
from service.process import hold_port
from service.settings import Settings
from tests.fakes import FakeWorker, fake_settings, fake_worker
from tests.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from convmlp.v1.vision_pb2_grpc import VisionAsyncStub

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class RunningServer:
    """The server of a front-end. `stop` drains it; `ended` is done once it has stopped."""

    address: str
    stop: asyncio.Event
    ended: asyncio.Task[None]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


@dataclass(frozen=True)
class Rpc:
    """A running front-end, and a channel to it."""

    front_end: FrontEnd
    server: RunningServer
    channel: grpc.aio.Channel

    @property
    def address(self) -> str:
        return self.server.address

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def stub(self) -> VisionAsyncStub:
        return stub_of(self.channel)

    @property
    def health(self) -> Any:  # noqa: ANN401
        return health_of(self.channel)

    def count(self, metric: str, **labels: str) -> float:
        return self.front_end.registry.get_sample_value(metric, labels) or 0.0

    def outcomes(self, task: str, outcome: str, model: str | None = None) -> float:
        """The number of a task's requests with this outcome; by default those of its fake model."""
        model = f"fake_{task}" if model is None else model
        labels = {"transport": "grpc", "task": task, "model": model, "outcome": outcome}
        return self.count("convmlp_requests_total", **labels)

    @property
    def in_flight(self) -> float:
        """Images in the front-end."""
        return self.count("convmlp_in_flight_requests")


@dataclass(frozen=True)
class RpcWithWorker(Rpc):
    worker: FakeWorker

    @property
    def waiting(self) -> float:
        """Images of the fake classifier that wait for the device."""
        return self.worker.registry.get_sample_value("convmlp_queue_depth", {"model": "fake_classify"}) or 0.0


@asynccontextmanager
async def open_rpc(
    channel_options: Sequence[tuple[str, Any]] = (),
    *,
    keep_alive: KeepAlive | None = None,
    files: CertificateFiles | None = None,
    drain_timeout_s: float = PATIENCE_S,
    more: Sequence[Bundle] = (),
    **overrides: Any,  # noqa: ANN401
) -> AsyncIterator[RpcWithWorker]:
    """A front-end that is ready, and its worker, which serves `more`, too; `overrides` are settings."""
    settings = fake_settings(**overrides)
    async with fake_worker(settings, more=more) as worker:
        settings = settings.with_changes(worker_address=worker.address)
        async with (
            open_front_end(settings) as front_end,
            serving(front_end, settings, keep_alive, files, drain_timeout_s) as server,
            grpc.aio.insecure_channel(server.address, options=list(channel_options)) as channel,
        ):
            await until(lambda: front_end.engine.readiness().ready)
            try:
                yield RpcWithWorker(front_end, server, channel, worker)
            finally:
                worker.runner.unblocked.set()


@asynccontextmanager
async def open_rpc_at(worker_address: str, settings: Settings) -> AsyncIterator[Rpc]:
    """A front-end of the worker at an address, if there is one."""
    settings = settings.with_changes(worker_address=worker_address)
    async with (
        open_front_end(settings) as front_end,
        serving(front_end, settings) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield Rpc(front_end, server, channel)


@asynccontextmanager
async def serving(
    front_end: FrontEnd,
    settings: Settings,
    keep_alive: KeepAlive | None = None,
    files: CertificateFiles | None = None,
    drain_timeout_s: float = PATIENCE_S,
) -> AsyncIterator[RunningServer]:
    """The gRPC server of a front-end."""
    rpc = create_rpc(front_end.engine, front_end.auth, settings, front_end.metrics, keep_alive)
    stop = asyncio.Event()
    with hold_port(settings.host, 0) as held:
        address = listen_at(rpc.server, held, files)
        await rpc.server.start()
        ended = asyncio.create_task(serve_until(stop, rpc.server, rpc.health, rpc.drain, drain_timeout_s))
        try:
            yield RunningServer(address, stop, ended)
        finally:
            stop.set()
            await ended


def stub_of(channel: grpc.aio.Channel) -> VisionAsyncStub:
    stub: VisionAsyncStub = VisionStub(channel)
    return stub


def health_of(channel: grpc.aio.Channel) -> Any:  # noqa: ANN401  (its type stubs have no asyncio)
    return HealthStub(channel)


def reflection_of(channel: grpc.aio.Channel, version: str = "v1") -> Any:  # noqa: ANN401  (likewise)
    """The method that both versions have, with the same messages on the wire."""
    return channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )


async def refusal(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """The error that a call ends with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call succeeded")


def rich(error: grpc.aio.AioRpcError) -> Status:
    """The status in `grpc-status-details-bin`, which must agree with the call's own."""
    status: Status | None = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has the members that are read
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
    name: str = info.request_id
    return name
