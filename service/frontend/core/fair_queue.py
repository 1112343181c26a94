"""The queue in which work waits for a thread: callers by fair shares, and each caller's kinds of work by fair shares.

Work for another model is of another kind, and so is work that takes several times as long: a thumbnail does not wait
for all photographs that came before it, and cannot hold them up for ever either. Work of one kind is taken in order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

SIZE_CLASS = 4.0
"""Work is of another kind if it takes about so many times as long."""
MAX_REMEMBERED = 1024
"""Callers without waiting work that are remembered; beyond it the one that left first is forgotten."""

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Kind(NamedTuple):
    """Of a caller's work."""

    model: str
    size_class: int


class Place(NamedTuple):
    """Where work waits."""

    number: int
    caller: str
    kind: Kind
    seconds: float
    """Expected, of one thread."""


@dataclass(slots=True)
class VirtualTimes(Generic[K]):
    """Which of several is next, as start-time fair queueing has it (Goyal, Vin and Cheng 1997).

    A virtual time is the thread time that one was given. An entry starts at the present, the virtual time of the
    last one that was next: a time without requests earns no advantage.
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
class KindQueue(Generic[T]):
    """Work of one kind, by the number of its place, in order."""

    work: dict[int, tuple[Place, T]] = field(default_factory=dict)
    seconds: float = 0.0
    """Of one thread, that all of it is expected to take."""


@dataclass(slots=True)
class CallerQueue(Generic[T]):
    queues: dict[Kind, KindQueue[T]] = field(default_factory=dict)
    shares: VirtualTimes[Kind] = field(default_factory=VirtualTimes)
    seconds: float = 0.0


class FairQueue(Generic[T]):
    """Work of type T. Its owner bounds how much waits. `first` takes O(callers + kinds of one), all else O(1)."""

    def __init__(self) -> None:
        self._callers: dict[str, CallerQueue[T]] = {}
        self._shares: VirtualTimes[str] = VirtualTimes()
        self._numbers = itertools.count()
        self._first: tuple[Place, T] | None = None
        self.seconds = 0.0
        """Of one thread, that all work is expected to take."""

    def put(self, work: T, caller: str, model: str, seconds: float) -> Place:
        """Add work that is expected to take so many seconds of one thread."""
        place = Place(next(self._numbers), caller, _kind(model, seconds), seconds)
        of_caller = self._callers.get(caller)
        if of_caller is None:
            of_caller = self._callers[caller] = CallerQueue()
            self._shares.enter(caller)
        of_kind = of_caller.queues.get(place.kind)
        if of_kind is None:
            of_kind = of_caller.queues[place.kind] = KindQueue()
            of_caller.shares.enter(place.kind)
        of_kind.work[place.number] = place, work
        of_kind.seconds += seconds
        of_caller.seconds += seconds
        self.seconds += seconds
        self._first = None
        return place

    def first(self) -> T:
        """The work that is next; something must wait."""
        return self._next()[1]

    def take(self) -> T:
        """Remove the work that is next, and charge its caller for it; something must wait."""
        place, _ = self._next()
        kinds = self._callers[place.caller].shares
        self._shares.present = max(self._shares.present, self._shares.times[place.caller])
        kinds.present = max(kinds.present, kinds.times[place.kind])
        self._shares.charge(place.caller, place.seconds)
        kinds.charge(place.kind, place.seconds)
        return self.remove(place)

    def remove(self, place: Place) -> T:
        """Remove waiting work from its place."""
        of_caller = self._callers[place.caller]
        of_kind = of_caller.queues[place.kind]
        _, work = of_kind.work.pop(place.number)
        of_kind.seconds -= place.seconds
        of_caller.seconds -= place.seconds
        self.seconds -= place.seconds
        self._first = None
        if not of_kind.work:
            del of_caller.queues[place.kind]
            of_caller.shares.leave(place.kind)
        if not of_caller.queues:
            del self._callers[place.caller]
            self._shares.leave(place.caller)
        if not self._callers:
            # Nothing waits, so all shares begin anew. The rounding errors of the sums end here, too.
            self._shares, self.seconds = VirtualTimes(), 0.0
        return work

    def charge(self, caller: str, seconds: float) -> None:
        """Charge a caller for more seconds than its work was expected to take, or for work that did not wait."""
        self._shares.charge(caller, seconds)
        self._first = None

    def seconds_before(self, caller: str, model: str, seconds: float) -> float:
        """Estimated seconds of one thread that are taken before work that would be put now is begun.

        They are those of the caller's own work of its kind, and what its other kinds, and other callers, get by their
        shares meanwhile; but no more than they have.
        """
        of_caller = self._callers.get(caller)
        own_s, others_s, others = 0.0, self.seconds, len(self._callers)
        if of_caller is not None:
            others_s, others = others_s - of_caller.seconds, others - 1
            of_kind = of_caller.queues.get(_kind(model, seconds))
            own_s = of_kind.seconds if of_kind is not None else 0.0
            kinds = len(of_caller.queues) - (of_kind is not None)
            own_s += min(of_caller.seconds - own_s, (own_s + seconds) * kinds)
        return own_s + min(others_s, (own_s + seconds) * others)

    def _next(self) -> tuple[Place, T]:
        if self._first is None:
            callers = self._callers
            caller = next(iter(callers)) if len(callers) == 1 else min(callers, key=self._shares.times.__getitem__)
            of_caller = callers[caller]
            kind = min(of_caller.queues, key=of_caller.shares.times.__getitem__)
            self._first = next(iter(of_caller.queues[kind].work.values()))
        return self._first


def _kind(model: str, seconds: float) -> Kind:
    return Kind(model, round(math.log(seconds, SIZE_CLASS)) if seconds > 0 else 0)
