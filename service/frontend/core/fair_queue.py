"""The queue in which work waits for a thread: callers by fair shares, and each caller's models by fair shares.

Within a model, work is ordered by how long it should wait at most. That time grows with the work, so that a thumbnail
does not wait for the photographs that came just before it, and work that has waited for that time is not overtaken any
more. (For work of one size that is the order of arrival.)
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

PATIENCE = 8.0
"""Work may be overtaken until it has waited this many times as long as it takes itself, or for half of the time that
it has."""

MAX_REMEMBERED = 1024
"""Callers without waiting work that are remembered; beyond it the one that left first is forgotten."""

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Place(NamedTuple):
    """Where work waits. Compared by `rank_s`, then by arrival."""

    rank_s: float
    """The time, on the caller's clock, up to which later work may overtake this."""
    number: int
    caller: str
    model: str
    seconds: float
    """Expected, of one thread."""


@dataclass(slots=True)
class VirtualTimes(Generic[K]):
    """Which of several is next, as start-time fair queueing has it (Goyal, Vin and Cheng 1997).

    A virtual time is the thread time that one was given. Who enters starts at the present, the virtual time of the
    last one that was next: nobody saves up for a time in which it asked for nothing.
    """

    times: dict[K, float] = field(default_factory=dict)
    """Of those whose work waits."""
    present: float = 0.0
    _left: dict[K, float] = field(default_factory=dict)
    """Of those that have no work left, and were given more than their share: a bounded number."""

    def enter(self, key: K) -> None:
        self.times[key] = max(self._left.pop(key, 0.0), self.present)

    def charge(self, key: K, seconds: float) -> None:
        times = self.times if key in self.times else self._left
        if key in times:
            times[key] += seconds

    def leave(self, key: K) -> None:
        """No work waits any more."""
        time = self.times.pop(key)
        if time > self.present:
            self._left[key] = time
            if len(self._left) > MAX_REMEMBERED:
                del self._left[next(iter(self._left))]


@dataclass(slots=True)
class ModelLine(Generic[T]):
    """The work of one caller for one model, in order."""

    places: list[Place] = field(default_factory=list)
    work: dict[int, T] = field(default_factory=dict)
    """By the number of its place."""


@dataclass(slots=True)
class CallerLine(Generic[T]):
    models: dict[str, ModelLine[T]] = field(default_factory=dict)
    shares: VirtualTimes[str] = field(default_factory=VirtualTimes)
    seconds: float = 0.0
    """Of one thread, that all of the caller's work is expected to take."""


class FairQueue(Generic[T]):
    """Work of type T. Its owner bounds how much waits.

    `put` and `remove` take O(log n) comparisons for n pieces of a caller's work for a model; `first` takes O(callers).
    """

    def __init__(self) -> None:
        self._callers: dict[str, CallerLine[T]] = {}
        self._shares: VirtualTimes[str] = VirtualTimes()
        self._numbers = itertools.count()
        self._first: Place | None = None
        self.seconds = 0.0
        """Of one thread, that all work is expected to take."""

    def put(self, work: T, caller: str, model: str, seconds: float, now_s: float, deadline_s: float) -> Place:
        """Add work that is expected to take so many seconds of one thread."""
        rank_s = now_s + min(PATIENCE * seconds, (deadline_s - now_s) / 2)
        place = Place(rank_s, next(self._numbers), caller, model, seconds)
        line = self._callers.get(caller)
        if line is None:
            line = self._callers[caller] = CallerLine()
            self._shares.enter(caller)
        of_model = line.models.get(model)
        if of_model is None:
            of_model = line.models[model] = ModelLine()
            line.shares.enter(model)
        insort(of_model.places, place)
        of_model.work[place.number] = work
        line.seconds += seconds
        self.seconds += seconds
        self._first = None
        return place

    def first(self) -> T:
        """The work that is next; something must wait."""
        place = self._first_place()
        return self._callers[place.caller].models[place.model].work[place.number]

    def take(self) -> T:
        """Remove the work that is next, and charge its caller for it; something must wait."""
        place = self._first_place()
        line = self._callers[place.caller]
        self._shares.present = max(self._shares.present, self._shares.times[place.caller])
        line.shares.present = max(line.shares.present, line.shares.times[place.model])
        self._shares.charge(place.caller, place.seconds)
        line.shares.charge(place.model, place.seconds)
        return self.remove(place)

    def remove(self, place: Place) -> T:
        """Remove waiting work from its place."""
        line = self._callers[place.caller]
        of_model = line.models[place.model]
        del of_model.places[bisect_left(of_model.places, place)]
        work = of_model.work.pop(place.number)
        line.seconds -= place.seconds
        self.seconds -= place.seconds
        self._first = None
        if not of_model.places:
            del line.models[place.model]
            line.shares.leave(place.model)
        if not line.models:
            del self._callers[place.caller]
            self._shares.leave(place.caller)
        if not self._callers:
            # Nothing waits, so nobody is owed anything. The rounding errors of the sums end here, too.
            self._shares, self.seconds = VirtualTimes(), 0.0
        return work

    def charge(self, caller: str, seconds: float) -> None:
        """Charge a caller for more seconds than its work was expected to take, or for work that did not wait."""
        self._shares.charge(caller, seconds)
        self._first = None

    def seconds_before(self, caller: str, model: str, seconds: float, now_s: float, deadline_s: float) -> float:
        """Estimated seconds of one thread that are taken before work that would be put now is begun.

        They are those of the caller's own work for the model that is before it, and what its other models, and other
        callers, get by their shares meanwhile; but no more than they have.
        """
        line = self._callers.get(caller)
        others_s, others = self.seconds, len(self._callers)
        own_s = 0.0
        if line is not None:
            others_s, others = others_s - line.seconds, others - 1
            of_model = line.models.get(model)
            rank_s = now_s + min(PATIENCE * seconds, (deadline_s - now_s) / 2)
            waiting_s = 0.0
            if of_model is not None:
                for place in of_model.places:
                    waiting_s += place.seconds
                    if place.rank_s <= rank_s:
                        own_s += place.seconds
            beside_s, beside = line.seconds - waiting_s, len(line.models) - (of_model is not None)
            own_s += min(beside_s, (own_s + seconds) * beside)
        return own_s + min(others_s, (own_s + seconds) * others)

    def _first_place(self) -> Place:
        if self._first is None:
            callers, times = self._callers, self._shares.times
            caller = next(iter(callers)) if len(callers) == 1 else min(callers, key=times.__getitem__)
            line = callers[caller]
            model = min(line.models, key=line.shares.times.__getitem__)
            self._first = line.models[model].places[0]
        return self._first
