"""Measures on this device how a model is served best: the size of its batches, and the lanes of a lone request.

The time of an image by batch size is measured with a batch on each lane, as under load: lanes share caches and memory,
so that a size that is best alone may be too large beside others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

import msgspec
import structlog

from model.reference import REFERENCE_PARAMS
from service.process import resident_memory, trim_memory
from service.settings import usable_memory
from service.worker.batching import BatchSizeLimits
from service.worker.disk import write_to_disk
from service.worker.dispatcher import Dispatcher
from service.worker.model_registry import LoadedModel
from service.worker.runner import OutOfDeviceMemory
from service.worker.state_folder import NOTHING_KEPT, StateFolder
from service.worker.types import Job, JobResult, Shape

BUDGET_S = 3.0
"""Time for one model, while it is loaded."""
IDLE_BUDGETS = 4
"""So many budgets has a measurement while the worker is idle: one that never ends would be repeated at each start."""
RUNS = 2
"""Runs of a size before a larger one is tried. The fastest counts, because a disturbance only makes a run slower."""
ROUNDS = 8
"""The most rounds of one more run of each size, while the budget lasts: a busy machine disturbs long runs more than
short ones."""
STABLE_ROUNDS = 3
"""So many rounds in a row that change no choice end the measurement."""
TOLERANCE = 0.05
"""A size is as good as the fastest where an image takes at most this much longer. The smallest such size is taken: it
answers soonest. For a lone request the fewest lanes are."""
MAX_LOAD = 1.0
"""Runnable threads for each core, over the last minute, beside which a result is measured again later."""
MEMORY_SHARE = 0.25
"""Of the memory that the process may use, the most that batches may take while they are measured."""
WORSE = 0.5
"""A size at which an image takes this much longer than at the fastest ends the curve."""

log = structlog.get_logger(__name__)


def best_of(curve: Mapping[int, float]) -> int:
    """The smallest number of a curve, of images or of lanes, whose seconds are about as few as the fewest."""
    fastest = min(curve.values())
    return min(number for number, seconds in curve.items() if seconds <= fastest * (1 + TOLERANCE))


def should_continue(curve: Mapping[int, float]) -> bool:
    """Whether to try a larger batch. Small gains of each size add up, and a bump may precede the fastest: a curve
    ends where the last size is much slower than the fastest, or the last two are slower."""
    image_s = list(curve.values())
    slower = [seconds / min(image_s) - 1 for seconds in image_s[-2:]]
    return not (slower and (slower[-1] > WORSE or (len(image_s) > 2 and min(slower) > TOLERANCE)))


class BestBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The best size, the seconds of a batch of it on one lane, and the lanes for a lone input.

    `whole`: there was time for all sizes and lanes, the last rounds changed no choice, and the machine was not busy.
    """

    images: int
    seconds: float
    whole: bool
    lanes: int = 0
    """0: not measured; so in files of earlier versions."""
    busy: bool = False
    """Other work on the machine may have chosen; such a result is measured again as soon as the machine is not busy."""


@dataclass(slots=True)
class _Measured:
    """`curve`: the seconds of an image by batch size. `alone`: those of a lone one by lanes."""

    curve: dict[int, float] = field(default_factory=dict)
    alone: dict[int, float] = field(default_factory=dict)
    all_tried: bool = False
    rounds_alike: int = 0
    """Rounds in a row that changed no choice."""

    @property
    def is_stable(self) -> bool:
        return self.rounds_alike >= STABLE_ROUNDS

    def choice(self) -> BestBatch:
        images = best_of(self.curve) if self.curve else 1
        seconds = images * self.curve.get(images, 0.0)
        lanes = best_of(self.alone) if self.alone else 0
        return BestBatch(images, seconds, self.all_tried and self.is_stable, lanes)


class _Budget:
    """The time of a measurement. With `is_idle` it also ends once that is false."""

    def __init__(self, clock: Callable[[], float], seconds: float, is_idle: Callable[[], bool] | None) -> None:
        self._clock = clock
        self._is_idle = is_idle
        self.started_s = clock()
        self.end_s = self.started_s + seconds
        self.interrupted = False

    def lacks(self, seconds: float) -> bool:
        """Whether there is no time for so many more seconds."""
        if self._is_idle is not None and not self._is_idle():
            self.interrupted = True
        return self.interrupted or self._clock() + seconds > self.end_s


