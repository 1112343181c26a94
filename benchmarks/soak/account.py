"""What became of each request, and whether a fault excuses it.

Each request ends in exactly one way. Some ends are always right (an answer, an honest refusal, the expected error for a
bad input); others are right only while a fault is in effect, for example a broken connection after its process was
killed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

SETTLE_S = 3.0
"""How long after a fault its effects may still show: requests in flight end, and connections are opened again."""
MAX_VIOLATIONS = 50
"""Violations kept with their details. All are counted."""


class End(StrEnum):
    ANSWERED = "answered"
    """With the answer that the same image got when nothing disturbed the service."""
    REJECTED = "rejected"
    """A bad input, with the error that the contract names for it."""
    LEFT = "left"
    """The caller left before the answer."""
    REFUSED = "refused"
    """503 or 429 with Retry-After, or their gRPC counterparts."""
    TIMED_OUT = "timed out"
    """504 or DEADLINE_EXCEEDED at the deadline."""
    CUT = "cut"
    """The connection broke before the answer."""
    UNANSWERED = "unanswered"
    """No answer came long after the deadline."""
    WRONG = "wrong"
    """Another answer or error than the contract's."""


ALWAYS_RIGHT = frozenset({End.ANSWERED, End.REJECTED, End.LEFT, End.REFUSED})


@dataclass(frozen=True, slots=True)
class Ended:
    end: End
    detail: str = ""


@dataclass(slots=True)
class Effect:
    """A fault's effect from `start_s` to `end_s` (None: it lasts), and the ends that it excuses."""

    fault: str
    excuses: frozenset[End]
    start_s: float
    end_s: float | None = None

    def covers(self, start_s: float, end_s: float) -> bool:
        return self.start_s <= end_s and (self.end_s is None or start_s <= self.end_s + SETTLE_S)


@dataclass(slots=True)
class Recovery:
    """`seconds` from a fault's end until the service answered again. The fault was caused `at_s` after the start."""

    fault: str
    at_s: float
    seconds: float


@dataclass(slots=True)
class Account:
    """All requests by kind and end, the faults, and what no fault excuses."""

    sent: Counter[str] = field(default_factory=Counter)
    ends: dict[str, Counter[End]] = field(default_factory=dict)
    recoveries: list[Recovery] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    violation_count: int = 0
    start_s: float = field(default_factory=time.monotonic)
    _effects: list[Effect] = field(default_factory=list)

    def count(self, kind: str, ended: Ended, start_s: float) -> None:
        """Count the end of a request that was sent at `start_s`, on the clock of `time.monotonic`."""
        self.ends.setdefault(kind, Counter())[ended.end] += 1
        if ended.end in ALWAYS_RIGHT:
            return
        now_s = time.monotonic()
        if any(ended.end in effect.excuses and effect.covers(start_s, now_s) for effect in self._effects):
            return
        self.violate(
            f"at {now_s - self.start_s:.0f} s {kind}: {ended.end} after {now_s - start_s:.2f} s: {ended.detail}"
        )

    def violate(self, what: str) -> None:
        self.violation_count += 1
        if len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(what)

    @contextmanager
    def fault(self, name: str, *excuses: End) -> Iterator[None]:
        """A fault's effect: while the block runs, from the cause to the recovery, and SETTLE_S after it."""
        effect = Effect(name, frozenset(excuses), time.monotonic())
        self._effects.append(effect)
        try:
            yield
        finally:
            effect.end_s = time.monotonic()

    def close(self) -> None:
        """Check that each request that was sent has one end."""
        for kind, sent in self.sent.items():
            if (ended := self.ends.get(kind, Counter()).total()) != sent:
                self.violate(f"{kind}: {sent} requests sent, {ended} ended")

    def total(self, end: End) -> int:
        return sum(ends[end] for ends in self.ends.values())
