"""Between queue and device: its lanes and threads, which jobs run next, and the replies to each batch.

The loop: `worker.py` receives jobs; `Dispatcher.step` publishes the batches that ended, refuses late jobs, and
schedules and forwards batches while lanes are free.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import structlog

from model.errors import NotFinite
from service.errors import Overloaded
from service.observability.histograms import exemplar_of
from service.observability.metrics import WorkerMetrics
from service.observability.tracing import NO_SPAN, NO_TRACING, Span, Tracing, within
from service.worker.admission import Admission
from service.worker.batching import BatchSizeLimits, LatencyEstimator, Retries, Scheduler, make_batch
from service.worker.device_thread import DeviceThread
from service.worker.job_spans import batch_span, trace_job
from service.worker.queue import JobQueue
from service.worker.runner import DeviceLost, Outputs, Runner
from service.worker.types import Job, JobKey, JobResult, RunningBatch, Shape

IDLE_S = 5.0
"""An idle device is pinged this often."""
TRIAL_WAIT_S = 1.0
"""A batch that only measures a model waits for so long while jobs wait: a model that is loaded becomes ready on a busy
device too."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class DeviceCall(Generic[T]):
    """A function that runs on some lanes, in one thread. `result` and the times are set once they are known.

    `started_s` is None until the thread takes the call: the first thread may have a model to load before.
    """

    function: Callable[[], T]
    on_done: Callable[[DeviceCall[T]], None]
    lanes: int
    thread: int
    started_s: float | None = None
    ended_s: float = 0.0
    result: T | Exception | None = None


class DeviceExecutor:
    """The device's lanes and their threads. It runs several calls at once, each on some lanes and in one thread.

    `first` is the thread in which models are put on the device; the other threads are made here. `free` lanes have
    no call. Where it `can_overlap`, one more call may run in a thread of its own beside those that hold all lanes.

    Calls on several lanes use the first threads, calls on one lane the last. OpenMP keeps a team of threads for each
    thread that ever computed on several cores, and once these are more than the cores, all of them sleep after each
    layer of a network: a lone ConvMLP-S on two cores then takes 17 ms instead of 11.
    """

    def __init__(
        self, lanes: int, first: DeviceThread, clock: Callable[[], float] = time.monotonic, *, can_overlap: bool = False
    ) -> None:
        self.lanes = lanes
        self.free = lanes
        self.can_overlap = can_overlap
        """And no call overlaps now."""
        self._clock = clock
        others = [DeviceThread(f"lane-{number}") for number in range(2, lanes + 1 + can_overlap)]
        self._threads = [first, *others]
        self._idle = list(range(lanes))
        """Indices of `_threads` without a call, rising."""
        self._calls: list[DeviceCall[Any]] = []
        self._answered_s = clock()

    def run(self, lanes: int, function: Callable[[], T], on_done: Callable[[DeviceCall[T]], None]) -> None:
        """Call a function in a thread, and `on_done` in the event loop afterwards. So many lanes must be free; with 0
        lanes it overlaps the other calls."""
        if lanes:
            thread = self._idle.pop(0 if lanes > 1 else -1)
        else:
            thread, self.can_overlap = self.lanes, False
        call = DeviceCall(function, on_done, lanes, thread)
        self.free -= lanes
        self._calls.append(call)
        self._threads[call.thread].post(partial(self._work, call, asyncio.get_running_loop()))

    def busy_s(self) -> float:
        """For how many seconds the oldest running call has been running; 0 where none runs."""
        started_s = [call.started_s for call in self._calls if call.started_s is not None]
        return self._clock() - min(started_s) if started_s else 0.0

    def silent_s(self) -> float:
        """For how many seconds the device, or a lane with a call, has not answered."""
        return max(self.busy_s(), self._clock() - self._answered_s)

    def close(self) -> None:
        """Let the threads end after their present calls, whose results are dropped."""
        for thread in self._threads[1:]:
            thread.shutdown(wait=False)

    def _work(self, call: DeviceCall[T], loop: asyncio.AbstractEventLoop) -> None:
        """In the call's thread."""
        call.started_s = self._clock()
        try:
            call.result = call.function()
        except Exception as error:  # passed to `on_done`
            call.result = error
        call.ended_s = self._clock()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._finish, call)

    def _finish(self, call: DeviceCall[T]) -> None:
        self._calls.remove(call)
        if call.lanes:
            insort(self._idle, call.thread)
        else:
            self.can_overlap = True
        self.free += call.lanes
        self._answered_s = call.ended_s
        call.on_done(call)


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

    def step(self, ended: RunningBatch | None = None, call: DeviceCall[Outputs] | None = None) -> None:
        """Publish the batch whose call ended, if any, then start what can be started. The caller has admitted all jobs
        that have arrived, so that a burst is seen as one."""
        self._step_due = False
        if self._failure is None or self._failure.done():
            return
        try:
            if ended is not None and call is not None:
                self._publish(ended, call)
                if self._on_replies is not None:
                    self._on_replies()
            if self._queue.images and (self.executor.free or self.executor.can_overlap):
                now_s = self._clock()
                for job, error in self.admission.remove_late():
                    self._reply(job, JobResult(error, now_s - job.enqueued_s, 0.0))
            retries = self._retries
            while self.executor.free and (self._queue.images or self._trials or retries.parts or retries.alone):
                if (batch := self._schedule()) is None:
                    break
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
        """The next batch, where a lane is free and something waits. None: it must wait for more lanes."""
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
        self.executor.run(lanes, partial(self._compute, batch), partial(self.step, batch))

    def _compute(self, batch: RunningBatch) -> Outputs:
        """In a lane's thread. Inputs are copied into the batch here, where it delays nothing else."""
        return self._runner.run(batch.jobs[0].shape.slot, make_batch(batch.jobs), batch.lanes)

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
        span = (
            batch_span(self._tracing, self._runner, jobs, call.started_s, call.ended_s, outputs)
            if self._tracing.on
            else NO_SPAN
        )
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
        metrics = self._metrics.models[shape.model]
        metrics.batch_size.add((len(jobs), None))
        metrics.images.inc(len(jobs))
        metrics.busy.inc(infer_s * part)
        observed_s = infer_s, exemplar_of(span.ids, infer_s) if self._tracing.on else None
        last: dict[bytes, Job] = {}
        """By front-end: its last job that has an output."""
        for job, output in zip(jobs, outputs, strict=True):
            if not isinstance(output, NotFinite):
                last[job.key[0]] = job
        for job, output in zip(jobs, outputs, strict=True):
            if isinstance(output, NotFinite):
                self._count_not_finite(job)
            metrics.infer.add(observed_s)  # each image took as long as its batch
            is_last = last.get(job.key[0]) is job
            self._reply(job, JobResult(output, call.started_s - job.enqueued_s, infer_s, len(jobs), is_last), span)

    def _count_not_finite(self, job: Job) -> None:
        self._metrics.models[job.shape.model].not_finite.inc()
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
        exemplar = exemplar_of(job.span.ids, result.queue_s) if is_traced else None
        self._metrics.models[job.shape.model].queue.add((result.queue_s, exemplar))
        if is_traced:
            trace_job(job, result, batch)
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


def _set_unless_done(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)
