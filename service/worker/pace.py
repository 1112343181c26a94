"""How fast the device works through what waits: the base of every promise about time."""

from __future__ import annotations

from collections.abc import Iterable

from service.worker.queue import Job, Shape

SMOOTHING = 0.2
MAX_SHAPES = 256


class Pace:
    """Seconds an image takes, per shape: an exponential mean over the batches that ran."""

    def __init__(self) -> None:
        self._seconds: dict[Shape, float] = {}

    def ran(self, shape: Shape, images: int, seconds: float) -> None:
        each = seconds / images
        before = self._seconds.pop(shape, each)
        self._seconds[shape] = before + SMOOTHING * (each - before)
        if len(self._seconds) > MAX_SHAPES:
            del self._seconds[next(iter(self._seconds))]  # the one that was not seen for longest

    def seconds_for(self, jobs: Iterable[Job]) -> float:
        """How long these jobs will take; 0 for a shape that never ran, for nothing is known against it."""
        return sum(self._seconds.get(job.shape, 0.0) for job in jobs)
