"""The batching policy, as pure functions: what waits and what is free → what runs next.

A lane is a part of the device that can run a batch by itself: a core of a CPU, a stream of a GPU. Nothing ever waits
for company, and no lane is idle while something waits; what waits is spread over the lanes that are free.

- A lone request on a quiet device has all lanes that are of use to it, and is answered soonest. Where lanes were found
  taken lately (`occupancy.py`) it has fewer, for others will come while it runs: two lanes do not make a network twice
  as fast, so what it gains costs them more.
- Where more waits, each batch has fewer lanes, in the end one. Several small batches next to each other are faster
  than a large one on all cores: no core waits for the others after each layer, a core that somebody else takes for a
  moment holds up one batch only, and what a small batch computes stays in the caches. (ConvMLP-S at 224 pixels on two
  cores: two batches of 4 with one thread each give 1.28 times the images a second of one batch with two threads.)
- A batch has the size at which the model is fastest, as measured (`tuning.py`), and less where other lanes would have
  nothing to do, now or as soon as they are through with what they do: all of them should have done at one time.

While all lanes are busy the next batches grow by themselves. Only inputs of one shape share a batch: an answer must not
depend on who shares it.

How many images of a shape share a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.types import Batch, ModelInput, QueryParams
from service.worker.queue import Shape


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Of any batch: images, and pixels of all its inputs together."""

    max_images: int
    max_pixels: int

    def images(self, shape: Shape, best_pixels: int | None = None) -> int:
        """The most images of a shape in one batch; one is always allowed.

        `best_pixels`: what its model's best batch has, where that is known; the nearest number of images is taken.
        """
        pixels = shape.height * shape.width
        most = min(self.max_images, self.max_pixels // pixels)
        if best_pixels is not None:
            most = min(most, (2 * best_pixels + pixels) // (2 * pixels))
        return max(1, most)


@dataclass(frozen=True, slots=True)
class Share:
    """What the next batch gets: so many of the images that wait, on at most so many lanes."""

    images: int
    lanes: int


def share(free: int, mine: int, others: int, most: int, soon: Sequence[float] = ()) -> Share:
    """The next batch, where at least one lane is free and something waits.

    Args:
        free: lanes that nobody uses.
        mine: images of the shape that is next, at least one.
        others: images of all other shapes.
        most: images in a batch of this shape.
        soon: for each lane that is taken, when it is expected to be free: in the time that so many images of this shape
            take.
    """
    batches = min(free, mine + others)
    of_mine = batches - min(others, batches - 1)  # lanes for which the others have nothing
    images = -(-mine // of_mine) if others else _level(mine, of_mine, soon)
    return Share(min(most, images), free // batches)


def _level(images: int, lanes: int, soon: Sequence[float]) -> int:
    """The images of the largest batch where all lanes are through at one time, those that are free only later too."""
    total, all_lanes = float(images), lanes
    for wait in sorted(soon):
        if wait * all_lanes >= total:  # the others are through before it is free
            break
        total += wait
        all_lanes += 1
    # Rounded down at the half where a lane comes later: what is left over is taken by whoever is free first.
    return max(1, math.ceil(total / all_lanes - (0.5 if all_lanes > lanes else 0.0)))


def as_batch(inputs: Sequence[ModelInput], params: Sequence[QueryParams]) -> Batch:
    """Inputs of one shape as a batch. One copy of each, into the contiguous array that goes to the device; none of
    one that is alone."""
    pixels = inputs[0].pixels[np.newaxis] if len(inputs) == 1 else np.stack([one.pixels for one in inputs])
    return Batch(np.ascontiguousarray(pixels), tuple(one.geometry for one in inputs), tuple(params))


MAX_CAPS = 256
"""Shapes whose limit is remembered."""


class BatchSizeLimits:
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
