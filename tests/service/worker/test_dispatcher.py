"""Queue, policy and device together, with a device that the test holds in its hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from model.errors import ConvMLPError
from model.types import ClassifyOutput, Geometry, ModelInput, QueryParams, Size, Task
from service.errors import DeadlineExceeded, Internal, Overloaded
from service.metrics import WorkerMetrics
from service.worker.batching import BatchLimits
from service.worker.dispatcher import Dispatcher
from service.worker.queue import Done, Job, JobQueue, Shape
from service.worker.runner import DeviceLost
from tests.fakes import FakeRunner, fake_bundle

SIDE = 32


@dataclass
class Clock:
    """A clock that moves when the test says so."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Bench:
    """A dispatcher at work, and what its jobs were told."""

    dispatcher: Dispatcher
    runner: FakeRunner
    clock: Clock
    answers: dict[int, Done] = field(default_factory=dict)

    def submit(self, number: int, *, level: int = 0, budget_s: float = 30.0) -> None:
        size = Size(SIDE, SIDE)
        self.dispatcher.submit(
            Job(
                key=(b"test", number),
                shape=Shape("fake_classify", "fake_classify", SIDE, SIDE),
                input=ModelInput(np.full((SIDE, SIDE, 3), level, np.uint8), Geometry(size, size)),
                params=QueryParams(top_k=1),
                enqueued_s=self.clock(),
                deadline_s=self.clock() + budget_s,
                reply=lambda done: self.tell(number, done),
            )
        )

    def tell(self, number: int, done: Done) -> None:
        assert number not in self.answers, "a job is answered exactly once"
        self.answers[number] = done

    def label(self, number: int) -> int:
        result = self.answers[number].result
        assert isinstance(result, ClassifyOutput)
        return int(result.indices[0])

    def error(self, number: int) -> ConvMLPError:
        result = self.answers[number].result
        assert isinstance(result, ConvMLPError)
        return result

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def bench(max_images: int = 64, batch: int = 8, idle_s: float = 60.0) -> AsyncIterator[Bench]:
    runner, clock = FakeRunner([fake_bundle(Task.CLASSIFY)]), Clock()
    with ThreadPoolExecutor(1) as thread:
        dispatcher = Dispatcher(
            runner,
            thread,
            JobQueue(max_images, max_images * SIDE * SIDE),
            BatchLimits(batch, batch * SIDE * SIDE),
            WorkerMetrics(CollectorRegistry(), {"fake_classify": "classify"}),
            clock,
            idle_s=idle_s,
        )
        serving = asyncio.create_task(dispatcher.run())
        try:
            yield Bench(dispatcher, runner, clock)
        finally:
            runner.gate.set()
            serving.cancel()


async def test_while_the_device_is_busy_the_next_batch_grows() -> None:
    """A lone job runs alone at once; those that came meanwhile run together, and each gets its own answer."""
    async with bench() as it:
        it.runner.gate.clear()
        it.submit(0, level=7)
        await it.until(lambda: len(it.runner.batches) == 1)
        for number in range(1, 6):
            it.submit(number, level=10 * number)
        it.runner.gate.set()
        await it.until(lambda: len(it.answers) == 6)
        assert [images for _, images in it.runner.batches] == [1, 5]
        assert [it.label(number) for number in range(6)] == [7, 10, 20, 30, 40, 50]


async def test_the_queue_is_bounded() -> None:
    """Beyond the bound a job is refused at once with a time to come back; those inside are answered."""
    async with bench(max_images=3) as it:
        it.runner.gate.clear()
        it.submit(0)
        await it.until(lambda: len(it.runner.batches) == 1)
        for number in range(1, 5):
            it.submit(number)
        assert isinstance(it.error(4), Overloaded)
        it.runner.gate.set()
        await it.until(lambda: len(it.answers) == 5)
        assert [it.label(number) for number in range(4)] == [0, 0, 0, 0]


async def test_a_deadline_that_passes_in_the_queue_costs_the_device_nothing() -> None:
    """An expired job is told so and never reaches the device; its neighbours do."""
    async with bench() as it:
        it.runner.gate.clear()
        it.submit(0)
        await it.until(lambda: len(it.runner.batches) == 1)
        it.submit(1, budget_s=1.0)
        it.submit(2, budget_s=9.0)
        it.clock.now_s += 2.0
        it.runner.gate.set()
        await it.until(lambda: len(it.answers) == 3)
        assert isinstance(it.error(1), DeadlineExceeded)
        assert [images for _, images in it.runner.batches] == [1, 1]


async def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    """Once the pace is known, a job whose deadline lies before its turn is not let in; the first batch says nothing."""
    async with bench() as it:
        for number, batch_s in enumerate((100.0, 4.0)):
            it.runner.gate.clear()
            it.submit(number, budget_s=1000.0)
            await it.until(lambda: len(it.runner.batches) == len(it.answers) + 1)
            it.clock.now_s += batch_s
            it.runner.gate.set()
            await it.until(lambda: len(it.runner.batches) == len(it.answers))
        it.runner.gate.clear()
        it.submit(2)
        await it.until(lambda: len(it.runner.batches) == 3)
        it.submit(3, budget_s=3.0)
        error = it.error(3)
        assert isinstance(error, Overloaded)
        assert error.retry_after_s == pytest.approx(4.0)


