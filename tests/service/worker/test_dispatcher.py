"""Queue, batching and device together, with a device that the test controls."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry

from model.types import Task
from service.observability.metrics import WorkerMetrics
from service.worker.batching import BatchSizeLimits
from service.worker.dispatcher import Dispatcher
from service.worker.queue import JobQueue
from service.worker.runner import DeviceLost
from tests.fakes import FakeRunner, fake_bundle
from tests.service.worker.dispatcher_bench import SIDE, dispatcher_bench


async def test_while_the_device_is_busy_the_next_batch_grows() -> None:
    """A lone job runs alone at once; jobs that arrive meanwhile run together, and each gets its own answer."""
    async with dispatcher_bench() as it:
        it.runner.unblocked.clear()
        it.submit(0, level=7)
        await it.until(lambda: len(it.runner.batches) == 1)
        for number in range(1, 6):
            it.submit(number, level=10 * number)
        it.runner.unblocked.set()
        await it.until(lambda: len(it.results) == 6)
        assert [images for _, images in it.runner.batches] == [1, 5]
        assert [it.label(number) for number in range(6)] == [7, 10, 20, 30, 40, 50]


async def test_a_cancelled_job_does_not_run() -> None:
    """A job that is cancelled while it waits does not run and gets no reply; its neighbours do."""
    async with dispatcher_bench() as it:
        it.runner.unblocked.clear()
        it.submit(0)
        await it.until(lambda: len(it.runner.batches) == 1)
        it.submit(1)
        it.submit(2)
        it.dispatcher.cancel((b"test", 1))
        it.dispatcher.cancel((b"test", 0))  # runs already: it finishes
        it.runner.unblocked.set()
        await it.until(lambda: len(it.results) == 2)
        await it.dispatcher.wait_until_done()
        assert sorted(it.results) == [0, 2]


async def test_one_can_wait_for_the_jobs_of_one_slot() -> None:
    """The wait for a slot ends once none of its jobs waits or runs, however they ended."""
    async with dispatcher_bench(batch=1) as it:
        await it.dispatcher.wait_until_done("fake_classify")  # nobody is there
        it.runner.unblocked.clear()
        it.submit(0)
        await it.until(lambda: len(it.runner.batches) == 1)
        it.submit(1, budget_s=1.0)
        it.submit(2)
        waiting = asyncio.create_task(it.dispatcher.wait_until_done("fake_classify"))
        await asyncio.wait_for(it.dispatcher.wait_until_done("another slot"), 10)
        it.dispatcher.cancel((b"test", 2))
        it.clock.now_s += 2.0
        await it.settle()
        assert not waiting.done()
        it.runner.unblocked.set()
        await asyncio.wait_for(waiting, 10)
        assert sorted(it.results) == [0, 1]


async def test_an_idle_device_is_pinged() -> None:
    """The device's silence stays short while it works, with jobs or without."""
    async with dispatcher_bench(idle_s=0.01) as it:
        it.clock.now_s += 9.0
        assert it.dispatcher.executor.silent_s() == 9.0
        await it.until(lambda: it.runner.pings >= 2)
        assert it.dispatcher.executor.silent_s() == 0.0
        it.runner.unblocked.clear()
        it.submit(0)
        await it.until(lambda: len(it.runner.batches) == 1)
        it.clock.now_s += 3.0
        assert it.dispatcher.executor.silent_s() == it.dispatcher.executor.busy_s() == 3.0
        it.runner.unblocked.set()
        await it.until(lambda: len(it.results) == 1)
        assert it.dispatcher.executor.silent_s() == 0.0


async def test_an_idle_device_that_fails_is_lost() -> None:
    """The dispatcher ends with the reason, so that the worker ends and another one is started."""
    with ThreadPoolExecutor(1) as thread:
        dispatcher = Dispatcher(
            FakeRunner([fake_bundle(Task.CLASSIFY)], lost=True),
            thread,
            JobQueue(1, SIDE * SIDE),
            BatchSizeLimits(1, SIDE * SIDE),
            WorkerMetrics(CollectorRegistry(), {"fake_classify": "classify"}),
            idle_s=0.01,
        )
        with pytest.raises(DeviceLost, match="fell off the bus"):
            await dispatcher.run()
