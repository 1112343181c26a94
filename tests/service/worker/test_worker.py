"""The worker's life over its real wire: starting, proving itself, draining, giving up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from model.types import ClassifyOutput, Geometry, ModelInput, QueryParams, Size, Task
from service.errors import Unavailable
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.wire.channel import WorkerChannel
from service.wire.door import Door
from service.worker.worker import Worker, WorkerWedged
from tests.fakes import FakeRunner, FakeWorker, fake_bundle, fake_worker

SETTINGS = Settings(models=("fake",), heartbeat_interval_ms=20, self_check_interval_ms=50)
PIXELS = np.full((32, 32, 3), 9, np.uint8)


@asynccontextmanager
async def worker_and_channel(settings: Settings = SETTINGS) -> AsyncIterator[tuple[FakeWorker, WorkerChannel]]:
    async with (
        fake_worker(settings, tasks=[Task.CLASSIFY]) as worker,
        WorkerChannel(worker.address, 0.02, 30.0, lambda up: None) as channel,  # noqa: ARG005
    ):
        yield worker, channel


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def ask(channel: WorkerChannel) -> int:
    model_input = ModelInput(PIXELS, Geometry(Size(32, 32), Size(36, 36)))
    answer = await channel.predict("r", "fake_classify", model_input, QueryParams(), time.monotonic() + 20)
    assert isinstance(answer.output, ClassifyOutput)
    return int(answer.output.indices[0])


async def test_a_model_that_answers_wrongly_is_not_ready() -> None:
    """A worker whose model does not give its committed answer is not ready; once it does, it is."""
    async with worker_and_channel() as (worker, channel):
        await until(lambda: channel.readiness().ready)
        worker.runner.shift = 50
        await until(lambda: not channel.readiness().ready)
        assert "fake_classify" in channel.readiness().reason
        assert worker.registry.get_sample_value("convmlp_model_ready", {"model": "fake_classify"}) == 0
        with pytest.raises(Unavailable, match="the reference says"):
            await ask(channel)
        worker.runner.shift = 0
        await until(lambda: channel.readiness().ready)
        assert await ask(channel) == 9


async def test_a_worker_says_that_it_is_starting_until_it_has_proven_itself() -> None:
    """Before the reference answer was given, requests are refused as Unavailable, not queued."""
    async with worker_and_channel() as (worker, channel):
        worker.runner.gate.clear()
        await until(lambda: bool(channel.models()))
        if not channel.readiness().ready:  # the self-check may have been through before the gate closed
            with pytest.raises(Unavailable):
                await ask(channel)
        worker.runner.gate.set()
        await until(lambda: channel.readiness().ready)


async def test_a_model_that_could_not_be_asked_is_not_proven() -> None:
    """A device without room for the reference picture proves nothing; once it answers, the worker is ready."""
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as worker:
        worker.runner.memory_images = 0
        async with WorkerChannel(worker.address, 0.02, 30.0, lambda up: None) as channel:  # noqa: ARG005
            await until(lambda: len(worker.runner.batches) >= 3)
            assert not channel.readiness().ready
            worker.runner.memory_images = None
            await until(lambda: channel.readiness().ready)


async def test_draining_finishes_what_is_in_hand() -> None:
    """After the signal jobs in hand are answered, front-ends hear of it, and the worker ends."""
    async with worker_and_channel() as (worker, channel):
        await until(lambda: channel.readiness().ready)
        worker.runner.gate.clear()
        asked = [asyncio.create_task(ask(channel)) for _ in range(9)]
        depth = "convmlp_queue_depth"
        await until(lambda: (worker.registry.get_sample_value(depth, {"model": "fake_classify"}) or 0) >= 1)
        worker.stop.set()
        await until(lambda: not channel.readiness().ready)
        assert "shutting down" in channel.readiness().reason
        assert not channel.models()[0].ready
        worker.runner.gate.set()
        assert await asyncio.gather(*asked) == [9] * 9


async def test_a_wedged_device_ends_the_worker() -> None:
    """A batch that never ends is noticed: the worker gives up, so that another can take its place."""
    bundles = [fake_bundle(Task.CLASSIFY)]
    runner = FakeRunner(bundles)
    runner.gate.clear()
    worker = Worker(
        bundles,
        lambda *_: runner,
        SETTINGS.with_changes(batch_timeout_ms=100),
        WorkerMetrics(CollectorRegistry(), {"fake_classify": "classify"}),
    )
    async with Door("ipc:///tmp/convmlp-test-wedged") as door, asyncio.timeout(10):
        with pytest.raises(ExceptionGroup) as caught:
            await worker.run(door, asyncio.Event())
    runner.gate.set()
    assert caught.group_contains(WorkerWedged)
