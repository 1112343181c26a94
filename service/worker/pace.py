"""How fast the device works: the base of every promise about time."""

from __future__ import annotations

from service.worker.queue import Shape

SMOOTHING = 0.2
MAX_KNOWN = 256


class Pace:
    """Seconds of one lane that an image takes, per shape: an exponential mean over the batches that ran.

    Of batches that had one lane: what more lanes take together is longer, and a batch has them only while there is
    little to do. A shape's first batch does not count: kernels are chosen and memory is found in it, which says nothing
    of the ones to come, and a promise broken for it would be a refusal without a reason. Until then a shape is as fast,
    for its pixels, as others of its model, or as the model was in a trial.
    """

    def __init__(self) -> None:
        self._seconds: dict[Shape, float | None] = {}
        self._by_pixel: dict[str, float] = {}

    def tried(self, shape: Shape, images: int, seconds: float) -> None:
        """A trial took so many seconds of one lane: what to expect until there are batches of jobs."""
        self._by_pixel[shape.slot] = seconds / images / shape.pixels
        self._forget()

    def ran(self, shape: Shape, images: int, seconds: float) -> None:
        """A batch took so many seconds of one lane."""
        known = shape in self._seconds
        each, before = seconds / images, self._seconds.pop(shape, None)
        if not known:
            self._seconds[shape] = None
        else:
            self._seconds[shape] = each if before is None else before + SMOOTHING * (each - before)
            self._by_pixel.pop(shape.slot, None)
            self._by_pixel[shape.slot] = each / shape.pixels
        self._forget()

    def seconds(self, shape: Shape) -> float:
        """What an image will take; 0 where nothing is known."""
        known = self._seconds.get(shape)
        return self._by_pixel.get(shape.slot, 0.0) * shape.pixels if known is None else known

    def _forget(self) -> None:
        """Let go what was not seen for longest."""
        if len(self._seconds) > MAX_KNOWN:
            del self._seconds[next(iter(self._seconds))]
        if len(self._by_pixel) > MAX_KNOWN:
            del self._by_pixel[next(iter(self._by_pixel))]
