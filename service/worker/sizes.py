"""How many images of a shape share a batch."""

from __future__ import annotations

from service.worker.batching import BatchLimits
from service.worker.queue import Shape

MAX_CAPS = 256
"""Shapes whose limit is remembered."""


class BatchSizes:
    """The limits of any batch, and what was found out: which size is best, and which has room on the device."""

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self._best_pixels: dict[str, int] = {}
        self._caps: dict[Shape, int] = {}

    def most(self, shape: Shape) -> int:
        """The most images of a shape in its next batch."""
        most = self.limits.images(shape, self._best_pixels.get(shape.slot))
        return min(most, self._caps.get(shape, most))

    def set_best(self, shape: Shape, images: int) -> None:
        """So many images of this shape are the best batch of a slot's model, and of another shape as many as have
        about as many pixels."""
        self._best_pixels[shape.slot] = images * shape.pixels

    def cap(self, shape: Shape, images: int) -> None:
        """There is no room for more images of a shape."""
        if len(self._caps) >= MAX_CAPS:
            self._caps.clear()  # learnt again where it still matters
        self._caps[shape] = min(images, self._caps.get(shape, images))

    def forget(self, slot: str) -> None:
        """A slot is empty from now on."""
        self._best_pixels.pop(slot, None)
        self._caps = {shape: images for shape, images in self._caps.items() if shape.slot != slot}
