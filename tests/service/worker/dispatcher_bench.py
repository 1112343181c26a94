"""A dispatcher with a fake device and a clock that the test moves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from prometheus_client import CollectorRegistry

from model.errors import ConvMLPError
from model.types import ClassifyOutput, Geometry, ModelInput, QueryParams, Size, Task
from service.observability.metrics import WorkerMetrics
from service.worker.batching import BatchSizeLimits
from service.worker.device_thread import DeviceThread
from service.worker.dispatcher import Dispatcher
from service.worker.queue import JobQueue
from service.worker.types import Job, JobResult, Shape
from tests.fakes import FakeClock, FakeRunner, fake_bundle
from tests.waiting import until

SIDE = 32
FIRST = "fake_classify"


@dataclass
class DispatcherBench:
    """A running dispatcher, and the results of its jobs by their numbers."""

    dispatcher: Dispatcher
    runner: FakeRunner
    clock: FakeClock
    registry: CollectorRegistry
    limits: BatchSizeLimits
    results: dict[int, JobResult] = field(default_factory=dict)

    def submit(
        self,
        number: int,
        *,
        level: int = 0,
        budget_s: float = 30.0,
        model: str = FIRST,
        side: int = SIDE,
        output_pixels: int = 0,
    ) -> None:
        self.dispatcher.submit(self._job(number, level, budget_s, model, side, output_pixels))

    def _job(self, number: int, level: int, budget_s: float, model: str, side: int, output_pixels: int = 0) -> Job:
        size = Size(side, side)
        return Job(
            key=(b"test", number),
            shape=Shape(model, model, side, side),
            input=ModelInput(np.full((side, side, 3), level, np.uint8), Geometry(size, size)),
            params=QueryParams(top_k=1),
            enqueued_s=self.clock(),
            deadline_s=self.clock() + budget_s,
            reply=self._reply,
            output_pixels=output_pixels,
        )

    def _reply(self, job: Job, result: JobResult) -> None:
        number = job.key[1]
        assert number not in self.results, "a job is replied to exactly once"
        self.results[number] = result

    def label(self, number: int) -> int:
        result = self.results[number].result
        assert isinstance(result, ClassifyOutput), result
        return int(result.indices[0])

    def error(self, number: int) -> ConvMLPError:
        result = self.results[number].result
        assert isinstance(result, ConvMLPError)
        return result

    async def until(self, condition: Callable[[], bool]) -> None:
        await until(condition)

    async def settle(self) -> None:
        """Run the event loop until nothing more happens while the device is blocked."""
        for _ in range(50):
            await asyncio.sleep(0)

    async def hold(
        self, number: int = 0, *, level: int = 0, budget_s: float = 30.0, model: str = FIRST, output_pixels: int = 0
    ) -> None:
        """Put one job on the device and block it there; jobs submitted later wait in the queue."""
        ran = len(self.runner.batches)
        self.runner.unblocked.clear()
        self.submit(number, level=level, budget_s=budget_s, model=model, output_pixels=output_pixels)
        await self.until(lambda: len(self.runner.batches) == ran + 1)

    async def learn(self, seconds: float, model: str = FIRST, output_pixels: int = 0) -> None:
        """Run two lone jobs, from which the dispatcher learns how long an image takes; numbers from 10^6 on."""
        for _ in range(2):
            number = 10**6 + len(self.results)
            await self.hold(number, budget_s=10**6, model=model, output_pixels=output_pixels)
            self.clock.now_s += seconds
            self.runner.unblocked.set()
            await self.until(lambda: number in self.results)  # noqa: B023
        self.runner.batches.clear()
        self.runner.shares.clear()

    async def trial(self, seconds: float, model: str = FIRST) -> None:
        """Run a trial, from which the dispatcher learns how long an image takes on one lane of several."""
        self.each_takes(seconds)
        await self.dispatcher.time_batch(self._job(0, 0, 30.0, model, SIDE), 1)
        self.runner.batches.clear()
        self.runner.shares.clear()

    def each_takes(self, seconds: float) -> None:
        """From now on an image takes so many seconds of the device."""

        def takes(model: str, images: int, lanes: int) -> None:  # noqa: ARG001
            self.clock.now_s += seconds * images / lanes

        self.runner.takes = takes


class HeldBatches:
    """Holds each batch on the device. `release` ends the batches of these numbers, by their start, from 0. Of those
    that start at once on several lanes any may be the first."""

    def __init__(self, it: DispatcherBench) -> None:
        self._released: list[threading.Event] = []
        self._levels: list[list[int]] = []
        self._runner = it.runner
        self._lock = threading.Lock()
        it.runner.takes = self._wait

    def _wait(self, model: str, images: int, lanes: int) -> None:  # noqa: ARG002
        with self._lock:
            released = threading.Event()
            self._levels.append(self._runner.levels.of_batch)
            self._released.append(released)
        assert released.wait(timeout=60), "a test left a batch on the device"

    def __len__(self) -> int:
        return len(self._released)

    def number_of(self, level: int) -> int:
        """The number of the first batch that has an input of this grey level."""
        return next(number for number, levels in enumerate(self._levels) if level in levels)

    def release(self, *numbers: int) -> None:
        for number in numbers:
            self._released[number].set()

    def release_all(self) -> None:
        self.release(*range(len(self)))


@asynccontextmanager
async def dispatcher_bench(
    max_images: int = 64,
    batch: int = 8,
    idle_s: float = 60.0,
    lanes: int = 1,
    models: Sequence[str] = (FIRST,),
    weights: Mapping[str, float] | None = None,
    *,
    can_overlap: bool = False,
) -> AsyncIterator[DispatcherBench]:
    bundles = [fake_bundle(Task.CLASSIFY, model) for model in models]
    runner, clock = FakeRunner(bundles, lanes=lanes, can_overlap=can_overlap), FakeClock()
    registry = CollectorRegistry()
    limits = BatchSizeLimits(batch, batch * SIDE * SIDE)
    with DeviceThread("device") as thread:
        dispatcher = Dispatcher(
            runner,
            thread,
            JobQueue(max_images, max_images * SIDE * SIDE, weights),
            limits,
            WorkerMetrics(registry, dict.fromkeys(models, "classify")),
            clock,
            idle_s=idle_s,
        )
        serving = asyncio.create_task(dispatcher.run())
        try:
            yield DispatcherBench(dispatcher, runner, clock, registry, limits)
        finally:
            runner.unblocked.set()
            serving.cancel()
            await asyncio.wait([serving])
            dispatcher.close()
