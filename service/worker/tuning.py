"""How large a model's batches are best, measured on its own curve of time by batch size."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import structlog

from model.reference import REFERENCE_PARAMS
from service.worker.batching import BatchSizeLimits
from service.worker.dispatcher import Dispatcher
from service.worker.model_registry import LoadedModel
from service.worker.queue import Done, Job, Shape
from service.worker.runner import OutOfDeviceMemory

BUDGET_S = 1.0
"""For one model's curve."""
RUNS = 2
"""Of a size before a larger one is tried; the fastest counts, for whatever disturbs a run only makes it slower."""
ROUNDS = 6
"""Of one run more of each size, while the budget lasts: a machine that is busy disturbs long runs more than short."""
TOLERANCE = 0.03
"""A batch is as good as the best one where an image takes so little longer in it; the smaller one is taken."""
WORSE = 0.15
"""A size at which an image takes so much longer than in the best ends the curve."""

log = structlog.get_logger(__name__)


def best_of(curve: Mapping[int, float]) -> int:
    """The smallest batch of a curve (images → seconds an image) that is about as fast as the fastest."""
    fastest = min(curve.values())
    return min(images for images, each_s in curve.items() if each_s <= fastest * (1 + TOLERANCE))


def goes_on(curve: Mapping[int, float]) -> bool:
    """Whether a larger batch may be worth a try: of the last two sizes one made images faster, none much slower."""
    each_s = list(curve.values())
    if len(each_s) < 2:
        return True
    if each_s[-1] > min(each_s) * (1 + WORSE):
        return False
    return len(each_s) < 3 or min(each_s[-2:]) < min(each_s[:-2]) * (1 - TOLERANCE)


class Tuner:
    """Times models on one lane, between whatever else runs."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        sizes: BatchSizeLimits,
        clock: Callable[[], float] = time.monotonic,
        budget_s: float = BUDGET_S,
    ) -> None:
        self._dispatcher = dispatcher
        self._sizes = sizes
        self._clock = clock
        self._budget_s = budget_s

    async def tune(self, model: LoadedModel) -> int:
        """Have a model's batches be of the size that is best for it; the size, for inputs of its reference picture's.

        A model that is too slow for its budget is timed as far as that goes.
        """
        until_s = self._clock() + self._budget_s
        height, width, _ = model.reference.pixels.shape
        shape = Shape(model.name, model.slot, height, width)
        most = self._sizes.limits.images(shape)
        job = Job(
            key=(b"tuning", 0),
            shape=shape,
            input=model.reference,
            params=REFERENCE_PARAMS,
            enqueued_s=until_s,
            deadline_s=until_s,
            reply=_nobody,
        )
        curve: dict[int, float] = {}
        try:
            for images in _sizes(most):
                left_s = until_s - self._clock()
                if model.gone or not goes_on(curve) or (curve and 2 * images * min(curve.values()) > left_s):
                    break
                curve[images] = await self._time(job, images, until_s) / images
            for images in ROUNDS * list(curve):
                if model.gone or self._clock() + images * curve[images] > until_s:
                    break
                curve[images] = min(curve[images], await self._dispatcher.time(job, images) / images)
        except OutOfDeviceMemory:
            log.warning("a batch does not fit", model=model.name, images=images)
        except Exception:  # the boundary to the network: it serves as it is
            log.exception("a batch could not be timed", model=model.name, images=images)
        best = best_of(curve) if curve else 1
        if model.gone:
            return best
        self._sizes.set_best(shape, best)
        told = {images: round(each_s * 1000, 3) for images, each_s in curve.items()}
        log.info("best batch", model=model.name, images=best, pixels=best * shape.pixels, ms_an_image=told)
        return best

    def forget(self, slot: str) -> None:
        """A slot is empty from now on: what was found out about its model is of no use to the next."""
        self._sizes.forget(slot)

    async def _time(self, job: Job, images: int, until_s: float) -> float:
        """The seconds of a batch, by as many runs as there is time for."""
        # It finds memory and chooses kernels, and says nothing unless it is all that there is time for.
        fastest = await self._dispatcher.time(job, images)
        for run in range(RUNS):
            if self._clock() + fastest > until_s:
                break
            seconds = await self._dispatcher.time(job, images)
            fastest = min(fastest, seconds) if run else seconds
        return fastest


def _sizes(most: int) -> list[int]:
    """Powers of two, and the most."""
    return sorted({*(2**power for power in range(most.bit_length())), most})


def _nobody(done: Done) -> None:
    """A trial answers nobody."""
