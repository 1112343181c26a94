"""The policies side by side in the simulation, at a share of this service's simulated capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from benchmarks.tail.policies import policies
from benchmarks.tail.simulation import Curve, Result, Simulation, bound_s, capacity, poisson

REQUESTS = 6000
SEEDS = (1, 2, 3)
CLIENTS = 32
LATE = 0.01
SATURATED = 50.0
"""A policy whose p99 is so many times the bound cannot serve the load."""


@dataclass(frozen=True, slots=True)
class Row:
    policy: str
    p50_ms: float
    p99_ms: float
    p99_by_model_ms: Mapping[str, float]
    images: float
    """Of a batch, as a request sees it, on average."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """`lone_ms`: of a lone request. `bound_ms`: below this no policy's p99 can be."""

    capacity: float
    offered: float
    lone_ms: Mapping[str, float]
    bound_ms: float
    rows: Sequence[Row]

    @property
    def best(self) -> Row:
        return min(self.rows, key=lambda row: row.p99_ms)

    @property
    def over_best(self) -> float:
        return self.rows[0].p99_ms / self.best.p99_ms


def compare(
    curves: Mapping[str, Curve], lanes: int, load: float, shares: Mapping[str, float], requests: int = REQUESTS
) -> Comparison:
    """At a load that is a part of the capacity. `shares`: of the requests, by model. All policies get the same ones."""
    made = policies(len(curves))
    ours = next(iter(made.values()))
    most = capacity(curves, lanes, ours(curves, lanes), shares, CLIENTS, requests)
    rates = {model: load * most * share / sum(shares.values()) for model, share in shares.items()}
    arrivals = [poisson(rates, requests, seed) for seed in SEEDS]
    rows = []
    for name, make in made.items():
        results = [Simulation(curves, lanes, make(curves, lanes), one).run() for one in arrivals]
        rows.append(_row(name, results, list(curves)))
    return Comparison(
        most,
        load * most,
        {model: (curve.lone_s + curve.decode_s) * 1000 for model, curve in curves.items()},
        mean(bound_s(curves, lanes, one, LATE) for one in arrivals) * 1000,
        rows,
    )


def _row(name: str, results: Sequence[Result], models: Sequence[str]) -> Row:
    return Row(
        name,
        mean(one.percentile_ms(50) for one in results),
        mean(one.percentile_ms(99) for one in results),
        {model: mean(one.percentile_ms(99, model) for one in results) for model in models},
        mean(mean(one.images) for one in results),
    )


def lines(comparison: Comparison) -> list[str]:
    """A table in Markdown, and its conclusion."""
    models = list(comparison.lone_ms)
    several = models if len(models) > 1 else []
    head = ["policy", "p50 ms", "p99 ms", *(f"p99 ms of {model}" for model in several), "images", "p99 over the best"]
    table = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    best = comparison.best.p99_ms
    for row in comparison.rows:
        if row.p99_ms > SATURATED * comparison.bound_ms:
            cells = [row.policy, *["cannot serve this load", ""], *[""] * len(several), "", ""]
        else:
            by_model = (f"{row.p99_by_model_ms[model]:.0f}" for model in several)
            cells = [row.policy, f"{row.p50_ms:.0f}", f"{row.p99_ms:.0f}", *by_model, f"{row.images:.1f}"]
            cells.append(f"{row.p99_ms / best:.2f}")
        table.append("| " + " | ".join(cells) + " |")
    lone = max(comparison.lone_ms.values())
    return [
        f"Simulated: capacity {comparison.capacity:.1f}/s, offered {comparison.offered:.1f}/s; a lone request takes "
        + ", ".join(f"{ms:.1f} ms ({model})" for model, ms in comparison.lone_ms.items()),
        "",
        *table,
        "",
        f"This service's p99 is {comparison.over_best:.2f} of the best policy's, {comparison.best.policy!r}. "
        f"No policy, not even one that knows all arrivals, has a p99 below {comparison.bound_ms:.0f} ms: "
        f"{comparison.bound_ms / lone:.1f} times a lone request" + (" of the slowest model." if several else "."),
    ]
