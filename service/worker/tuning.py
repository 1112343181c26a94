"""Measures a model's best batch size: the time of an image by batch size, on this device."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import msgspec
import structlog

from model.reference import REFERENCE_PARAMS
from service.worker.batching import BatchSizeLimits
from service.worker.disk import write_to_disk
from service.worker.dispatcher import Dispatcher
from service.worker.model_registry import LoadedModel
from service.worker.runner import OutOfDeviceMemory
from service.worker.state_folder import NOTHING_KEPT, StateFolder
from service.worker.types import Job, JobResult, Shape

BUDGET_S = 1.0
"""Time for the curve of one model."""
RUNS = 2
"""Runs of a size before a larger one is tried. The fastest counts, because a disturbance only makes a run slower."""
ROUNDS = 6
"""Rounds of one more run of each size, while the budget lasts: a busy machine disturbs long runs more than short ones.
"""
TOLERANCE = 0.03
"""A size is as good as the fastest where an image takes at most this much longer; the smallest such size is taken."""
WORSE = 0.15
"""A size at which an image takes this much longer than at the fastest ends the curve."""

log = structlog.get_logger(__name__)


def best_of(curve: Mapping[int, float]) -> int:
    """The smallest size of a curve (images → seconds an image) that is about as fast as the fastest."""
    fastest = min(curve.values())
    return min(images for images, image_s in curve.items() if image_s <= fastest * (1 + TOLERANCE))


def should_continue(curve: Mapping[int, float]) -> bool:
    """Whether to try a larger batch: one of the last two sizes made images faster, and the last not much slower."""
    image_s = list(curve.values())
    if len(image_s) < 2:
        return True
    if image_s[-1] > min(image_s) * (1 + WORSE):
        return False
    return len(image_s) < 3 or min(image_s[-2:]) < min(image_s[:-2]) * (1 - TOLERANCE)


class BestBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The best size, and the seconds of a batch of it on one lane. `whole`: there was time for the whole curve."""

    images: int
    seconds: float
    whole: bool


class Tuner:
    """Times models on one lane, between the batches of requests.

    `state` keeps what was measured on a device, whose `identity` is the runner's.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: BatchSizeLimits,
        state: StateFolder = NOTHING_KEPT,
        identity: tuple[str, ...] = (),
        clock: Callable[[], float] = time.monotonic,
        budget_s: float = BUDGET_S,
    ) -> None:
        self._dispatcher = dispatcher
        self._limits = limits
        self._state = state
        self._identity = identity
        self.measuring_s = 0.0
        """Seconds that it has measured for so far."""
        self._clock = clock
        self._budget_s = budget_s

    async def tune(self, model: LoadedModel, *, again: bool = False) -> BestBatch:
        """Measure the best batch size of a model and use it from now on. One that was measured by an earlier process is
        used as it is, unless it shall be measured `again`.

        A model that is too slow for its budget is timed for as many sizes as the budget allows, at least one.

        Returns:
            The size, for inputs of the reference picture's height and width.
        """
        started_s = self._clock()
        end_s = started_s + self._budget_s
        height, width, _ = model.reference.pixels.shape
        shape = Shape(model.name, model.slot, height, width)
        sizes = _sizes(self._limits.configured(shape))
        key = (model.version, model.precision, f"at most {sizes[-1]} images", *self._identity)
        known = None if again else await asyncio.to_thread(self._state.read, "batch", key, BestBatch)
        if known is not None and 1 <= known.images <= sizes[-1] and known.seconds > 0:
            self._dispatcher.recall_trial(shape, known.images, known.seconds)
            self._limits.set_best(shape, known.images)
            log.info("best batch", model=model.name, images=known.images, source="measured before")
            return known
        job = Job(
            key=(b"tuning", 0),
            shape=shape,
            input=model.reference,
            params=REFERENCE_PARAMS,
            enqueued_s=end_s,
            deadline_s=end_s,
            reply=_no_reply,
        )
        curve: dict[int, float] = {}
        whole = False
        try:
            for images in sizes:
                left_s = end_s - self._clock()
                whole = not should_continue(curve)
                if model.retired or whole or (curve and 2 * images * min(curve.values()) > left_s):
                    break
                curve[images] = await self._time(job, images, end_s) / images
            else:
                whole = True
            for images in ROUNDS * list(curve):
                if model.retired or self._clock() + images * curve[images] > end_s:
                    break
                curve[images] = min(curve[images], await self._dispatcher.time_batch(job, images) / images)
        except OutOfDeviceMemory:
            log.warning("batch does not fit into memory", model=model.name, images=images)
        except Exception:  # the boundary to the network: the model serves without a measured size
            log.exception("cannot time a batch", model=model.name, images=images)
        images = best_of(curve) if curve else 1
        best = BestBatch(images, images * curve.get(images, 0.0), whole)
        if model.retired:
            return best
        self._limits.set_best(shape, images)
        self.measuring_s += self._clock() - started_s
        if curve:
            await write_to_disk(self._state.write, "batch", key, best)
        curve_ms = {images: round(image_s * 1000, 3) for images, image_s in curve.items()}
        log.info(
            "best batch",
            model=model.name,
            images=images,
            source="measured",
            pixels=images * shape.pixels,
            ms_an_image=curve_ms,
        )
        return best

    def forget(self, slot: str) -> None:
        """A slot was emptied: drop what was measured of its model."""
        self._limits.forget(slot)

    async def _time(self, job: Job, images: int, end_s: float) -> float:
        """The seconds of a batch, from as many runs as there is time for."""
        # The first run allocates memory and chooses kernels; it counts only where there is no time for another.
        fastest = await self._dispatcher.time_batch(job, images)
        for run in range(RUNS):
            if self._clock() + fastest > end_s:
                break
            seconds = await self._dispatcher.time_batch(job, images)
            fastest = min(fastest, seconds) if run else seconds
        return fastest


def _sizes(limit: int) -> list[int]:
    """The powers of two up to a limit, and the limit."""
    return sorted({*(2**power for power in range(limit.bit_length())), limit})


def _no_reply(job: Job, result: JobResult) -> None:
    """A trial has no caller."""
