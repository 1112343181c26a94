"""Closed-loop load: a fixed number of clients, each of which asks again as soon as it was answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio
import httpx

from convmlp.v1 import vision_pb2, vision_pb2_grpc

MAX_CLIENTS = 256
MAX_MESSAGE_BYTES = 64 * 2**20

Ask = Callable[[bytes], Awaitable[bool]]
"""Sends one picture; whether it was answered."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Latencies of the requests that were answered, in seconds, ascending; how many were not; over which time."""

    latencies_s: tuple[float, ...]
    failures: int
    seconds: float

    @property
    def per_second(self) -> float:
        return len(self.latencies_s) / self.seconds

    def percentile_ms(self, share: float) -> float:
        at = min(len(self.latencies_s) - 1, int(share * len(self.latencies_s)))
        return self.latencies_s[at] * 1000


async def closed_loop(ask: Ask, pictures: Sequence[bytes], concurrency: int, seconds: float) -> Measured:
    """Ask about the pictures in turn from `concurrency` clients for `seconds`, after a tenth of that to warm up."""
    latencies: list[float] = []
    failures = 0
    began_s = time.monotonic() + seconds / 10
    end_s = began_s + seconds

    async def one(number: int) -> None:
        nonlocal failures
        asked = number
        while (started_s := time.monotonic()) < end_s:
            answered = await ask(pictures[asked % len(pictures)])
            asked += concurrency
            finished_s = time.monotonic()
            if not began_s <= finished_s <= end_s:
                continue
            if answered:
                latencies.append(finished_s - started_s)
            else:
                failures += 1

    await asyncio.gather(*(one(number) for number in range(concurrency)))
    return Measured(tuple(sorted(latencies)), failures, seconds)


@asynccontextmanager
async def rest(url: str, task: str) -> AsyncIterator[Ask]:
    """Ask by POST, over connections that are kept."""
    limits = httpx.Limits(max_connections=MAX_CLIENTS, max_keepalive_connections=MAX_CLIENTS)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:

        async def ask(picture: bytes) -> bool:
            return (await client.post(f"{url}/{task}", content=picture)).is_success

        yield ask


@asynccontextmanager
async def vision(address: str) -> AsyncIterator[vision_pb2_grpc.VisionAsyncStub]:
    """The gRPC service, over one connection."""
    sizes = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ]
    async with grpc.aio.insecure_channel(address, options=sizes) as channel:
        yield vision_pb2_grpc.VisionStub(channel)


@asynccontextmanager
async def grpc_unary(address: str, task: str) -> AsyncIterator[Ask]:
    """Ask by unary calls, all over one connection."""
    async with vision(address) as stub:
        call, request = {
            "classify": (stub.Classify, vision_pb2.ClassifyRequest),
            "detect": (stub.Detect, vision_pb2.DetectRequest),
            "segment": (stub.Segment, vision_pb2.SegmentRequest),
        }[task]

        async def ask(picture: bytes) -> bool:
            try:
                await call(request(image=picture), timeout=60)  # type: ignore[operator]  # each takes its own request
            except grpc.aio.AioRpcError:
                return False
            return True

        yield ask
