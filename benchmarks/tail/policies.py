"""The policies that the simulation compares: this service's own scheduler, and alternatives to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from benchmarks.tail.simulation import Curve, Policy, shape_of
from service.settings import Settings
from service.worker.batching import BatchSizeLimits, LatencyEstimator, Scheduler
from service.worker.queue import LEAD_S, FairShares, JobQueue
from service.worker.types import Job, RunningBatch

MakePolicy = Callable[[Mapping[str, Curve], int], Policy]


class Ours:
    """This service's scheduler, with what a worker has measured when it is ready.

    `lead_s`: by how much a model may be ahead of its share. `overlaps`: short batches may run beside long ones.
    """

    def __init__(
        self, curves: Mapping[str, Curve], lanes: int, *, lead_s: float = LEAD_S, overlaps: bool = True
    ) -> None:
        settings = Settings.model_construct()
        self._queue = JobQueue(10**6, 10**12)
        self._queue.shares = FairShares({}, lead_s)
        self._overlaps = overlaps
        self._latency = LatencyEstimator()
        self._limits = limits = BatchSizeLimits(settings.max_batch_images, settings.max_batch_mpx * 10**6)
        self._scheduler = Scheduler(self._queue, limits, self._latency, lanes, lanes)
        for model, curve in curves.items():
            images = curve.best_images
            limits.set_best(shape_of(model), images)
            self._latency.record_trial(shape_of(model), images, curve.seconds[images])

    def put(self, job: Job, free: int, now_s: float) -> None:
        self._queue.put(job, self._latency.image_s(job.shape), 0.0)
        self._scheduler.arrived(free, now_s)

    def next(self, free: int, running: Sequence[RunningBatch], now_s: float) -> RunningBatch | None:
        batch: RunningBatch | None
        if free:
            batch = self._scheduler.next(free, running, now_s) if self._queue.images else None
        elif not self._overlaps or any(one.overlaps for one in running):
            return None
        else:
            batch = self._scheduler.overlapping(running, now_s)
        if batch is not None:
            self._scheduler.started(batch, now_s)
        return batch

    def ended(self, batch: RunningBatch, seconds: float) -> None:
        self._scheduler.ended(batch, seconds)
        if batch.lanes == 1 and not batch.overlaps:
            self._latency.record(batch.jobs[0].shape, len(batch.jobs), seconds)

    def wake_s(self) -> float:
        return math.inf


class Bounded:
    """Each lane that is free takes at most so many jobs of the model that is next: that of the oldest job.

    Args:
        images: at most in a batch.
        shortest: next is the model whose batch takes the shortest time instead.
        wait_s, wanted: a batch of fewer than the wanted images waits until its oldest job has waited for so long.
    """

    def __init__(
        self,
        curves: Mapping[str, Curve],
        lanes: int,
        images: int,
        *,
        shortest: bool = False,
        wait_s: float = 0.0,
        wanted: int = 1,
    ) -> None:
        self._curves = curves
        self._lanes = lanes
        self._images = images
        self._shortest = shortest
        self._wait_s = wait_s
        self._wanted = wanted
        self._queues: dict[str, list[Job]] = {}
        self._wake_s = math.inf

    def put(self, job: Job, free: int, now_s: float) -> None:  # noqa: ARG002  (the protocol's)
        self._queues.setdefault(job.shape.model, []).append(job)

    def next(self, free: int, running: Sequence[RunningBatch], now_s: float) -> RunningBatch | None:  # noqa: ARG002
        self._wake_s = math.inf
        waiting = {model: jobs for model, jobs in self._queues.items() if jobs}
        if not waiting or not free:
            return None
        model = min(waiting, key=self._batch_s if self._shortest else lambda model: waiting[model][0].enqueued_s)
        jobs = waiting[model]
        due_s = jobs[0].enqueued_s + self._wait_s
        if len(jobs) < self._wanted and now_s < due_s:
            self._wake_s = due_s
            return None
        taken = tuple(jobs[: self._images])
        del jobs[: self._images]
        return RunningBatch(taken, 1)

    def ended(self, batch: RunningBatch, seconds: float) -> None:
        pass

    def wake_s(self) -> float:
        return self._wake_s

    def _batch_s(self, model: str) -> float:
        return self._curves[model].batch_s(min(self._images, len(self._queues[model])), 1, self._lanes)


def policies(models: int) -> dict[str, MakePolicy]:
    """By what they do; the first is this service's."""

    def bounded(images: int, **options: float) -> MakePolicy:
        return lambda curves, lanes: Bounded(curves, lanes, images, **options)  # type: ignore[arg-type]

    made: dict[str, MakePolicy] = {
        "this service": Ours,
        "all that waits (up to 32)": bounded(32),
        **{f"the oldest first, up to {images}": bounded(images) for images in (1, 2, 3, 4, 6, 8)},
        "up to 8, after at most 5 ms": bounded(8, wait_s=0.005, wanted=8),
        "up to 4, after at most 2 ms": bounded(4, wait_s=0.002, wanted=4),
    }
    if models > 1:
        made["this service with models by turns"] = partial(Ours, lead_s=0.0)
        made["this service without overlaps"] = partial(Ours, overlaps=False)
        made |= {f"the shortest first, up to {images}": bounded(images, shortest=True) for images in (4, 8)}
    return made
