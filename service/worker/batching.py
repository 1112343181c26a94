"""Which batch runs next: how many images of a shape share it, and how many lanes of the device it gets.

A lane is a part of the device that runs a batch by itself: a core of a CPU, a stream of a GPU. No lane is idle while a
job waits, and no job waits for others to share its batch. Waiting jobs are spread over the free lanes:

- A lone request on a quiet device gets all lanes that make it faster, as `tuning.py` measured it, because that answers
  it soonest. It gets fewer where arriving jobs found lanes taken lately: others will arrive while it runs, and two
  lanes do not make a network twice as fast, so they would lose more than it gains.
- Where more jobs wait, each batch gets fewer lanes, in the end one. Several small batches side by side are faster than
  one large batch on all cores: no core waits for the others after each layer, a core that another process takes for a
  moment delays one batch only, and the values of a small batch stay in the caches. Measured for ConvMLP-S at 224 pixels
  on two cores: two batches of 4 with one thread each give 1.28 times the images/s of one batch with two threads.
- Where batches that take long hold all lanes, one short batch may overlap them on a CPU, whose cores the operating
  system shares out: a classification does not wait until a detection of a second has ended.
- A batch has the size at which the model is fastest, as `tuning.py` measured it. It is smaller where another lane would
  run out of work, now or when its present batch ends: all lanes should finish at the same time.

While all lanes are busy, the next batches grow. Only inputs of one shape share a batch: an answer must not depend on
the other images of its batch.

`Dispatcher` runs what `Scheduler` chooses. Nothing here has a clock or a device, so that `benchmarks.tail` simulates
the same code. A batch that fails is divided: see `Retries`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from model.errors import ConvMLPError
from model.types import Batch
from service.errors import Internal, Overloaded
from service.worker.queue import JobQueue
from service.worker.runner import OutOfDeviceMemory
from service.worker.types import Job, RunningBatch, Shape

MAX_CAPS = 256
"""Shapes whose memory cap is kept."""
DECAY_S = 1.0
"""An arrival that is so many seconds old counts e times less in `ArrivalUtilisation`."""

OVERLAP_FROM_S = 0.2
"""A batch whose end is nearer than this is waited for. The usual batches of small models are shorter: to cut them costs
more than it gains."""
OVERLAP_PART = 0.25
"""Of the time to that end, the most that another batch may take meanwhile."""

SMOOTHING = 0.2
"""Weight of the latest batch in the mean of `LatencyEstimator`."""
MIN_DIFFERENCE = 0.5
"""Of an output's pixels from the mean, as a part of them: times of more equal ones differ mostly by chance."""
DEVIATIONS = 2.0
"""A batch seldom takes longer than expected by more than so many times the mean of its differences."""
MAX_KNOWN = 256
"""Shapes, and slots, whose speed is kept."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The next batch of a shape: so many of the waiting images, on at most so many lanes."""

    images: int
    lanes: int