async def test_a_cancelled_job_is_forgotten() -> None:
    """A job that is withdrawn while it waits is neither run nor answered, and its neighbours are."""
    async with bench() as it:
        it.runner.gate.clear()
        it.submit(0)
        await it.until(lambda: len(it.runner.batches) == 1)
        it.submit(1)
        it.submit(2)
        it.dispatcher.cancel((b"test", 1))
        it.dispatcher.cancel((b"test", 0))  # runs already: it finishes
        it.runner.gate.set()
        await it.until(lambda: len(it.answers) == 2)
        await it.dispatcher.finished()
        assert sorted(it.answers) == [0, 2]


async def test_out_of_memory_halves_the_batch_and_remembers() -> None:
    """No job is lost when a batch does not fit; later batches of that shape are small enough from the start."""
    async with bench() as it:
        it.runner.memory_images = 2
        it.runner.gate.clear()
        it.submit(0)
        await it.until(lambda: len(it.runner.batches) == 1)
        for number in range(1, 9):
            it.submit(number, level=number)
        it.runner.gate.set()
        await it.until(lambda: len(it.answers) == 9)
        assert [it.label(number) for number in range(9)] == list(range(9))
        it.runner.batches.clear()
        it.runner.gate.clear()
        it.submit(10)
        await it.until(lambda: len(it.runner.batches) == 1)
        for number in range(11, 15):
            it.submit(number)
        it.runner.gate.set()
        await it.until(lambda: len(it.answers) == 14)
        assert [images for _, images in it.runner.batches] == [1, 2, 2]


async def test_an_image_that_never_fits_is_refused_alone() -> None:
    """Out of memory on a single image is its own clear error, and the worker goes on."""
    async with bench() as it:
        it.runner.memory_images = 0
        it.submit(0)
        await it.until(lambda: 0 in it.answers)
        assert isinstance(it.error(0), Overloaded)
        it.runner.memory_images = None
        it.submit(1, level=5)
        await it.until(lambda: 1 in it.answers)
        assert it.label(1) == 5


async def test_a_poisoned_input_costs_only_itself() -> None:
    """When the network fails on a batch, each job is tried alone: one Internal error, the others' answers."""
    async with bench() as it:
        it.runner.poison = 13
        it.runner.gate.clear()
        it.submit(0)
        await it.until(lambda: len(it.runner.batches) == 1)
        for number, level in ((1, 11), (2, 13), (3, 15)):
            it.submit(number, level=level)
        it.runner.gate.set()
        await it.until(lambda: len(it.answers) == 4)
        assert isinstance(it.error(2), Internal)
        assert "poisoned" not in it.error(2).detail
        assert (it.label(1), it.label(3)) == (11, 15)


async def test_one_can_wait_for_the_jobs_of_one_slot() -> None:
    """A slot is finished once none of its jobs waits or runs, whether they were answered, late or withdrawn."""
    async with bench(batch=1) as it:
        await it.dispatcher.finished("fake_classify")  # nobody is there
        it.runner.gate.clear()
        it.submit(0)
        await it.until(lambda: len(it.runner.batches) == 1)
        it.submit(1, budget_s=1.0)
        it.submit(2)
        waiting = asyncio.create_task(it.dispatcher.finished("fake_classify"))
        await asyncio.wait_for(it.dispatcher.finished("another slot"), 10)
        it.dispatcher.cancel((b"test", 2))
        it.clock.now_s += 2.0
        await asyncio.sleep(0.05)
        assert not waiting.done()
        it.runner.gate.set()
        await asyncio.wait_for(waiting, 10)
        assert sorted(it.answers) == [0, 1]


async def test_an_idle_device_is_asked_for_a_sign_of_life() -> None:
    """What the device answered last is never long ago while it works, whether there are jobs or not."""
    async with bench(idle_s=0.01) as it:
        it.clock.now_s += 9.0
        assert it.dispatcher.silent_s() == 9.0
        await it.until(lambda: it.runner.pings >= 2)
        assert it.dispatcher.silent_s() == 0.0
        it.runner.gate.clear()
        it.submit(0)
        await it.until(lambda: len(it.runner.batches) == 1)
        it.clock.now_s += 3.0
        assert it.dispatcher.silent_s() == it.dispatcher.busy_s() == 3.0
        it.runner.gate.set()
        await it.until(lambda: len(it.answers) == 1)
        assert it.dispatcher.silent_s() == 0.0


async def test_a_device_that_fails_without_work_is_lost() -> None:
    """The dispatcher ends with the reason, so that the worker does and another one is started."""
    with ThreadPoolExecutor(1) as thread:
        dispatcher = Dispatcher(
            FakeRunner([fake_bundle(Task.CLASSIFY)], lost=True),
            thread,
            JobQueue(1, SIDE * SIDE),
            BatchLimits(1, SIDE * SIDE),
            WorkerMetrics(CollectorRegistry(), {"fake_classify": "classify"}),
            idle_s=0.01,
        )
        with pytest.raises(DeviceLost, match="fell off the bus"):
            await dispatcher.run()
