"""How long jobs take on the device, which jobs are admitted, and Retry-After.

All estimates of time are made here. Messages carry them to the front-ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from model.errors import ConvMLPError
from service.errors import DeadlineExceeded, Overloaded, too_late
from service.wire.messages import WaitEstimate
from service.worker.batching import BatchSizeLimits, overlap_s, plan_batch
from service.worker.queue import JobQueue
from service.worker.types import Job, RunningBatch, Shape

MARGIN = 1.2
"""Factor on the expected wait before a job's own batch: an estimate that is met on average is missed half of the time.
"""
SMOOTHING = 0.2
"""Weight of the latest batch in the mean of `LatencyEstimator`."""
MIN_DIFFERENCE = 0.5
"""Of an output's pixels from the mean, as a part of them: times of more equal ones differ mostly by chance."""
DEVIATIONS = 2.0
"""A batch seldom takes longer than expected by more than so many times the mean of its differences."""
MAX_KNOWN = 256
"""Shapes, and slots, whose speed is kept."""


class LatencyEstimator:
    """Seconds of one lane that an image takes, by shape: an exponential mean over batches.

    Only batches on one lane count: several lanes together take longer for an image, and a batch gets them only while
    there is little to do. The first batch of a shape does not count: it chooses kernels and allocates memory, and an
    estimate made from it would refuse jobs without a reason. Until the second one a shape is as fast by pixels as the
    fastest batch of its model since the last trial. How much the times of a shape vary is estimated too.

    A segmenter also computes as many pixels as its picture has, whatever the network's input. The seconds of such a
    pixel are learned, for a slot, from batches of one shape with pictures of other sizes; until then they are 0.
    """

    def __init__(self) -> None:
        self._seconds: dict[Shape, tuple[float, float, float] | None] = {}
        """Of an image, and its output's pixels: means. Also the mean of how far the seconds are from expected ones."""
        self._by_pixel: dict[str, float] = {}
        self._outputs: dict[str, tuple[float, float]] = {}
        """By slot, over differences of outputs within a shape: sums of pixels times seconds, and of pixels squared."""

    def record_trial(self, shape: Shape, images: int, seconds: float) -> None:
        """Record a trial: a batch of `images` took `seconds` on one lane."""
        self._by_pixel[shape.slot] = seconds / images / shape.pixels
        self._forget()

    def record(self, shape: Shape, images: int, seconds: float, output_pixels: int = 0) -> None:
        """Record a batch of `images`, with `output_pixels` in all, that took `seconds` on one lane."""
        known = shape in self._seconds
        image_s, output, before = seconds / images, output_pixels / images, self._seconds.pop(shape, None)
        if not known:
            self._seconds[shape] = None
        else:
            if before is None:
                self._seconds[shape] = image_s, output, 0.0
            else:
                mean_s, mean, deviation_s = before
                off_s = abs(image_s - self._seconds_of(shape, before, output))
                if output:
                    self._learn_output(shape.slot, image_s - mean_s, output - mean, output)
                self._seconds[shape] = (
                    mean_s + SMOOTHING * (image_s - mean_s),
                    mean + SMOOTHING * (output - mean),
                    deviation_s + SMOOTHING * (off_s - deviation_s),
                )
            input_s = image_s - self._output_pixel_s(shape.slot) * output if output else image_s
            fastest = self._by_pixel.pop(shape.slot, math.inf)
            self._by_pixel[shape.slot] = min(fastest, max(input_s, 0.0) / (shape.height * shape.width))
        if len(self._seconds) > MAX_KNOWN or len(self._by_pixel) > MAX_KNOWN:
            self._forget()

    def image_s(self, shape: Shape, output_pixels: int | None = None) -> float:
        """Expected seconds of one lane for an image; 0 where nothing is known.

        `output_pixels`: those of its output; None: as many as images of the shape have had.
        """
        known = self._seconds.get(shape)
        if known is None:
            known = self._by_pixel.get(shape.slot, 0.0) * shape.height * shape.width, 0.0, 0.0
        return self._seconds_of(shape, known, output_pixels)

    def longer_s(self, shape: Shape) -> float:
        """Seconds of one lane by which an image seldom takes longer than expected; 0 where nothing is known."""
        known = self._seconds.get(shape)
        return 0.0 if known is None else DEVIATIONS * known[2]

    def _seconds_of(self, shape: Shape, known: tuple[float, float, float], output_pixels: float | None) -> float:
        """As `image_s`, from what is recorded for a shape."""
        seconds, mean, _ = known
        if not output_pixels or output_pixels == mean:
            return seconds
        output_pixel_s = self._output_pixel_s(shape.slot)
        if mean:
            output_pixel_s = min(output_pixel_s, seconds / mean)
        return seconds + output_pixel_s * (output_pixels - mean)

    def _learn_output(self, slot: str, more_s: float, more: float, output: float) -> None:
        """Learn from an image that had `more` output pixels than others of its shape, and took `more_s` longer."""
        if abs(more) < MIN_DIFFERENCE * output:
            return
        products, squares = self._outputs.pop(slot, (0.0, 0.0))
        kept = 1 - SMOOTHING
        self._outputs[slot] = kept * products + more * more_s, kept * squares + more * more

    def _output_pixel_s(self, slot: str) -> float:
        """Seconds of an output's pixel, by least squares; 0 where nothing is known."""
        products, squares = self._outputs.get(slot, (0.0, 1.0))
        return max(0.0, products / squares)

    def _forget(self) -> None:
        """Drop what was recorded longest ago."""
        if len(self._seconds) > MAX_KNOWN:
            del self._seconds[next(iter(self._seconds))]
        if len(self._by_pixel) > MAX_KNOWN:
            del self._by_pixel[next(iter(self._by_pixel))]
        if len(self._outputs) > MAX_KNOWN:
            del self._outputs[next(iter(self._outputs))]


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