def plan_batch(
    free: int,
    waiting: int,
    others: int,
    max_images: int,
    max_lanes: int,
    running: Sequence[RunningBatch] = (),
    image_s: float = 0.0,
    now_s: float = 0.0,
) -> BatchPlan:
    """The next batch, where at least one lane is free and a job waits.

    Args:
        free: lanes without a batch.
        waiting: images that wait of the next shape, at least one.
        others: images that wait of all other shapes.
        max_images: the most images of the next shape in one batch.
        max_lanes: the most lanes for one batch.
        running: the batches on the other lanes.
        image_s: expected seconds of one lane for an image of the next shape; 0 where that is not known.
        now_s: on the clock of `running`.
    """
    batches = min(free, waiting + others)
    lanes = batches - min(others, batches - 1)  # of the batches, those that the other shapes do not fill
    images = -(-waiting // lanes)
    if running and image_s and not others:
        images = _balanced_images(waiting, lanes, running, image_s, now_s)
    return BatchPlan(min(max_images, images), min(max_lanes, free // batches))


def _balanced_images(waiting: int, free: int, running: Sequence[RunningBatch], image_s: float, now_s: float) -> int:
    """The images of the next batch where all lanes finish at the same time, including those that are busy now."""
    waits = [batch.left_s(now_s) / batch.lanes / image_s for batch in running for _ in range(batch.lanes)]
    total, lanes = float(waiting), free
    for wait in sorted(waits):  # in the time of so many images
        if wait * lanes >= total:  # the other lanes finish before this one is free
            break
        total += wait
        lanes += 1
    # Rounded down at the half where a busy lane helps: the lane that is free first takes the rest.
    return max(1, math.ceil(total / lanes - (0.5 if lanes > free else 0.0)))


def overlap_s(running: Sequence[RunningBatch], now_s: float) -> float:
    """Seconds that a batch may be expected to take on the cores of batches that hold all lanes; 0: there is none.

    A short batch need not wait until a long one ends: it is answered after a few times its own time, and delays the
    long one by that. Two batches of about the same length would both be answered as late as the second of them.
    """
    left_s = min((batch.left_s(now_s) / batch.lanes for batch in running if not batch.overlaps), default=0.0)
    return OVERLAP_PART * left_s if left_s >= OVERLAP_FROM_S else 0.0


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
                off_s = abs(image_s - mean_s)
                if output:
                    off_s = abs(image_s - self._seconds_of(shape, before, output))
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
        return self._seconds_of(shape, known, output_pixels) if output_pixels else known[0]

    def longer_s(self, shape: Shape) -> float:
        """Seconds of one lane by which an image seldom takes longer than expected; 0 where nothing is known."""
        known = self._seconds.get(shape)
        return 0.0 if known is None else DEVIATIONS * known[2]

    def _seconds_of(self, shape: Shape, known: tuple[float, float, float], output_pixels: float) -> float:
        """As `image_s`, from what is recorded for a shape."""
        seconds, mean, _ = known
        if output_pixels == mean:
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


class BatchSizeLimits:
    """The most images of each shape in one batch: by configuration, by measured speed, and by the device's memory.

    `max_images` and `max_pixels` bound any batch; `max_pixels` counts all its inputs together.
    """

    def __init__(self, max_images: int, max_pixels: int) -> None:
        self._max_images = max_images
        self._max_pixels = max_pixels
        self._best_pixels: dict[str, int] = {}
        self._lanes: dict[str, tuple[int, int]] = {}
        """By slot: the lanes for a lone input, and its pixels."""
        self._caps: dict[Shape, int] = {}

    def configured(self, shape: Shape) -> int:
        """The most images by configuration alone; one is always allowed."""
        return max(1, min(self._max_images, self._max_pixels // (shape.height * shape.width)))

    def max_images(self, shape: Shape) -> int:
        """The most images of a shape in its next batch; one is always allowed."""
        pixels = shape.height * shape.width
        images = min(self._max_images, self._max_pixels // pixels)
        best_pixels = self._best_pixels.get(shape.slot)
        if best_pixels is not None:
            images = min(images, (2 * best_pixels + pixels) // (2 * pixels))  # rounded to the nearest
        return max(1, min(images, self._caps.get(shape, images)))

    def set_best(self, shape: Shape, images: int) -> None:
        """A slot's model is fastest with so many images of a shape, and with as many pixels of any other shape."""
        self._best_pixels[shape.slot] = images * shape.pixels

    def set_useful_lanes(self, shape: Shape, lanes: int) -> None:
        """A slot's model answers a lone input of a shape soonest on so many lanes; more of them would not help."""
        self._lanes[shape.slot] = lanes, shape.pixels

    def useful_lanes(self, shape: Shape, most: int) -> int:
        """The lanes that make a batch of a shape faster: as measured, `most` where that was not measured, or for inputs
        of more than twice the pixels, in whose layers the lanes have more to share."""
        measured = self._lanes.get(shape.slot)
        if measured is None:
            return most
        lanes, pixels = measured
        return most if shape.pixels > 2 * pixels else min(lanes, most)

    def halve(self, shape: Shape, images: int) -> int:
        """A batch of a shape did not fit into memory: from now on its batches have at most half of its images.

        Returns:
            Half of `images`, rounded down; at 0 nothing changes.
        """
        half = images // 2
        if half:
            if len(self._caps) >= MAX_CAPS:
                self._caps.clear()  # learnt again where it still matters
            self._caps[shape] = min(half, self._caps.get(shape, half))
        return half

    def forget(self, slot: str) -> None:
        """A slot was emptied: its next model is measured anew."""
        self._best_pixels.pop(slot, None)
        self._lanes.pop(slot, None)
        self._caps = {shape: images for shape, images in self._caps.items() if shape.slot != slot}


class ArrivalUtilisation:
    """The share of the lanes that is busy when jobs arrive, lately: 0 to 1.

    A mean over arrivals, not over time. A client that waits for each answer before its next request never finds a lane
    busy, however much work it gives the device; requests at random times find the device as busy as it is on average.
    """

    def __init__(self) -> None:
        self.recent = 0.0
        self._arrived_s = -math.inf

    def record(self, busy: float, now_s: float) -> None:
        """A job arrived while this share of the lanes was busy."""
        kept = math.exp((self._arrived_s - now_s) / DECAY_S)
        self.recent = kept * self.recent + (1 - kept) * busy
        self._arrived_s = now_s


class Scheduler:
    """Takes batches from a queue. `lanes`: of the device; `max_lanes`: the most that make a single batch faster."""

    def __init__(
        self, queue: JobQueue, limits: BatchSizeLimits, latency: LatencyEstimator, lanes: int, max_lanes: int
    ) -> None:
        self._queue = queue
        self._limits = limits
        self._latency = latency
        self._lanes = lanes
        self._max_lanes = max_lanes
        self._utilisation = ArrivalUtilisation()

    def arrived(self, free: int, now_s: float) -> None:
        """A job arrived while so many lanes had no batch."""
        self._utilisation.record(1 - free / self._lanes, now_s)

    def lanes_of_one(self, free: int, waiting: int) -> int:
        """The lanes of a batch of one of so many waiting jobs that never share batches."""
        return plan_batch(free, 1, waiting - 1, 1, self._most_lanes()).lanes

    def next(self, free: int, running: Sequence[RunningBatch], now_s: float) -> RunningBatch:
        """The next batch, where some lanes are free and a job waits.

        Args:
            running: the batches on the other lanes.
            now_s: on the clock of `running`.
        """
        queue = self._queue
        shape, waiting = queue.next()
        others, max_images = queue.images - waiting, self._limits.max_images(shape)
        image_s = self._latency.image_s(shape)
        plan = plan_batch(free, waiting, others, max_images, self._most_lanes(shape), running, image_s, now_s)
        return RunningBatch(queue.take(shape, plan.images), plan.lanes)

    def overlapping(self, running: Sequence[RunningBatch], now_s: float) -> RunningBatch | None:
        """A short batch to run beside long ones that hold all lanes, where the device can. None: none."""
        limit_s = overlap_s(running, now_s)
        shape = self._queue.next_short(limit_s) if limit_s else None
        if shape is None:
            return None
        image_s = self._latency.image_s(shape)
        images = min(self._limits.max_images(shape), max(1, int(limit_s / image_s)) if image_s else 1)
        return RunningBatch(self._queue.take(shape, images), 1, overlaps=True)

    def started(self, batch: RunningBatch, now_s: float) -> None:
        """A batch starts: set its expected time, and charge that to its model."""
        shape = batch.jobs[0].shape
        batch.started_s = now_s
        if batch.jobs[0].output_pixels:
            batch.expected_s = sum(self._latency.image_s(shape, job.output_pixels) for job in batch.jobs)
        else:
            batch.expected_s = len(batch.jobs) * self._latency.image_s(shape)
        if batch.trial is None:
            self._queue.shares.charge(shape.model, batch.expected_s)

    def ended(self, batch: RunningBatch, infer_s: float) -> None:
        """A batch that was charged to its model took so many seconds. What overlaps keeps its charge: for a part of its
        time others had its core."""
        if batch.overlaps:
            return
        self._queue.shares.charge(batch.jobs[0].shape.model, infer_s * batch.lanes - batch.expected_s)

    def _most_lanes(self, shape: Shape | None = None) -> int:
        useful = self._max_lanes if shape is None else self._limits.useful_lanes(shape, self._max_lanes)
        return min(useful, max(1, round(self._max_lanes * (1 - self._utilisation.recent))))


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
