"""Queue, batching and device together, with a device that the test controls."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from model.types import Task
from service.observability.metrics import WorkerMetrics
from service.worker.batching import BatchSizeLimits
from service.worker.device_thread import DeviceThread
from service.worker.dispatcher import Dispatcher
from service.worker.queue import JobQueue
from service.worker.runner import DeviceLost
from tests.fakes import FakeRunner, fake_bundle
from tests.service.worker.dispatcher_bench import FIRST, SIDE, DispatcherBench


async def test_while_the_device_is_busy_the_next_batch_grows(bench: DispatcherBench) -> None:
    """A lone job runs alone at once; jobs that arrive meanwhile run together, and each gets its own answer."""
    bench.runner.unblocked.clear()
    bench.submit(0, level=7)
    await bench.until(lambda: len(bench.runner.batches) == 1)
    for number in range(1, 6):
        bench.submit(number, level=10 * number)
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 6)
    assert [images for _, images in bench.runner.batches] == [1, 5]
    assert [bench.label(number) for number in range(6)] == [7, 10, 20, 30, 40, 50]


async def test_every_image_of_a_batch_is_inferred_for_as_long_as_the_batch(bench: DispatcherBench) -> None:
    """Stage durations are per image; the batch, and the device's busy time, count once."""
    await bench.hold(0)
    for number in range(1, 5):
        bench.submit(number)
    bench.each_takes(0.25)
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 5)
    value, infer, model = bench.registry.get_sample_value, {"stage": "infer", "task": "classify"}, {"model": FIRST}
    seconds = bench.results[0].infer_s, bench.results[1].infer_s
    assert seconds[1] == pytest.approx(1.0)
    assert value("convmlp_stage_duration_seconds_count", infer) == 5
    assert value("convmlp_stage_duration_seconds_sum", infer) == pytest.approx(seconds[0] + 4 * seconds[1])
    assert value("convmlp_device_busy_seconds_total", model) == pytest.approx(sum(seconds))
    assert value("convmlp_images_total", model) == 5
    assert value("convmlp_batch_size_bucket", {**model, "le": "4.0"}) == 2
    assert value("convmlp_batch_size_bucket", {**model, "le": "3.0"}) == 1


async def test_a_cancelled_job_does_not_run(bench: DispatcherBench) -> None:
    """A job that is cancelled while it waits does not run and gets no reply; its neighbours do."""
    bench.runner.unblocked.clear()
    bench.submit(0)
    await bench.until(lambda: len(bench.runner.batches) == 1)
    bench.submit(1)
    bench.submit(2)
    bench.dispatcher.cancel((b"test", 1))
    bench.dispatcher.cancel((b"test", 0))  # runs already: bench finishes
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 2)
    await bench.dispatcher.wait_until_done()
    assert sorted(bench.results) == [0, 2]


@pytest.mark.settings(batch=1)
async def test_one_can_wait_for_the_jobs_of_one_slot(bench: DispatcherBench) -> None:
    """The wait for a slot ends once none of its jobs waits or runs, however they ended."""
    await bench.dispatcher.wait_until_done("fake_classify")  # nobody is there
    bench.runner.unblocked.clear()
    bench.submit(0)
    await bench.until(lambda: len(bench.runner.batches) == 1)
    bench.submit(1, budget_s=1.0)
    bench.submit(2)
    waiting = asyncio.create_task(bench.dispatcher.wait_until_done("fake_classify"))
    await asyncio.wait_for(bench.dispatcher.wait_until_done("another slot"), 60)
    bench.dispatcher.cancel((b"test", 2))
    bench.clock.now_s += 2.0
    await bench.settle()
    assert not waiting.done()
    bench.runner.unblocked.set()
    await asyncio.wait_for(waiting, 60)
    assert sorted(bench.results) == [0, 1]


@pytest.mark.settings(idle_s=0.01)
async def test_an_idle_device_is_pinged(bench: DispatcherBench) -> None:
    """The device's silence stays short while it works, with jobs or without."""
    bench.clock.now_s += 9.0
    assert bench.dispatcher.executor.silent_s() == 9.0
    await bench.until(lambda: bench.runner.pings >= 2)
    assert bench.dispatcher.executor.silent_s() == 0.0
    bench.runner.unblocked.clear()
    bench.submit(0)
    await bench.until(lambda: len(bench.runner.batches) == 1)
    bench.clock.now_s += 3.0
    assert bench.dispatcher.executor.silent_s() == bench.dispatcher.executor.busy_s() == 3.0
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 1)
    assert bench.dispatcher.executor.silent_s() == 0.0


async def test_an_idle_device_that_fails_is_lost() -> None:
    """The dispatcher ends with the reason, so that the worker ends and another one is started."""
    with DeviceThread("device") as thread:
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
