"""Between queue and device: which jobs run next, on which lanes, and the replies to each batch.

The loop: `worker.py` receives jobs; `Dispatcher.step` publishes the batches that ended, refuses late jobs, and
schedules and forwards batches while lanes are free.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import structlog

from model.errors import ConvMLPError, NotFinite
from model.types import Batch, RawOutput
from service.errors import Internal, Overloaded
from service.observability.metrics import WorkerMetrics
from service.observability.tracing import NO_SPAN, NO_TRACING, Span, Tracing, within
from service.worker.admission import Admission
from service.worker.batching import BatchSizeLimits, LatencyEstimator, Scheduler
from service.worker.device_executor import DeviceCall, DeviceExecutor
from service.worker.device_thread import DeviceThread
from service.worker.queue import JobQueue
from service.worker.runner import DeviceLost, OutOfDeviceMemory, Runner
from service.worker.types import Job, JobKey, JobResult, RunningBatch, Shape

IDLE_S = 5.0
"""An idle device is pinged this often."""
TRIAL_WAIT_S = 1.0
"""A batch that only measures a model waits for so long while jobs wait: a model that is loaded becomes ready on a busy
device too."""
OUT_OF_MEMORY = "out-of-device-memory"
"""Error code of a batch's span."""

Outputs = tuple[RawOutput | NotFinite, ...]

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Dispatcher:
    """Runs jobs in batches on the device's lanes, and replies to each job once.

    `on_replies` is called after the replies of a step; `on_not_finite` when the output of a request is not finite.
    """

    def __init__(
        self,
        runner: Runner,
        device_thread: DeviceThread,
        queue: JobQueue,
        limits: BatchSizeLimits,
        metrics: WorkerMetrics,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing = NO_TRACING,
        idle_s: float = IDLE_S,
        on_replies: Callable[[], None] | None = None,
        on_not_finite: Callable[[], None] | None = None,
    ) -> None:
        self._runner = runner
        self.executor = DeviceExecutor(runner.lanes, device_thread, clock, can_overlap=runner.can_overlap)
        self._idle_s = idle_s
        self._on_replies = on_replies
        self._on_not_finite = on_not_finite
        self._queue = queue
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._tracing = tracing
        self._latency = LatencyEstimator()
        self._scheduler = Scheduler(queue, limits, self._latency, runner.lanes, runner.max_lanes_per_batch)
        self._running: list[RunningBatch] = []
        self._ended: deque[tuple[RunningBatch, DeviceCall[Outputs]]] = deque()
        self.admission = Admission(
            queue, self._running, self._latency, limits, runner.lanes, clock, can_overlap=runner.can_overlap
        )
        metrics.watch_queue(queue.depth, lambda: queue.pixels)
        self._retries = Retries(limits)
        self._trials: deque[tuple[RunningBatch, float]] = deque()
        """With the times since when they wait."""
        self._step_due = False
        self._progress: asyncio.Event | None = None
        """Set at the next change, where somebody waits for one."""
        self._failure: asyncio.Future[None] | None = None
        """While `run` runs: takes the error that ends it."""

    def submit(self, job: Job) -> None:
        """Admit a job and take a step soon."""
        self.admit(job)
        self._step_soon()

    def admit(self, job: Job) -> None:
        """Queue a job for the next `step`, or reply to it at once with why not."""
        try:
            self.admission.admit(job)
        except Overloaded as refusal:
            job.reply(job, JobResult(refusal, 0.0, 0.0))
            return
        self._scheduler.arrived(self.executor.free, self._clock())

    def cancel(self, key: JobKey) -> None:
        """Drop a job that still waits, without a reply. A job that runs is finished and replied to."""
        if self._queue.remove(key) is not None:
            self._step_soon()

    def step(self) -> None:
        """Publish what ended, then start what can be started. The caller has admitted all jobs that have arrived, so
        that a burst is seen as one."""
        self._step_due = False
        if self._failure is None or self._failure.done():
            return
        try:
            if self._ended:
                while self._ended:
                    self._publish(*self._ended.popleft())
                if self._on_replies is not None:
                    self._on_replies()
            if self._queue.images and (self.executor.free or self.executor.can_overlap):
                now_s = self._clock()
                for job, error in self.admission.remove_late():
                    self._reply(job, JobResult(error, now_s - job.enqueued_s, 0.0))
            while self.executor.free and (batch := self._schedule()) is not None:
                self._forward(batch)
            if self.executor.can_overlap and not self.executor.free and self._queue.images:
                self._overlap()
            if self._progress is not None:
                self._progress.set()
                self._progress = None
        except Exception as error:  # raised by `run`
            self._failure.set_exception(error)

    async def time_batch(self, job: Job, images: int, lanes: int = 1) -> float:
        """Run a batch that holds one job `images` times on so many lanes, without a reply; its seconds.

        It waits until the lanes are free and no job waits, but no longer than `TRIAL_WAIT_S`. Other batches run beside
        it and between trials.

        Raises:
            OutOfDeviceMemory: the batch did not fit.
            Exception: any other failure of the network.
        """
        ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._trials.append((RunningBatch((job,) * images, lanes, trial=ended), self._clock()))
        self._step_soon()
        return await ended

    def recall_trial(self, shape: Shape, images: int, seconds: float) -> None:
        """Use the time of a trial of an earlier process: a batch of `images` took `seconds` on one lane."""
        self._latency.record_trial(shape, images, seconds)

    async def wait_until_done(self, slot: str | None = None) -> None:
        """Wait until no job of a slot, or no job at all, waits or runs."""
        while self._has(slot):
            self._progress = self._progress or asyncio.Event()
            await self._progress.wait()

    async def run(self) -> None:
        """Serve until cancelled: a lane that is free gets a batch as soon as a job waits.

        Raises:
            DeviceLost: the device failed while it was idle.
        """
        loop = asyncio.get_running_loop()
        self._failure = loop.create_future()
        heartbeat = loop.create_task(self._keep_pinging())
        self._step_soon()
        try:
            done, _ = await asyncio.wait((self._failure, heartbeat), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._failure = None
            heartbeat.cancel()

    def close(self) -> None:
        """Let the threads end by themselves; results of running batches are dropped."""
        self.executor.close()

    def _step_soon(self) -> None:
        """Step after everything that has arrived already, so that a burst is seen as one."""
        if not self._step_due and self._failure is not None:
            self._step_due = True
            asyncio.get_running_loop().call_soon(self.step)

    def _schedule(self) -> RunningBatch | None:
        """The next batch, where a lane is free. None: nothing waits, or it must wait for more lanes."""
        free, lanes, queue, retries = self.executor.free, self.executor.lanes, self._queue, self._retries
        if retries.alone:
            return RunningBatch(retries.alone.popleft(), lanes) if not self._running else None
        if retries.parts:
            jobs = retries.parts.popleft()
            return RunningBatch(jobs, self._scheduler.lanes_of_one(free, 1 + len(retries.parts) + queue.images))
        now_s = self._clock()
        if self._trials and (not queue.images or now_s - self._trials[0][1] >= TRIAL_WAIT_S):
            return self._trials.popleft()[0] if self._trials[0][0].lanes <= free else None
        return self._scheduler.next(free, self._running, now_s) if queue.images else None

    def _overlap(self) -> None:
        """Start a short batch beside the long ones that hold all lanes, where one waits."""
        batch = self._scheduler.overlapping(self._running, self._clock())
        if batch is not None:
            self._forward(batch)

    def _forward(self, batch: RunningBatch) -> None:
        """Start a batch on the device."""
        self._scheduler.started(batch, self._clock())
        self._running.append(batch)
        lanes = 0 if batch.overlaps else batch.lanes
        self.executor.run(lanes, partial(self._compute, batch), partial(self._on_ended, batch))

    def _compute(self, batch: RunningBatch) -> Outputs:
        """In a lane's thread. Inputs are copied into the batch here, where it delays nothing else."""
        finite: list[RawOutput | NotFinite] = []
        for output in self._runner.run(batch.jobs[0].shape.slot, make_batch(batch.jobs), batch.lanes):
            finite.append(output if output.finite else NotFinite())
        return tuple(finite)

    def _on_ended(self, batch: RunningBatch, call: DeviceCall[Outputs]) -> None:
        self._ended.append((batch, call))
        self.step()

    def _publish(self, batch: RunningBatch, call: DeviceCall[Outputs]) -> None:
        """Reply to each job of a batch that ended. Where it failed, smaller parts of it may run again instead."""
        self._running.remove(batch)
        jobs, shape, outputs = batch.jobs, batch.jobs[0].shape, call.result
        assert call.started_s is not None
        assert outputs is not None
        infer_s = call.ended_s - call.started_s
        if batch.trial is not None:
            self._end_trial(batch, outputs, infer_s)
            return
        self._scheduler.ended(batch, infer_s)
        span = self._trace_batch(jobs, call) if self._tracing.on else NO_SPAN
        if isinstance(outputs, Exception):
            with within(span):
                was_alone = batch.lanes == self.executor.lanes and not batch.overlaps and not self._running
                error = self._retries.on_batch_error(outputs, jobs, was_alone)
            if error is not None:
                self._reply(jobs[0], JobResult(error, call.started_s - jobs[0].enqueued_s, infer_s), span)
            return
        if batch.lanes == 1 and not batch.overlaps:
            output_pixels = sum(job.output_pixels for job in jobs) if jobs[0].output_pixels else 0
            self._latency.record(shape, len(jobs), infer_s, output_pixels)
        part = 0.0 if batch.overlaps else batch.lanes / self.executor.lanes
        self._metrics.batch(shape.model, len(jobs), infer_s, part, span.ids if self._tracing.on else None)
        last: dict[bytes, Job] = {}
        """By front-end: its last job that has an output."""
        for job, output in zip(jobs, outputs, strict=True):
            if not isinstance(output, NotFinite):
                last[job.key[0]] = job
        for job, output in zip(jobs, outputs, strict=True):
            if isinstance(output, NotFinite):
                self._count_not_finite(job)
            is_last = last.get(job.key[0]) is job
            self._reply(job, JobResult(output, call.started_s - job.enqueued_s, infer_s, len(jobs), is_last), span)

    def _count_not_finite(self, job: Job) -> None:
        self._metrics.not_finite(job.shape.model)
        log.error("output is not finite", model=job.shape.model, request_id=job.request_id)
        if job.request_id and self._on_not_finite is not None:  # else it is a self-check, which sees for itself
            self._on_not_finite()

    def _end_trial(self, batch: RunningBatch, outputs: Outputs | Exception, seconds: float) -> None:
        if batch.lanes == 1 and not isinstance(outputs, Exception):
            self._latency.record_trial(batch.jobs[0].shape, len(batch.jobs), seconds)
        if batch.trial is None or batch.trial.done():  # its caller may have been cancelled
            return
        if isinstance(outputs, Exception):
            batch.trial.set_exception(outputs)
        else:
            batch.trial.set_result(seconds)

    def _reply(self, job: Job, result: JobResult, batch: Span = NO_SPAN) -> None:
        is_traced = self._tracing.on and job.span.recording
        self._metrics.waited(job.shape.model, result.queue_s, job.span.ids if is_traced else None)
        if is_traced:
            _trace_job(job, result, batch)
        job.reply(job, result)

    async def _keep_pinging(self) -> None:
        """Ping the device whenever it is idle. (A finished batch proves it alive as well.)

        Raises:
            DeviceLost: the device failed.
        """
        executor = self.executor
        while True:
            await asyncio.sleep(self._idle_s)
            if executor.free < executor.lanes or self._queue.images:
                continue
            answered: asyncio.Future[DeviceCall[None]] = asyncio.get_running_loop().create_future()
            executor.run(executor.lanes, self._runner.ping, partial(_set_unless_done, answered))
            error = (await answered).result
            if isinstance(error, Exception):
                raise DeviceLost(f"the device failed: {error}") from error
            self._step_soon()

    def _has(self, slot: str | None) -> bool:
        """Whether a job of a slot, or any job, waits or runs."""
        batches = (
            *(batch.jobs for batch in self._running),
            *self._retries.batches,
            *(trial.jobs for trial, _ in self._trials),
        )
        if slot is None:
            return bool(self._queue.images or batches)
        return self._queue.has_slot(slot) or any(jobs[0].shape.slot == slot for jobs in batches)

    def _trace_batch(self, jobs: Sequence[Job], call: DeviceCall[Outputs]) -> Span:
        """The span of a batch. It is a trace of its own, since a batch serves several requests; it is linked to those
        that are traced."""
        error = ""
        if isinstance(call.result, Exception):
            error = OUT_OF_MEMORY if isinstance(call.result, OutOfDeviceMemory) else Internal.code
        shape = jobs[0].shape
        assert call.started_s is not None
        return self._tracing.batch_span(
            "batch",
            [job.span for job in jobs],
            call.started_s,
            call.ended_s,
            {
                "convmlp.model": shape.model,
                "convmlp.batch.size": len(jobs),
                "convmlp.input.height": shape.height,
                "convmlp.input.width": shape.width,
                "convmlp.device": self._runner.device,
                "convmlp.precision": self._runner.precision(shape.slot),
            },
            error,
        )


def _set_unless_done(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _trace_job(job: Job, result: JobResult, batch: Span) -> None:
    """The spans of a job's stages, in its request's trace, linked to the batch that it ran in."""
    error = result.result.code if isinstance(result.result, ConvMLPError) else ""
    taken_s = job.enqueued_s + result.queue_s
    ran = result.infer_s > 0
    job.span.record("queue", job.enqueued_s, taken_s, error="" if ran else error)
    if ran:
        job.span.record("infer", taken_s, taken_s + result.infer_s, error=error, link=batch)


class Retries:
    """Parts of failed batches, which run again before the queue. A job is answered with an error only after it ran
    alone."""

    def __init__(self, limits: BatchSizeLimits) -> None:
        self._limits = limits
        self.parts: deque[tuple[Job, ...]] = deque()
        self.alone: deque[tuple[Job, ...]] = deque()
        """Single jobs that did not fit into memory beside other batches; they run on all lanes."""

    @property
    def batches(self) -> tuple[tuple[Job, ...], ...]:
        """Everything that waits here."""
        return (*self.alone, *self.parts)

    def on_batch_error(self, error: Exception, jobs: tuple[Job, ...], was_alone: bool) -> ConvMLPError | None:
        """Keep the jobs of a failed batch for another try. Where its only job failed for good: the error to reply."""
        if isinstance(error, OutOfDeviceMemory):
            return self._on_out_of_memory(jobs, was_alone)
        shape, ids = jobs[0].shape, [job.request_id for job in jobs]
        log.error("batch failed", model=shape.model, images=len(jobs), request_ids=ids, exc_info=error)
        if len(jobs) == 1:
            return Internal("the model could not answer this image; see the worker's log")
        self.parts.extend((job,) for job in jobs)  # one bad input must not cost its neighbours their answers
        return None

    def _on_out_of_memory(self, jobs: tuple[Job, ...], was_alone: bool) -> ConvMLPError | None:
        half = self._limits.halve(jobs[0].shape, len(jobs))
        if half:
            log.warning("out of device memory", model=jobs[0].shape.model, images=len(jobs), next_limit=half)
            self.parts.extend((jobs[:half], jobs[half:]))
        elif was_alone:
            return Overloaded("the device has no memory left for this image; try again later or send a smaller one")
        else:  # other batches may have used the memory
            self.alone.append(jobs)
        return None


def make_batch(jobs: Sequence[Job]) -> Batch:
    """The inputs of jobs of one shape: uint8 (N, h, w, 3), contiguous; row i is job i's.

    Each input is copied once, into the array that goes to the device. An input that is alone is not copied.

    Raises:
        OutOfDeviceMemory: the host has no memory for it.
    """
    try:
        if len(jobs) == 1:
            job = jobs[0]
            return Batch(np.ascontiguousarray(job.input.pixels[np.newaxis]), (job.input.geometry,), (job.params,))
        pixels = np.stack([job.input.pixels for job in jobs])
    except MemoryError as error:
        raise OutOfDeviceMemory(str(error)) from error
    return Batch(pixels, tuple([job.input.geometry for job in jobs]), tuple([job.params for job in jobs]))
