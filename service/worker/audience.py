"""The front-ends that hear of every change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MAX_FRONT_ENDS = 1024


@dataclass(frozen=True, slots=True)
class _FrontEnd:
    heard_s: float
    knows: frozenset[str]


class Audience:
    """Front-ends that were heard of lately, by their address, and the versions whose configs each of them has."""

    def __init__(self, forget_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._forget_after_s = forget_after_s
        self._clock = clock
        self._front_ends: dict[bytes, _FrontEnd] = {}

    def heard(self, front_end: bytes, knows: Iterable[str]) -> None:
        """A front-end said what it has."""
        self._front_ends.pop(front_end, None)
        self._front_ends[front_end] = _FrontEnd(self._clock(), frozenset(knows))
        if len(self._front_ends) > MAX_FRONT_ENDS:
            del self._front_ends[next(iter(self._front_ends))]  # the one that was silent for longest

    def told(self, front_end: bytes, versions: Iterable[str]) -> None:
        """A front-end was sent these."""
        known = self._front_ends.get(front_end)
        if known is not None:
            self._front_ends[front_end] = _FrontEnd(known.heard_s, known.knows.union(versions))

    def knows(self, front_end: bytes) -> frozenset[str]:
        known = self._front_ends.get(front_end)
        return known.knows if known is not None else frozenset()

    def present(self) -> tuple[bytes, ...]:
        """Who is there still."""
        oldest_s = self._clock() - self._forget_after_s
        self._front_ends = {key: one for key, one in self._front_ends.items() if one.heard_s >= oldest_s}
        return tuple(self._front_ends)
