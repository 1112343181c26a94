"""The loop between queue and device: jobs → Batch → Runner → replies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeVar, TypeVarTuple

import numpy as np
import structlog

from model.errors import ConvMLPError
from model.types import Batch, RawOutput
from service.errors import DeadlineExceeded, Internal, Overloaded
from service.metrics import WorkerMetrics
from service.spans import NO_SPAN, NO_TRACING, Span, Tracing, within
from service.worker.batching import BatchLimits, expired, next_batch
from service.worker.pace import Pace
from service.worker.queue import Done, Job, JobQueue, Shape
from service.worker.runner import DeviceLost, OutOfDeviceMemory, Runner
from service.worker.traces import OUT_OF_MEMORY, tell_batch, tell_job

MAX_CAPS = 256
"""Shapes whose limit is remembered."""
IDLE_S = 5.0
"""A device without work is asked for a sign of life this often."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

log = structlog.get_logger(__name__)


class Dispatcher:
    """Takes jobs in, runs them in batches on the one device thread, and sees that each is answered once."""

    def __init__(
        self,
        runner: Runner,
        device_thread: Executor,
        queue: JobQueue,
        limits: BatchLimits,
        metrics: WorkerMetrics,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing = NO_TRACING,
        idle_s: float = IDLE_S,
    ) -> None:
        self._runner = runner
        self._device_thread = device_thread
        self._queue = queue
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._tracing = tracing
        self._idle_s = idle_s
        self._pace = Pace()
        self._caps: dict[Shape, int] = {}
        self._arrived = asyncio.Event()
        self._left = asyncio.Event()
        self._running: tuple[Job, ...] = ()
        self._running_since_s: float | None = None
        self._answered_s = clock()

    def submit(self, job: Job) -> None:
        """Let a job in, or answer it at once with why not."""
        ahead_s = self.backlog_s()
        if self._clock() + ahead_s > job.deadline_s:
            error: ConvMLPError = Overloaded(
                f"the images ahead take {ahead_s:.1f} s, longer than the request's deadline allows", ahead_s
            )
        else:
            try:
                self._queue.put(job, ahead_s)
            except Overloaded as full:
                error = full
            else:
                self._arrived.set()
                self._tell_depth(job.shape.model)
                return
        job.reply(Done(error, 0.0, 0.0))

    def cancel(self, key: tuple[bytes, int]) -> None:
        """Forget a job that still waits; one that runs is left to finish, unread."""
        job = self._queue.remove(key)
        if job is not None:
            self._tell_depth(job.shape.model)
            self._tell_left()

    def backlog_s(self) -> float:
        """Seconds until the device will be through with everything that waits now."""
        return self._pace.seconds_for(self._running) + self._pace.seconds_for(self._queue.waiting)

    def busy_s(self) -> float:
        """For how long the batch that runs now has been running; 0 where none runs."""
        return 0.0 if self._running_since_s is None else self._clock() - self._running_since_s

    def silent_s(self) -> float:
        """Since when the device has not answered; it is asked every few seconds where there is nothing else to do."""
        return self._clock() - self._answered_s

    async def finished(self, slot: str | None = None) -> None:
        """Wait until nothing waits and nothing runs, of one slot or at all."""
        while any(slot in (None, job.shape.slot) for job in (*self._running, *self._queue.waiting)):
            await self._left.wait()

    async def run(self) -> None:
        """Serve for ever: whenever the device is free, whatever waits goes to it.

        Raises:
            DeviceLost: the device failed where it had nothing else to do.
        """
        while True:
            for job in expired(self._queue.waiting, self._clock()):
                self._take((job,))
                late = DeadlineExceeded("the request's deadline passed while it waited for the device")
                self._reply(job, Done(late, self._clock() - job.enqueued_s, 0.0))
                self._tell_left()
            jobs = next_batch(self._queue.waiting, self._limits, self._caps)
            if not jobs:
                await self._pause()
                continue
            self._take(jobs)
            self._running = jobs
            await self._answer(jobs)
            self._running = ()
            self._tell_left()

    async def _pause(self) -> None:
        """Until a job arrives, or for a while; then see that the device is there still."""
        self._arrived.clear()
        try:
            async with asyncio.timeout(self._idle_s):
                await self._arrived.wait()
        except TimeoutError:
            try:
                await self._on_device(self._runner.ping)
            except Exception as error:
                raise DeviceLost(f"the device does not work any more: {error}") from error

    def _take(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._queue.remove(job.key)
        self._tell_depth(jobs[0].shape.model)

    def _tell_left(self) -> None:
        """Wake whoever waits for jobs to leave."""
        self._left.set()
        self._left = asyncio.Event()

    def _tell_depth(self, model: str) -> None:
        self._metrics.queue_depth(model, self._queue.depth(model))
        self._metrics.queue_pixels(self._queue.pixels)

    async def _answer(self, jobs: Sequence[Job]) -> None:
        """Run jobs of one shape and reply to each; what cannot run together runs in smaller parts."""
        shape = jobs[0].shape
        started = self._clock()
        try:
            outputs = await self._run(jobs)
        except OutOfDeviceMemory:
            batch = self._tell_batch(jobs, started, OUT_OF_MEMORY)
            if len(jobs) > 1:
                half = len(jobs) // 2
                if len(self._caps) >= MAX_CAPS:
                    self._caps.clear()  # learnt again where it still matters
                self._caps[shape] = min(half, self._caps.get(shape, half))
                with within(batch):
                    log.warning("out of device memory", model=shape.model, images=len(jobs), next_limit=half)
                await self._answer(jobs[:half])
                await self._answer(jobs[half:])
                return
            full = Overloaded("the device has no memory left for this image; try again later or send a smaller one")
            self._reply(jobs[0], Done(full, started - jobs[0].enqueued_s, self._clock() - started), batch)
        except Exception:  # the boundary to the network: whatever it met, each job must be answered
            ids = [job.request_id for job in jobs]
            batch = self._tell_batch(jobs, started, Internal.code)
            with within(batch):
                log.exception("batch failed", model=shape.model, images=len(jobs), request_ids=ids)
            if len(jobs) > 1:  # one bad input must not cost its neighbours their answers
                for job in jobs:
                    await self._answer((job,))
                return
            broken = Internal("the model could not answer this image; the worker's log says why")
            self._reply(jobs[0], Done(broken, started - jobs[0].enqueued_s, self._clock() - started), batch)
        else:
            seconds = self._clock() - started
            self._pace.ran(shape, len(jobs), seconds)
            self._metrics.batch(shape.model, len(jobs), seconds)
            batch = self._tell_batch(jobs, started)
            for job, output in zip(jobs, outputs, strict=True):
                self._reply(job, Done(output, started - job.enqueued_s, seconds), batch)

    async def _run(self, jobs: Sequence[Job]) -> tuple[RawOutput, ...]:
        batch = Batch(
            # One copy, into the contiguous array that goes to the device.
            pixels=np.stack([job.input.pixels for job in jobs]),
            geometries=tuple(job.input.geometry for job in jobs),
            params=tuple(job.params for job in jobs),
        )
        return await self._on_device(self._runner.run, jobs[0].shape.slot, batch)

    async def _on_device(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        def run() -> T:
            self._running_since_s = self._clock()  # not before: the thread may have a model to load first
            return function(*arguments)

        try:
            result = await asyncio.get_running_loop().run_in_executor(self._device_thread, run)
        finally:
            self._running_since_s = None
        self._answered_s = self._clock()
        return result

    def _reply(self, job: Job, done: Done, batch: Span = NO_SPAN) -> None:
        self._metrics.waited(job.shape.model, done.queue_s)
        if job.span.recording:
            tell_job(job, done, batch)
        job.reply(done)

    def _tell_batch(self, jobs: Sequence[Job], started_s: float, error: str = "") -> Span:
        if not any(job.span.recording for job in jobs):
            return NO_SPAN
        return tell_batch(self._tracing, self._runner, jobs, started_s, self._clock(), error)
