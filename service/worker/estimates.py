"""How fast the device works: the base of every promise about time.

The batches that run on the device, and when they are expected to end.

How busy jobs find the device as they come.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.worker.queue import Job, Shape

SMOOTHING = 0.2
MAX_KNOWN = 256


class LatencyEstimator:
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


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """A batch on the device. `expected_s` are seconds of one lane, 0 where nothing is known of its shape."""

    jobs: tuple[Job, ...]
    lanes: int
    expected_s: float
    begun_s: float

    def left_s(self, now_s: float) -> float:
        """Seconds of one lane that it is expected to take from now on."""
        return max(0.0, self.expected_s - (now_s - self.begun_s) * self.lanes)


class RunningBatches:
    """At most one for each lane."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running: list[Running] = []

    def __iter__(self) -> Iterator[Running]:
        return iter(self._running)

    def begin(self, jobs: tuple[Job, ...], lanes: int, expected_s: float) -> Running:
        running = Running(jobs, lanes, expected_s, self._clock())
        self._running.append(running)
        return running

    def end(self, running: Running) -> None:
        self._running.remove(running)

    def left_s(self) -> float:
        """Seconds of one lane that all of them are expected to take from now on."""
        now_s = self._clock()
        return sum([one.left_s(now_s) for one in self._running])

    def soon(self, each_s: float) -> list[float]:
        """When each lane that is taken is expected to be free: in the time of so many images, of `each_s` seconds each.
        Empty where that is 0, for it is not known."""
        if not each_s:
            return []
        now_s = self._clock()
        return [one.left_s(now_s) / one.lanes / each_s for one in self._running for _ in range(one.lanes)]


REMEMBERED_S = 1.0
"""What was found so long ago counts e times less."""


class ArrivalUtilisation:
    """The share of the lanes that is taken, as jobs have found it lately: 0 to 1.

    A mean over arrivals, not over time. A client that waits for each answer before it asks again never finds a lane
    taken, however much it has the device do; requests that come at random find it as busy as it is on average.
    """

    def __init__(self) -> None:
        self.lately = 0.0
        self._found_s = -math.inf

    def found(self, taken: float, now_s: float) -> None:
        """A job came while this share of the lanes was taken."""
        kept = math.exp((self._found_s - now_s) / REMEMBERED_S)
        self.lately = kept * self.lately + (1 - kept) * taken
        self._found_s = now_s
