"""When jobs would be answered, which of them are admitted, and Retry-After. Messages carry these to the front-ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from model.errors import ConvMLPError
from service.errors import DeadlineExceeded, Overloaded, too_late
from service.wire.messages import WaitEstimate
from service.worker.batching import BatchSizeLimits, LatencyEstimator, overlap_s, plan_batch
from service.worker.queue import JobQueue
from service.worker.types import Job, RunningBatch, Shape

MARGIN = 1.2
"""Factor on the expected wait before a job's own batch: an estimate that is met on average is missed half of the time.
"""


class Admission:
    """Admits jobs to the queue and removes those that would be answered too late.

    `running` has the batches on the device's `lanes`; its owner keeps it up to date. `can_overlap`: see `Runner`.
    """

    def __init__(
        self,
        queue: JobQueue,
        running: Sequence[RunningBatch],
        latency: LatencyEstimator,
        limits: BatchSizeLimits,
        lanes: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        can_overlap: bool = False,
    ) -> None:
        self._queue = queue
        self._running = running
        self._latency = latency
        self._limits = limits
        self._lanes = lanes
        self._can_overlap = can_overlap
        self._clock = clock

    @property
    def outstanding_images(self) -> int:
        """Images that wait or run."""
        return self._queue.images + sum(len(batch.jobs) for batch in self._running)

    def drain_s(self) -> float:
        """Expected seconds until the device has finished everything that runs and waits now.

        This is the Retry-After of a refused job, and of the worker in its State.
        """
        return (self._running_s() + self._queue.seconds) / self._lanes

    def admit(self, job: Job) -> None:
        """Put a job into the queue.

        A job is refused if its answer is expected after its deadline, or would delay that of a job with a later one
        beyond that. (`MARGIN` is what earlier deadlines may take of the time of later ones.) Where nothing runs or
        waits it is always admitted: a refusal would help no other job, and an estimate that is too high would never be
        corrected. A job whose deadline has passed is admitted too, and answered with DeadlineExceeded by `remove_late`.

        Raises:
            Overloaded: it would be answered too late, or the queue is full.
        """
        image_s = self._latency.image_s(job.shape, job.output_pixels)
        drain_s = self.drain_s() if self._running or self._queue.images else 0.0
        if drain_s:
            left_s = job.deadline_s - self._clock()
            # Most jobs keep a bound that costs less than the estimate: all that waits is before them. There may be more
            # where other models get jobs meanwhile.
            bound_s = MARGIN * drain_s + image_s * self._limits.configured(job.shape)
            if left_s > 0 and (left_s < bound_s or self._queue.is_mixed):
                answered_s = self._answered_s(job.shape, image_s, job.deadline_s)
                if answered_s > left_s:
                    raise too_late(answered_s, drain_s)
                if self._delays_others(job, image_s):
                    raise Overloaded(
                        "an answer in time would make requests late that were accepted before; try again later", drain_s
                    )
        self._queue.put(job, image_s, drain_s)

    def remove_late(self) -> list[tuple[Job, ConvMLPError]]:
        """Remove from the queue what cannot be answered in time any more, even by all lanes, with each job's error: it
        would cost other jobs device time. A job that waits alone is tried."""
        queue, now_s = self._queue, self._clock()
        late: list[tuple[Job, ConvMLPError]] = []
        for model in tuple(queue.models):
            while (of_model := queue.models.get(model)) is not None:
                deadline_s, _, job, _ = of_model.entries[0]
                if deadline_s <= now_s:
                    error: ConvMLPError = DeadlineExceeded("timed out while the request waited for the device")
                elif (
                    queue.images > 1
                    and deadline_s < now_s + self._latency.image_s(job.shape, job.output_pixels) / self._lanes
                ):
                    error = Overloaded("the deadline is too near for an answer", self.drain_s())
                else:
                    break
                queue.remove(job.key)
                late.append((job, error))
        return late

    def wait_estimate(self, shape: Shape, budget_s: float, output_pixels: int = 0) -> WaitEstimate:
        """The expected wait of another job of a shape, and with an output of the size, that arrives now and is due in
        `budget_s` seconds."""
        image_s = self._latency.image_s(shape, output_pixels)
        answered_s = self._answered_s(shape, image_s, self._clock() + budget_s)
        return WaitEstimate(answered_s, MARGIN * image_s / self._lanes)

    def _answered_s(self, shape: Shape, image_s: float, deadline_s: float) -> float:
        """Expected seconds until the end of the batch of a job that arrives now.

        Only what is served before the job counts: see `JobQueue.seconds_before`. (Under a load that cannot be served
        some of what other models have beyond their shares is removed as late.)
        """
        queue = self._queue
        waiting = others = 0
        ahead_s = self._running_s() if self._running else 0.0
        if queue.images:
            before_s = queue.seconds_before(shape.model, deadline_s, self._clock(), self._lanes, ahead_s)
            ahead_s += before_s + self._companions_s(shape)
            waiting = queue.depth_of(shape)
            others = queue.images - waiting
        plan = plan_batch(self._lanes, waiting + 1, others, self._limits.max_images(shape), self._lanes)
        batch_s = plan.images * (image_s + self._latency.longer_s(shape))
        answered_s = MARGIN * ahead_s / self._lanes + batch_s / plan.lanes
        if self._can_overlap:
            answered_s = min(answered_s, self._overlapping_s(shape, image_s, deadline_s))
        return answered_s

    def _companions_s(self, shape: Shape) -> float:
        """Seconds of one lane that jobs with later deadlines are expected to take before a job, because they have the
        shapes of jobs before it and share their batches: half of the places that these leave."""
        return sum(
            -len(entries) % self._limits.max_images(other) * self._latency.image_s(other) / 2
            for of_model in self._queue.models.values()
            for other, entries in of_model.shapes.items()
            if other != shape
        )

    def _overlapping_s(self, shape: Shape, image_s: float, deadline_s: float) -> float:
        """As `_answered_s`, if the job overlaps the running batches after those of its model; infinity: it cannot."""
        now_s = self._clock()
        if not 0.0 < image_s <= overlap_s(self._running, now_s):
            return math.inf
        before_s = sum(batch.left_s(now_s) for batch in self._running if batch.overlaps)
        if (of_model := self._queue.models.get(shape.model)) is not None:
            before_s += of_model.seconds_until(deadline_s)
        return (MARGIN * before_s + image_s) * (self._lanes + 1) / self._lanes

    def _delays_others(self, job: Job, image_s: float) -> bool:
        """Whether jobs that were admitted would be late if this one were served before them."""
        now_s, before_s = self._clock(), self._running_s() + image_s
        # A job is answered when its batch ends, and it may be the first of the batch.
        rest = self._limits.max_images(job.shape) - 1
        return any(
            now_s + (before_s + until_s + rest * entry.seconds) / self._lanes > entry.deadline_s
            for entry, until_s in self._queue.later(job.shape.model, job.deadline_s)
        )

    def _running_s(self) -> float:
        """Seconds of one lane that all running batches are expected to take from now on."""
        now_s = self._clock()
        return sum([batch.left_s(now_s) for batch in self._running])
