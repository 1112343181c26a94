"""Medians, spreads and ratios over the rounds of a run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.network import Kind
from benchmarks.results import Load, Run, Visit
from benchmarks.servers import OURS, Arrangement, Who

MAIN_LEVEL = 32
LARGE_LEVEL = 8
"""Clients for models that take a core a good part of a second for an image."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over the rounds: median, minimum and maximum."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def text(self, digits: int = 1) -> str:
        if not self.values:
            return "-"
        if len(self.values) == 1:
            return f"{self.values[0]:.{digits}f}"
        least, most = min(self.values), max(self.values)
        return f"{self.median:.{digits}f} [{least:.{digits}f} to {most:.{digits}f}]"


def spread(
    visits: Sequence[Visit], task: str, loop: str, level: float, value: Callable[[Load], float | None]
) -> Spread:
    """One figure of one kind of load, over the rounds."""
    loads = [one.load(task, loop, level) for one in visits]
    values = [value(load) for load in loads if load is not None]
    return Spread(tuple(one for one in values if one is not None))


def rate(run: Run, who: Who, level: float = MAIN_LEVEL) -> Spread:
    """Answers a second in a closed loop."""
    return spread(run.of(who), "classify", "closed", level, lambda load: load.answers)


def best_peer(run: Run, network: str, arrangements: Iterable[Arrangement] = tuple(Arrangement)) -> Who | None:
    """The peer with the highest median rate with a network, in any of the arrangements."""
    peers = {one.who for one in run.visits if one.server != OURS and one.network == network}
    rates = {who: rate(run, who) for who in peers if who.arrangement in arrangements}
    measured = {who: one.median for who, one in rates.items() if one.values}
    return max(sorted(measured), key=lambda who: measured[who], default=None)


def ratio(run: Run, ours: Who, theirs: Who, level: float = MAIN_LEVEL) -> Spread:
    """The ratio of two servers' rates, round by round."""
    pairs = []
    for number in range(run.plan.rounds):
        loads = [_load_of(run, one, number, level) for one in (ours, theirs)]
        if loads[0] is not None and loads[1] is not None and loads[1].answers > 0:
            pairs.append(loads[0].answers / loads[1].answers)
    return Spread(tuple(pairs))


def share_of_limit(run: Run, who: Who, level: float = MAIN_LEVEL) -> Spread:
    """A server's rate over the limit of network and decoding alone, round by round."""
    shares = []
    for number, limit in enumerate(run.limits):
        load = _load_of(run, who, number, level)
        if load is not None:
            shares.append(load.answers / limit.per_second(BENCH_MODEL, who.network))
    return Spread(tuple(shares))


BENCH_MODEL = "convmlp_bench_s"
NETWORKS = (Kind.FASTEST, Kind.EAGER, Kind.FP32)


def _load_of(run: Run, who: Who, number: int, level: float) -> Load | None:
    for one in run.of(who):
        if one.round == number:
            return one.load("classify", "closed", level)
    return None
