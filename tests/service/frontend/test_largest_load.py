"""The memory of a front-end process under the largest load that its settings allow."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from convmlp.v1 import vision_pb2 as pb
from model.containers.isobmff import box
from tests.e2e.convmlp_process import RunningService, started
from tests.fakes import fake_worker
from tests.model import heif_files
from tests.model.picture_files import PHOTO, encoded
from tests.service.frontend.grpc_server import health_of, stub_of
from tests.service.frontend.largest_load import FILE_BYTES, SETTINGS, TIMEOUT_S, front_end_process, largest_picture

if TYPE_CHECKING:
    from convmlp.v1.vision_pb2_grpc import VisionAsyncStub

REQUESTS = ("/classify", "/segment?view=labelmap", "/classify", "/detect") * 3
"""One body more than fits into the default limit of all, at least."""
LIMIT_BYTES = 10**9
TILE, TILES = 512, 12
"""The side of a tile in pixels, and tiles in a row and in a column."""
CALLS, STREAMS, OF_STREAM = 24, 8, 2
"""Messages of gRPC that are sent at once: on connections of their own, and on streams."""
OK, RESOURCE_EXHAUSTED = (code.value[0] for code in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED))


def largest_in_tiles(kind: str) -> bytes:
    """A HEIC or AVIF of about `FILE_BYTES` bytes, of nearly as many pixels as the work or the memory of its decoding
    allows."""
    avif = encoded(PHOTO.resize((TILE, TILE)), "AVIF", speed=10)
    tile = heif_files.picture("large_tile") if kind == "heic" else avif
    side = TILE * TILES
    data = heif_files.grid_of(tile, TILES, TILES, side, side)
    return data + box(b"free", bytes(FILE_BYTES - len(data)))


@pytest.mark.parametrize("kind", ["png", "heic", "avif"])
async def test_a_front_end_takes_less_than_a_gigabyte(kind: str) -> None:
    """At the default limits, with eight threads and the largest pictures for all tasks at once, each request is
    answered, or refused with 503 for lack of room, and the process never has 1 GB. It answers afterwards."""
    picture = largest_picture() if kind == "png" else largest_in_tiles(kind)
    assert len(REQUESTS) * len(picture) > SETTINGS.max_in_flight_bytes
    async with front_end_process() as (process, client):
        replies = await asyncio.gather(*(client.post(path, content=picture) for path in REQUESTS))
        statuses = Counter(reply.status_code for reply in replies)
        assert set(statuses) == {200, 503}, [reply.text for reply in replies if reply.status_code != 200]
        assert statuses[200] >= len(REQUESTS) / 2
        assert all("retry-after" in reply.headers for reply in replies if reply.status_code == 503)
        assert process.peak_bytes < LIMIT_BYTES
        assert (await client.post("/classify", content=picture)).status_code == 200


async def test_a_grpc_front_end_takes_less_than_a_gigabyte() -> None:
    """While calls and streams send several times as many pictures of the largest size as fit, on connections of their
    own, each is answered, or refused for lack of room, and the process never has 1 GB. It answers afterwards."""
    picture = largest_picture()
    request = pb.ClassifyRequest(image=picture)
    outcomes: Counter[int] = Counter()

    async def call(stub: VisionAsyncStub) -> None:
        answering = stub.Classify(request, timeout=TIMEOUT_S)
        outcomes[(await answering.code()).value[0]] += 1

    async def stream(stub: VisionAsyncStub) -> None:
        left = OF_STREAM
        try:
            async for reply in stub.ClassifyStream(iter([request] * OF_STREAM), timeout=TIMEOUT_S):
                outcomes[reply.error.code] += 1
                left -= 1
        except grpc.aio.AioRpcError as error:  # the rest of the stream is refused
            # A client that is writing just then may lose the server's status: gRPC's core reports this in its place.
            lost = error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"
            outcomes[RESOURCE_EXHAUSTED if lost else error.code().value[0]] += left

    async with grpc_process() as (process, channels):
        stubs = [stub_of(channel) for channel in channels]
        await asyncio.gather(*(call(stub) for stub in stubs[:CALLS]), *(stream(stub) for stub in stubs[CALLS:]))
        assert set(outcomes) == {OK, RESOURCE_EXHAUSTED}
        assert sum(outcomes.values()) == CALLS + STREAMS * OF_STREAM
        assert outcomes[OK] * len(picture) >= SETTINGS.max_in_flight_bytes / 2
        assert process.peak_bytes < LIMIT_BYTES
        await stubs[0].Classify(request, timeout=TIMEOUT_S)


@asynccontextmanager
async def grpc_process() -> AsyncIterator[tuple[RunningService, list[grpc.aio.Channel]]]:
    """A gRPC process with eight threads and the default limits, ready, and connections to it."""
    async with fake_worker(SETTINGS) as worker, AsyncExitStack() as stack:
        ports = ("--grpc-port", "0", "--grpc-metrics-port", "0")
        flags = ("--worker-address", worker.address, *ports, "--prepare-threads", "8")
        with started("grpc", *flags, "--request-timeout-ms", str(int(TIMEOUT_S * 1000)), fresh=True) as process:
            address = (await asyncio.to_thread(process.wait_for, "listening"))["address"]
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(address, options))
                for _ in range(CALLS + STREAMS)
            ]
            async for health in health_of(channels[0]).Watch(HealthCheckRequest(), timeout=60):
                if health.status == HealthCheckResponse.SERVING:
                    break
            try:
                yield process, channels
            finally:
                # Here and not by `started`, for the worker lives in this event loop.
                process.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.process.wait, 60) == 0
