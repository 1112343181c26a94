"""How fast the device works through what waits: the base of every promise about time."""

from __future__ import annotations

from collections.abc import Iterable

from service.worker.queue import Job, Shape

SMOOTHING = 0.2
MAX_SHAPES = 256


class Pace:
    """Seconds an image takes, per shape: an exponential mean over the batches that ran.

    A shape's first batch does not count: kernels are chosen and memory is found in it, which says nothing of the
    ones to come, and a promise broken for it would be a refusal without a reason.
    """

    def __init__(self) -> None:
        self._seconds: dict[Shape, float | None] = {}

    def ran(self, shape: Shape, images: int, seconds: float) -> None:
        known = shape in self._seconds
        each, before = seconds / images, self._seconds.pop(shape, None)
        if not known:
            self._seconds[shape] = None
        elif before is None:
            self._seconds[shape] = each
        else:
            self._seconds[shape] = before + SMOOTHING * (each - before)
        if len(self._seconds) > MAX_SHAPES:
            del self._seconds[next(iter(self._seconds))]  # the one that was not seen for longest

    def seconds_for(self, jobs: Iterable[Job]) -> float:
        """How long these jobs will take; 0 for a shape of which nothing is known."""
        return sum(self._seconds.get(job.shape) or 0.0 for job in jobs)