class Tuner:
    """Times models between the batches of requests. `lanes`: of the device, and the most for a single batch.
    `machine_load`: the runnable threads for each core.

    `state` keeps what was measured on a device, whose `identity` is the runner's. `resident_bytes`: the memory that the
    process occupies; batches that would take more than `max_bytes` of it are not measured.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: BatchSizeLimits,
        state: StateFolder = NOTHING_KEPT,
        identity: tuple[str, ...] = (),
        clock: Callable[[], float] = time.monotonic,
        budget_s: float = BUDGET_S,
        *,
        lanes: int = 1,
        max_lanes: int = 1,
        machine_load: Callable[[], float] = lambda: 0.0,
        resident_bytes: Callable[[], int] = resident_memory,
        max_bytes: float | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._lanes = lanes
        self._max_lanes = max_lanes
        self._machine_load = machine_load
        self._resident_bytes = resident_bytes
        self._max_bytes = MEMORY_SHARE * usable_memory() if max_bytes is None else max_bytes
        self._limits = limits
        self._state = state
        self._identity = identity
        self.measuring_s = 0.0
        """Seconds that it has measured for so far."""
        self._clock = clock
        self._budget_s = budget_s

    async def tune(self, model: LoadedModel) -> BestBatch:
        """Measure the best batch size of a model and use it from now on. One that was measured by an earlier process is
        used as it is, except that of a busy machine, if it is not busy now.

        A model that is too slow for its budget is timed for as many sizes as the budget allows, at least one.

        Returns:
            The size, for inputs of the reference picture's height and width.
        """
        shape, sizes, key = self._asked(model)
        known = await asyncio.to_thread(self._state.read, "batch", key, BestBatch)
        if known is not None and known.busy and self._machine_load() <= MAX_LOAD:
            known = None
        if known is not None and known.seconds > 0 and self._can_be(known, sizes[-1]):
            self._dispatcher.recall_trial(shape, known.images, known.seconds)
            self._use(shape, known)
            log.info("best batch", model=model.name, images=known.images, source="measured before")
            return known
        budget = _Budget(self._clock, self._budget_s, is_idle=None)
        return await self._adopt(model, await self._measure(model, budget), budget)

    async def tune_again(self, model: LoadedModel, is_idle: Callable[[], bool]) -> BestBatch | None:
        """As `tune`, anew and with more time, while the worker is idle. None: it was not for long enough, and the size
        that was used before stays."""
        budget = _Budget(self._clock, self._budget_s * IDLE_BUDGETS, is_idle)
        measured = await self._measure(model, budget)
        return None if budget.interrupted else await self._adopt(model, measured, budget)

    def _asked(self, model: LoadedModel) -> tuple[Shape, list[int], tuple[str, ...]]:
        """What is measured: inputs of a shape in batches of some sizes; and the key of the result in the state."""
        height, width, _ = model.reference.pixels.shape
        shape = Shape(model.name, model.slot, height, width)
        sizes = _sizes(self._limits.configured(shape))
        return shape, sizes, (model.version, model.precision, f"at most {sizes[-1]} images", *self._identity)

    async def _adopt(self, model: LoadedModel, measured: _Measured, budget: _Budget) -> BestBatch:
        """Use what was measured, and keep it for the next start."""
        best = measured.choice()
        if self._machine_load() > MAX_LOAD:
            best = msgspec.structs.replace(best, whole=False, busy=True)
        if model.retired:
            return best
        shape, _, key = self._asked(model)
        self._use(shape, best)
        self.measuring_s += self._clock() - budget.started_s
        if measured.curve:
            await write_to_disk(self._state.write, "batch", key, best)
        log.info(
            "best batch",
            model=model.name,
            images=best.images,
            lanes=best.lanes,
            source="measured",
            pixels=best.images * shape.pixels,
            ms_an_image=_in_ms(measured.curve),
            ms_alone_by_lanes=_in_ms(measured.alone),
            whole=best.whole,
        )
        return best

    async def _measure(self, model: LoadedModel, budget: _Budget) -> _Measured:
        """What there is time for, at least the smallest size."""
        shape, sizes, _ = self._asked(model)
        job = Job(
            key=(b"tuning", 0),
            shape=shape,
            input=model.reference,
            params=REFERENCE_PARAMS,
            enqueued_s=budget.end_s,
            deadline_s=budget.end_s,
            reply=_no_reply,
        )
        found, images = _Measured(), sizes[0]
        # Free memory that the process keeps would hide what a batch takes; what batches took is given back afterwards.
        await asyncio.to_thread(trim_memory)
        before_bytes = self._resident_bytes()
        try:
            for images in sizes:
                if found.curve and not self._has_room(max(found.curve), images, before_bytes):
                    log.info("a larger batch may take too much memory", model=model.name, images=images)
                    break
                least_s = 2 * images * min(found.curve.values(), default=0.0)
                if model.retired or (found.curve and budget.lacks(least_s)):
                    return found
                found.curve[images] = await self._time(job, images, budget)
                if not should_continue(found.curve):
                    break
            for lanes in self._lane_counts():
                if model.retired or budget.lacks(2 * found.curve[1]):
                    return found
                found.alone[lanes] = await self._time_alone(job, lanes)
            found.all_tried = True
            for _ in range(ROUNDS):
                if found.is_stable or model.retired or not await self._repeat(job, found, budget):
                    break
        except OutOfDeviceMemory:
            found.all_tried = bool(found.curve)
            log.warning("batch does not fit into memory", model=model.name, images=images)
        except Exception:  # the boundary to the network: the model serves without a measured size
            log.exception("cannot time a batch", model=model.name, images=images)
        finally:
            await asyncio.to_thread(trim_memory)
        return found

    def _has_room(self, measured: int, images: int, before_bytes: int) -> bool:
        """Whether a batch on each lane may take as much more memory than those of `measured` images as it is larger."""
        return (self._resident_bytes() - before_bytes) * images / measured <= self._max_bytes

    async def _repeat(self, job: Job, found: _Measured, budget: _Budget) -> bool:
        """One more run of everything that was measured. False: there is no time for it."""
        before = found.choice()
        for images, image_s in found.curve.items():
            if budget.lacks(images * image_s):
                return False
            found.curve[images] = min(image_s, await self._time_at_once(job, images))
        for lanes, seconds in found.alone.items():
            if budget.lacks(seconds):
                return False
            found.alone[lanes] = min(seconds, await self._dispatcher.time_batch(job, 1, lanes))
        after = found.choice()
        unchanged = (before.images, before.lanes) == (after.images, after.lanes)
        found.rounds_alike = found.rounds_alike + 1 if unchanged else 0
        return True

    def _can_be(self, known: BestBatch, most: int) -> bool:
        return 1 <= known.images <= most and int(self._max_lanes > 1) <= known.lanes <= self._max_lanes

    def _use(self, shape: Shape, best: BestBatch) -> None:
        self._limits.set_best(shape, best.images)
        if best.lanes:
            self._limits.set_useful_lanes(shape, best.lanes)

    def forget(self, slot: str) -> None:
        """A slot was emptied: drop what was measured of its model."""
        self._limits.forget(slot)

    async def _time(self, job: Job, images: int, budget: _Budget) -> float:
        """The seconds of an image, from as many runs as there is time for."""
        # The first run allocates memory and chooses kernels; it counts only where there is no time for another.
        fastest = await self._time_at_once(job, images)
        for run in range(RUNS):
            if budget.lacks(images * fastest):
                break
            image_s = await self._time_at_once(job, images)
            fastest = min(fastest, image_s) if run else image_s
        return fastest

    async def _time_at_once(self, job: Job, images: int) -> float:
        """The seconds of an image in batches that run at once, one on each lane; the mean of these."""
        trials = (self._dispatcher.time_batch(job, images) for _ in range(self._lanes))
        ended = await asyncio.gather(*trials, return_exceptions=True)
        seconds = [result for result in ended if isinstance(result, float)]
        for result in ended:
            if isinstance(result, BaseException):
                raise result
        return fmean(seconds) / images

    async def _time_alone(self, job: Job, lanes: int) -> float:
        """The seconds of a lone image. The first run starts threads, and packs weights for so many."""
        await self._dispatcher.time_batch(job, 1, lanes)
        return min([await self._dispatcher.time_batch(job, 1, lanes) for _ in range(RUNS)])

    def _lane_counts(self) -> list[int]:
        """The powers of two up to the most lanes for a batch, and these; none where a batch has one lane always."""
        return _sizes(self._max_lanes) if self._max_lanes > 1 else []


def _sizes(limit: int) -> list[int]:
    """The powers of two up to a limit, and the limit."""
    return sorted({*(2**power for power in range(limit.bit_length())), limit})


def _no_reply(job: Job, result: JobResult) -> None:
    """A trial has no caller."""


def _in_ms(seconds: Mapping[int, float]) -> dict[int, float]:
    return {number: round(value * 1000, 3) for number, value in seconds.items()}
