"""How requests ended, one by one and together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np


class Ending(StrEnum):
    ANSWERED = "answered"
    REFUSED = "refused"
    """The server said that it has too much to do, and did none of it."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`kind` says why, where it was not answered: the code of the error, or what broke."""

    ending: Ending
    kind: str = ""


ANSWERED = Outcome(Ending.ANSWERED)

Ask = Callable[[int], Awaitable[Outcome]]
"""Sends one request, the n-th of all, and waits for its end. Raises nothing: what goes wrong is an outcome."""


@dataclass(slots=True)
class Tally:
    """What the requests of one measurement came to; a loop fills it.

    `latencies_s`: of the answered ones that were due within the window. `in_window`: answers that came within it,
    whenever they were asked for; the rate is theirs, so that neither end of the window distorts it.
    """

    seconds: float
    latencies_s: list[float] = field(default_factory=list)
    in_window: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    unsent: int = 0
    """Requests of an open loop that were due while as many as the loop may have in hand were unanswered."""

    def count(self, outcome: Outcome, latency_s: float) -> None:
        match outcome.ending:
            case Ending.ANSWERED:
                self.latencies_s.append(latency_s)
            case Ending.REFUSED:
                self.refused[outcome.kind] += 1
            case Ending.FAILED:
                self.failed[outcome.kind] += 1

    @property
    def per_second(self) -> float:
        return self.in_window / self.seconds

    @property
    def requests(self) -> int:
        """All that were due within the window."""
        return len(self.latencies_s) + self.refused.total() + self.failed.total() + self.unsent

    def percentiles_ms(self, *percents: float) -> list[float]:
        """Of the answered requests; NaN where none was."""
        if not self.latencies_s:
            return [float("nan")] * len(percents)
        return [float(value) * 1000 for value in np.percentile(self.latencies_s, percents)]

    @property
    def mean_ms(self) -> float:
        return float(np.mean(self.latencies_s)) * 1000 if self.latencies_s else float("nan")
