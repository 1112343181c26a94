"""Pairs of front-ends in trouble."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from convmlp.v1 import vision_pb2 as pb
from service.settings import Settings
from service.wire.messages import WaitEstimate
from tests.service.frontend.both_transports import Pair, PairAtWork, open_pair, open_pair_at
from tests.service.frontend.rest_server import picture
from tests.service.wire.scripted_worker import ScriptedWorker
from tests.waiting import until

KEY = "0123456789abcdef"
"""What callers need where it is asked for."""

Scene = Callable[[Path], AbstractAsyncContextManager[Pair]]


@asynccontextmanager
async def held(pair: PairAtWork, waiting: int) -> AsyncIterator[None]:
    """The device holds an image, and `waiting` more are in line behind it."""
    before = len(pair.worker.runner.batches)
    pair.worker.runner.unblocked.clear()
    calls: list[Awaitable[Any]] = [pair.rpc.stub.Classify(pb.ClassifyRequest(image=picture(1)))]
    await until(lambda: len(pair.worker.runner.batches) == before + 1)
    for at in range(waiting):
        calls.append(pair.rpc.stub.Classify(pb.ClassifyRequest(image=picture(2 + at))))
    await until(lambda: queued(pair) == waiting)
    yield
    pair.worker.runner.unblocked.set()
    await asyncio.gather(*calls)


def queued(pair: PairAtWork) -> float:
    return pair.worker.registry.get_sample_value("convmlp_queue_depth", {"model": "fake_classify"}) or 0.0


@asynccontextmanager
async def busy(_: Path) -> AsyncIterator[Pair]:
    """The device is held, by a service that gives a request half a second."""
    async with open_pair(request_timeout_ms=500) as pair:
        pair.worker.runner.unblocked.clear()
        yield pair


@asynccontextmanager
async def full(_: Path) -> AsyncIterator[Pair]:
    """The queue is as long as it may be."""
    async with open_pair(max_queue_images=1) as pair, held(pair, 1):
        yield pair


BACKLOG_S = 1000.0
"""What the worker of `slow` expects another request to wait."""


@asynccontextmanager
async def slow(folder: Path) -> AsyncIterator[Pair]:
    """The worker's latest answers came with an estimate of `BACKLOG_S`, and each front-end has a request at it."""
    address = f"ipc://{folder}/w"
    settings = Settings(heartbeat_interval_ms=50, worker_timeout_ms=60_000, request_timeout_ms=10**6)
    async with open_pair_at(address, settings) as pair, ScriptedWorker(address) as worker:
        while not pair.ready:
            await worker.introduce()
        calls = []
        for call in (
            lambda: pair.http.post("/classify", content=picture()),
            lambda: pair.rpc.stub.Classify(pb.ClassifyRequest(image=picture())),
        ):
            first = asyncio.ensure_future(call())
            (await worker.next_job()).answer(estimate=WaitEstimate(BACKLOG_S, 0.0))
            await first
            calls.append((asyncio.ensure_future(call()), await worker.next_job()))
        yield pair
        for waiting, job in calls:
            job.answer()
            await waiting


@asynccontextmanager
async def frugal(_: Path) -> AsyncIterator[Pair]:
    """An image may have no more than 1000 bytes."""
    async with open_pair(max_image_bytes=1000) as pair:
        yield pair


@asynccontextmanager
async def starting(folder: Path) -> AsyncIterator[Pair]:
    """There is no worker yet."""
    async with open_pair_at(f"ipc://{folder}/w", Settings(heartbeat_interval_ms=50)) as pair:
        yield pair


@asynccontextmanager
async def draining(_: Path) -> AsyncIterator[Pair]:
    """The worker finishes what it has, and takes nothing more."""
    async with open_pair() as pair, held(pair, 0):
        pair.worker.stop.set()
        await until(lambda: not pair.rest.engine.readiness().ready)
        await until(lambda: not pair.rpc.front_end.engine.readiness().ready)
        yield pair


START_S = 80.0
"""What the worker of `losing` needs for a start."""


@asynccontextmanager
async def losing(folder: Path) -> AsyncIterator[Pair]:
    """The worker is lost as soon as it has something to do."""
    address = f"ipc://{folder}/w"
    settings = Settings(heartbeat_interval_ms=50, request_timeout_ms=10**6)
    async with open_pair_at(address, settings) as pair, AsyncExitStack() as life:
        worker = await life.enter_async_context(ScriptedWorker(address))
        while not pair.ready:
            await worker.introduce(start_s=START_S)

        async def end_with_the_first_job() -> None:
            await worker.next_job()
            await life.aclose()

        ending = asyncio.create_task(end_with_the_first_job())
        yield pair
        await ending


@asynccontextmanager
async def poisoned(_: Path) -> AsyncIterator[Pair]:
    """The device fails at a certain picture."""
    async with open_pair() as pair:
        pair.worker.runner.poison = 66
        yield pair


@asynccontextmanager
async def guarded(folder: Path) -> AsyncIterator[Pair]:
    """Callers need a key."""
    keys = folder / "keys"
    keys.write_text(f"partner {KEY}\n")
    async with open_pair(api_keys_file=keys) as pair:
        yield pair


@asynccontextmanager
async def rationed(_: Path) -> AsyncIterator[Pair]:
    """A caller had its one image of the hour, over each transport."""
    async with open_pair(rate_limit_per_s=1 / 3600, rate_limit_burst=1) as pair:
        assert (await pair.http.post("/classify", content=picture())).status_code == 200
        await pair.rpc.stub.Classify(pb.ClassifyRequest(image=picture()))
        yield pair
