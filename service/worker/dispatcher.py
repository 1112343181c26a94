"""What becomes of the jobs of a batch that failed.

What a worker tells of batches and jobs, where a request's trace is recorded.

A batch is a trace of its own, for it belongs to several requests: it is linked to them, and their time on the device
is linked to it.

Between queue and device: jobs → Batch → Runner → replies.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import structlog

from model.errors import ConvMLPError
from model.types import RawOutput
from service.errors import Internal, Overloaded
from service.observability.metrics import WorkerMetrics
from service.observability.tracing import NO_SPAN, NO_TRACING, Span, Tracing, within
from service.wire.messages import WaitEstimate
from service.worker.admission import Admission
from service.worker.batching import BatchSizeLimits, as_batch, share
from service.worker.device_executor import DeviceExecutor, DeviceHeartbeat, Ended
from service.worker.estimates import ArrivalUtilisation, LatencyEstimator, Running, RunningBatches
from service.worker.queue import Done, Job, JobQueue, Shape
from service.worker.runner import OutOfDeviceMemory, Runner

log = structlog.get_logger(__name__)


class Retries:
    """Parts of batches that failed, which run again before what waits in the queue. A job has its error only after it
    ran by itself."""

    def __init__(self, sizes: BatchSizeLimits) -> None:
        self._sizes = sizes
        self.parts: deque[tuple[Job, ...]] = deque()
        self.alone: deque[tuple[Job, ...]] = deque()
        """Each a job for which there was no memory beside others; all others wait for it."""

    @property
    def batches(self) -> tuple[tuple[Job, ...], ...]:
        """All that wait."""
        return (*self.alone, *self.parts)

    def after(self, error: Exception, jobs: tuple[Job, ...], had_all_lanes: bool) -> ConvMLPError | None:
        """Have the jobs of a batch run again, or say which error the only one of them is answered with."""
        if isinstance(error, OutOfDeviceMemory):
            return self._did_not_fit(jobs, had_all_lanes)
        shape, ids = jobs[0].shape, [job.request_id for job in jobs]
        log.error("batch failed", model=shape.model, images=len(jobs), request_ids=ids, exc_info=error)
        if len(jobs) == 1:
            return Internal("the model could not answer this image; the worker's log says why")
        self.parts.extend((job,) for job in jobs)  # one bad input must not cost its neighbours their answers
        return None

    def _did_not_fit(self, jobs: tuple[Job, ...], had_all_lanes: bool) -> ConvMLPError | None:
        shape, half = jobs[0].shape, len(jobs) // 2
        if half:
            self._sizes.cap(shape, half)
            log.warning("out of device memory", model=shape.model, images=len(jobs), next_limit=half)
            self.parts.extend((jobs[:half], jobs[half:]))
        elif had_all_lanes:
            return Overloaded("the device has no memory left for this image; try again later or send a smaller one")
        else:  # others may have had the memory
            self.alone.append(jobs)
        return None


OUT_OF_MEMORY = "out-of-device-memory"


def trace_batch(
    tracing: Tracing, runner: Runner, jobs: Sequence[Job], started_s: float, ended_s: float, error: str
) -> Span:
    """The span of jobs that ran together; `error`: what became of them where they have no output."""
    shape = jobs[0].shape
    return tracing.batch_span(
        "batch",
        [job.span for job in jobs],
        started_s,
        ended_s,
        {
            "convmlp.model": shape.model,
            "convmlp.batch.size": len(jobs),
            "convmlp.input.height": shape.height,
            "convmlp.input.width": shape.width,
            "convmlp.device": runner.device,
            "convmlp.precision": runner.precision(shape.slot),
        },
        error,
    )


def trace_job(job: Job, done: Done, batch: Span) -> None:
    """The spans of a job's stages, in its request's trace; `batch`: the one that it ran in, if it ran."""
    error = done.result.code if isinstance(done.result, ConvMLPError) else ""
    taken_s = job.enqueued_s + done.queue_s
    ran = done.infer_s > 0
    job.span.record("queue", job.enqueued_s, taken_s, error="" if ran else error)
    if ran:
        job.span.record("infer", taken_s, taken_s + done.infer_s, error=error, link=batch)


IDLE_S = 5.0
"""A device without work is asked for a sign of life this often."""


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    jobs: tuple[Job, ...]
    ended: asyncio.Future[float]


class Dispatcher:
    """Takes jobs in, runs them in batches on the device's lanes, and sees that each is answered once."""

    def __init__(
        self,
        runner: Runner,
        device_thread: Executor,
        queue: JobQueue,
        sizes: BatchSizeLimits,
        metrics: WorkerMetrics,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing = NO_TRACING,
        idle_s: float = IDLE_S,
    ) -> None:
        self._runner = runner
        self._lanes = DeviceExecutor(runner.lanes, device_thread, clock)
        self._queue = queue
        self._metrics = metrics
        self._clock = clock
        self._tracing = tracing
        self._pace = LatencyEstimator()
        self._sizes = sizes
        self._occupancy = ArrivalUtilisation()
        self._in_hand = RunningBatches(clock)
        self._admission = Admission(queue, self._pace, sizes, runner.lanes, self._in_hand.left_s, clock)
        self._retries = Retries(sizes)
        self._trials: deque[_Trial] = deque()
        self._left: asyncio.Event | None = None
        self._alive = DeviceHeartbeat(runner, self._lanes, self._idle, clock, idle_s)
        self._over: asyncio.Future[None] | None = None
        self._look_due = False

    def submit(self, job: Job) -> None:
        """Let a job in, or answer it at once with why not."""
        try:
            self._admission.let_in(job)
        except Overloaded as refusal:
            job.reply(Done(refusal, 0.0, 0.0))
            return
        self._tell_depth(job.shape.model)
        self._occupancy.found(1 - self._lanes.free / self._lanes.count, self._clock())
        if self._lanes.free:
            self._look_soon()

    def cancel(self, key: tuple[bytes, int]) -> None:
        """Forget a job that still waits; one that runs is left to finish, unread."""
        job = self._queue.remove(key)
        if job is not None:
            self._tell_depth(job.shape.model)
            self._tell_left()

    def backlog_s(self) -> float:
        """Seconds until the device will be through with everything that runs and waits now."""
        return self._admission.backlog_s()

    def outlook(self, shape: Shape, budget_s: float) -> WaitEstimate:
        """What one more job that is due in so many seconds would find now."""
        return self._admission.outlook(shape, budget_s)

    def busy_s(self) -> float:
        """For how long the batch that has been running for longest has been; 0 where none runs."""
        return self._lanes.busy_s()

    def silent_s(self) -> float:
        """Since when the device, or a lane that is busy, has not answered.

        The device is asked every few seconds where there is nothing else to do.
        """
        return self._alive.silent_s()

    async def time(self, job: Job, images: int) -> float:
        """The seconds that one lane takes for a batch of a job, so many times; nobody is answered.

        It has its turn between other batches.

        Raises:
            OutOfDeviceMemory: so many did not fit.
            Exception: whatever else the network met.
        """
        trial = _Trial((job,) * images, asyncio.get_running_loop().create_future())
        self._trials.append(trial)
        self._look_soon()
        return await trial.ended

    async def finished(self, slot: str | None = None) -> None:
        """Wait until nothing waits and nothing runs, of one slot or at all."""
        while self._has(slot):
            self._left = self._left or asyncio.Event()
            await self._left.wait()

    async def run(self) -> None:
        """Serve for ever: whenever a lane is free, something that waits goes to it.

        Raises:
            DeviceLost: the device failed where it had nothing else to do.
        """
        loop = asyncio.get_running_loop()
        self._over = loop.create_future()
        alive = loop.create_task(self._alive.keep_asking(self._look_soon))
        self._look_soon()
        try:
            over, _ = await asyncio.wait((self._over, alive), return_when=asyncio.FIRST_COMPLETED)
            for one in over:
                one.result()
        finally:
            self._over = None
            alive.cancel()

    def close(self) -> None:
        """Let the threads go; what runs still is nobody's any more."""
        self._lanes.close()

    def _look_soon(self) -> None:
        """After all that has arrived already, so that a burst is seen as one."""
        if not self._look_due and self._over is not None:
            self._look_due = True
            asyncio.get_running_loop().call_soon(self._guard, self._look)

    def _guard(self, step: Callable[[], None]) -> None:
        """A step of `run`: after it nothing is done any more, and what goes wrong ends it."""
        if self._over is None or self._over.done():
            return
        try:
            step()
        except Exception as error:  # raised by `run`
            self._over.set_exception(error)

    def _look(self) -> None:
        """Start what can be started."""
        self._look_due = False
        for job, done in self._admission.late():
            self._tell_depth(job.shape.model)
            self._reply(job, done)
            self._tell_left()
        while self._lanes.free and self._start_next():
            pass

    def _start_next(self) -> bool:
        """Start one batch; whether there was one to start."""
        free, queue, retries = self._lanes.free, self._queue, self._retries
        if retries.alone:
            if free == self._lanes.count:
                self._serve(retries.alone.popleft(), free)
            return False
        if self._trials:
            self._try(self._trials.popleft())
        elif retries.parts:
            jobs = retries.parts.popleft()
            self._serve(jobs, min(share(free, 1, len(retries.parts) + len(queue), 1).lanes, self._widest()))
        elif queue:
            shape = queue.next().shape
            mine = queue.depth_of(shape)
            soon = self._in_hand.soon(self._pace.seconds(shape))
            part = share(free, mine, len(queue) - mine, self._sizes.most(shape), soon)
            jobs = queue.take(shape, part.images)
            self._tell_depth(shape.model)
            self._serve(jobs, min(part.lanes, self._widest()))
        else:
            return False
        return True

    def _serve(self, jobs: tuple[Job, ...], lanes: int) -> None:
        batch = self._start(jobs, lanes, self._settle)
        self._queue.shares.charge(jobs[0].shape.model, batch.expected_s)

    def _try(self, trial: _Trial) -> None:
        def settle(batch: Running, end: Ended[tuple[RawOutput, ...]]) -> None:
            if not isinstance(end.result, Exception):
                self._pace.tried(batch.jobs[0].shape, len(batch.jobs), end.seconds)
            if not trial.ended.done():  # whoever asked may have left
                if isinstance(end.result, Exception):
                    trial.ended.set_exception(end.result)
                else:
                    trial.ended.set_result(end.seconds)

        self._start(trial.jobs, 1, settle)

    def _start(
        self, jobs: tuple[Job, ...], lanes: int, settle: Callable[[Running, Ended[tuple[RawOutput, ...]]], None]
    ) -> Running:
        """Run jobs as one batch; `settle` is called with what became of it."""
        shape, run = jobs[0].shape, self._runner.run
        batch = self._in_hand.begin(jobs, lanes, len(jobs) * self._pace.seconds(shape))
        inputs, params = [job.input for job in jobs], [job.params for job in jobs]

        def ended(end: Ended[tuple[RawOutput, ...]]) -> None:
            self._in_hand.end(batch)
            self._alive.answered(end.ended_s)
            settle(batch, end)
            self._tell_left()
            self._look()

        self._lanes.run(
            lanes,
            # The batch is put together in the lane's thread: the copy holds up nobody here.
            lambda: run(shape.slot, as_batch(inputs, params), lanes),
            lambda end: self._guard(lambda: ended(end)),
        )
        return batch

    def _settle(self, batch: Running, end: Ended[tuple[RawOutput, ...]]) -> None:
        """Reply to each job of a batch; what could not run together runs again in smaller parts."""
        jobs, model, seconds = batch.jobs, batch.jobs[0].shape.model, end.seconds * batch.lanes
        self._queue.shares.charge(model, seconds - batch.expected_s)
        match end.result:
            case Exception() as error:
                memory = isinstance(error, OutOfDeviceMemory)
                span = self._tell_batch(jobs, end, OUT_OF_MEMORY if memory else Internal.code)
                with within(span):
                    answer = self._retries.after(error, jobs, batch.lanes == self._lanes.count)
                if answer is not None:
                    self._reply(jobs[0], Done(answer, end.started_s - jobs[0].enqueued_s, end.seconds), span)
            case outputs:
                if batch.lanes == 1:
                    self._pace.ran(jobs[0].shape, len(jobs), end.seconds)
                self._metrics.batch(model, len(jobs), end.seconds, batch.lanes / self._lanes.count)
                span = self._tell_batch(jobs, end)
                for job, output in zip(jobs, outputs, strict=True):
                    self._reply(job, Done(output, end.started_s - job.enqueued_s, end.seconds, len(jobs)), span)

    def _idle(self) -> bool:
        return self._lanes.free == self._lanes.count and not self._queue

    def _widest(self) -> int:
        """The most lanes that one batch should have now."""
        return max(1, round(self._runner.max_lanes_per_batch * (1 - self._occupancy.lately)))

    def _has(self, slot: str | None) -> bool:
        """Whether anything of a slot, or at all, waits or runs."""
        batches = (
            *(batch.jobs for batch in self._in_hand),
            *self._retries.batches,
            *(trial.jobs for trial in self._trials),
        )
        if slot is None:
            return bool(self._queue or batches)
        return self._queue.has_slot(slot) or any(jobs[0].shape.slot == slot for jobs in batches)

    def _tell_left(self) -> None:
        """Wake whoever waits for jobs to leave."""
        if self._left is not None:
            self._left.set()
            self._left = None

    def _tell_depth(self, model: str) -> None:
        self._metrics.queue_depth(model, self._queue.depth(model))
        self._metrics.queue_pixels(self._queue.pixels)

    def _reply(self, job: Job, done: Done, batch: Span = NO_SPAN) -> None:
        self._metrics.waited(job.shape.model, done.queue_s)
        if job.span.recording:
            trace_job(job, done, batch)
        job.reply(done)

    def _tell_batch(self, jobs: Sequence[Job], end: Ended[tuple[RawOutput, ...]], error: str = "") -> Span:
        if not any(job.span.recording for job in jobs):
            return NO_SPAN
        return trace_batch(self._tracing, self._runner, jobs, end.started_s, end.ended_s, error)
