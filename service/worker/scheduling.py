"""The scheduler: which jobs run next, in what batch, on how many lanes.

`Dispatcher` runs what it chooses. It has no clock and no device, so that `benchmarks.tail` simulates the same code.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.worker.admission import LatencyEstimator
from service.worker.batching import ArrivalUtilisation, BatchSizeLimits, overlap_s, plan_batch
from service.worker.queue import JobQueue
from service.worker.types import RunningBatch, Shape


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

    def next(self, free: int, running: Sequence[RunningBatch], now_s: float) -> RunningBatch | None:
        """The next batch where some lanes are free. None: no job waits.

        Args:
            running: the batches on the other lanes.
            now_s: on the clock of `running`.
        """
        queue = self._queue
        if not queue.images:
            return None
        shape = queue.next()
        waiting = queue.depth_of(shape)
        others, max_images = queue.images - waiting, self._limits.max_images(shape)
        image_s = self._latency.image_s(shape)
        plan = plan_batch(free, waiting, others, max_images, self._most_lanes(shape), running, image_s, now_s)
        return RunningBatch(queue.take(shape, plan.images), plan.lanes)

    def overlapping(self, running: Sequence[RunningBatch], now_s: float) -> RunningBatch | None:
        """A short batch to run beside long ones that hold all lanes, where the device can. None: none."""
        limit_s = overlap_s(running, now_s)
        shape = self._queue.next_short(limit_s) if limit_s and self._queue.images else None
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
