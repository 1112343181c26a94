"""Both front-ends as processes of their own, a worker with a fake device, and a collector that receives all spans."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import httpx2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from service.observability.tracing import open_tracing
from service.settings import Settings
from tests.e2e.convmlp_process import RunningService, started
from tests.fakes import FakeWorker, fake_worker
from tests.service.frontend.grpc_server import health_of
from tests.service.observability.collector import Collector, collecting

# Spans are sent every 20 ms, by this process and by those that it starts.
os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "20"

IMAGE = ("predict", "decode", "queue", "infer", "post")
"""The spans of one image."""
POISON = 66
"""The grey level of a picture whose batch fails on the device."""
BATCH_S = 0.002
"""The time of any batch on the device."""


@dataclass(frozen=True)
class Traced:
    """`rest` and `rpc` are processes, `http` and `channel` clients of theirs."""

    collector: Collector
    http: httpx2.AsyncClient
    channel: grpc.aio.Channel
    rest: RunningService
    rpc: RunningService
    worker: FakeWorker


@dataclass(frozen=True)
class CallerTrace:
    """A caller's own trace, and the span that sends the request."""

    trace: str
    span: str
    sampled: bool = True

    @property
    def headers(self) -> dict[str, str]:
        return {"traceparent": f"00-{self.trace}-{self.span}-{'01' if self.sampled else '00'}"}

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(self.headers.items())


def caller_trace(*, sampled: bool = True) -> CallerTrace:
    return CallerTrace(secrets.token_hex(16), secrets.token_hex(8), sampled)


@asynccontextmanager
async def traced_service(*flags: str) -> AsyncIterator[Traced]:
    """Start all parts, the front-ends with `flags`, and wait until they are ready. The worker always checks itself."""
    with collecting() as collector:
        settings = Settings(heartbeat_interval_ms=50, otlp_endpoint=collector.url, self_check_interval_ms=20)
        with open_tracing(settings, "worker", follows=True) as tracing:
            async with fake_worker(settings, tracing=tracing) as worker:
                worker.runner.poison = POISON
                # A batch takes equally long for any number of images: the worker measures that large batches are best.
                worker.runner.takes = lambda *_: time.sleep(BATCH_S)
                async with (
                    front_end("rest", worker.address, collector.url, *flags) as rest,
                    front_end("grpc", worker.address, collector.url, *flags) as rpc,
                    httpx2.AsyncClient(base_url=rest.url, timeout=60) as http,
                    grpc.aio.insecure_channel(rpc.grpc_address) as channel,
                ):
                    yield Traced(collector, http, channel, rest, rpc, worker)


@asynccontextmanager
async def front_end(
    kind: str,
    worker_address: str,
    collector: str,
    *flags: str,
    environment: Mapping[str, str] | None = None,
    fresh: bool = False,
) -> AsyncIterator[RunningService]:
    """Start `convmlp rest` or `convmlp grpc` and wait until it is ready. At the end it must stop with exit status 0."""
    ports = ("--http-port", "0") if kind == "rest" else ("--grpc-port", "0", "--grpc-metrics-port", "0")
    common = ("--worker-address", worker_address, "--heartbeat-interval-ms", "50", "--otlp-endpoint", collector)
    with started(kind, *ports, *common, *flags, environment=environment, fresh=fresh) as process:
        listening = await asyncio.to_thread(process.wait_for, "listening")
        process.url, process.grpc_address = listening.get("url", ""), listening.get("address", "")
        await _ready(process)
        try:
            yield process
        finally:
            await stopped(process)


async def stopped(process: RunningService) -> None:
    """Stop a process and wait for its exit status 0. The wait is in a thread: its worker may run in this event loop."""
    if process.process.poll() is None:
        process.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.process.wait, 60) == 0


async def _ready(process: RunningService) -> None:
    """Wait until it has a worker."""
    if process.url:
        async with httpx2.AsyncClient(base_url=process.url, timeout=60) as http:
            while not (await http.get("/readyz")).is_success:
                await asyncio.sleep(0.01)
        return
    async with grpc.aio.insecure_channel(process.grpc_address) as channel:
        async for response in health_of(channel).Watch(HealthCheckRequest(), timeout=60):
            if response.status == HealthCheckResponse.SERVING:
                return
