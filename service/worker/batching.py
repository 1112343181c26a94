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
