"""Simulated load beyond the capacity: this service's scheduler, its admission, and its front-end's forecast.

All requests have the same deadline. What is accepted and late, what is refused, and whether its Retry-After is true.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import numpy as np

from benchmarks.tail.policies import Ours
from benchmarks.tail.simulation import Curve, Request, Result, Simulation, capacity, poisson
from model.errors import ConvMLPError
from service.errors import Overloaded, RetryLater, too_late
from service.wire.messages import WaitEstimate
from service.wire.worker_client import WaitForecast
from service.worker.admission import Admission
from service.worker.types import Job, JobResult, RunningBatch

CLIENTS = 32
"""Of the closed loop whose rate is the capacity."""
REQUESTS = 6000
SEEDS = (1, 2, 3)
SPREADS = (0.0, 0.4)
"""Standard deviations of the time of a batch, as parts of it."""


class Admitting(Ours):
    """This service's scheduler and admission."""

    def __init__(self, curves: Mapping[str, Curve], lanes: int) -> None:
        super().__init__(curves, lanes)
        self.now_s = 0.0
        self.running: list[RunningBatch] = []
        self.admission = Admission(
            self._queue, self.running, self._latency, self._limits, lanes, lambda: self.now_s, can_overlap=True
        )

    def put(self, job: Job, free: int, now_s: float) -> None:
        self.now_s = now_s
        try:
            self.admission.admit(job)
        except Overloaded as refusal:
            job.reply(job, JobResult(refusal, 0.0, 0.0))
            return
        self._scheduler.arrived(free, now_s)

    def next(self, free: int, running: Sequence[RunningBatch], now_s: float) -> RunningBatch | None:
        self.now_s = now_s
        if self._queue.images:
            for job, error in self.admission.remove_late():
                job.reply(job, JobResult(error, now_s - job.enqueued_s, 0.0))
        batch = super().next(free, running, now_s)
        if batch is not None:
            self.running.append(batch)
        return batch

    def ended(self, batch: RunningBatch, seconds: float) -> None:
        self.running.remove(batch)
        super().ended(batch, seconds)

    def estimate(self, job: Job, now_s: float) -> WaitEstimate:
        self.now_s = now_s
        return self.admission.wait_estimate(job.shape, job.deadline_s - job.enqueued_s)


class ForecastingFrontEnd:
    """One front-end, which refuses before decoding what its worker would refuse."""

    def __init__(self, worker: Admitting, models: Sequence[str]) -> None:
        self._worker = worker
        self._now_s = 0.0
        self._forecasts = {model: WaitForecast(lambda: self._now_s) for model in models}

    def arrived(self, request: Request, deadline_s: float, now_s: float) -> ConvMLPError | None:
        self._now_s = now_s
        forecast, left_s = self._forecasts[request.model], deadline_s - now_s
        expected_s = forecast.expected_s(left_s)
        if expected_s > left_s:
            return too_late(expected_s, expected_s)
        forecast.reserve()
        return None

    def decoded(self, request: Request, now_s: float) -> None:
        self._now_s = now_s
        forecast = self._forecasts[request.model]
        forecast.prepared()
        forecast.sent()

    def ended(self, job: Job, *, answered: bool, now_s: float) -> None:
        self._now_s = now_s
        estimate = self._worker.estimate(job, now_s) if answered else None
        self._forecasts[job.shape.model].ended(job.deadline_s - job.enqueued_s, estimate)


@dataclass(frozen=True, slots=True)
class Overload:
    """What happened to the requests.

    `goodput`: answers in time, over the capacity. `refused`: of all requests, when they came. `late`: of those that
    were accepted, answered late or refused after they waited; `late_ms`: at most by so much. `answered`: by model, the
    share of its requests that is answered in time. `retry_ratio`: percentiles 5 and 95 of Retry-After over the time
    after which all that had been accepted had ended, both in whole seconds as the header has it.
    """

    spread: float
    goodput: float
    refused: float
    late: float
    late_ms: float
    refusals_p99_ms: float
    retry_ratio: tuple[float, float]
    answered: Mapping[str, float]


def overload(
    curves: Mapping[str, Curve],
    lanes: int,
    shares: Mapping[str, float],
    factor: float,
    deadline_s: float,
    spread: float = 0.0,
    requests: int = REQUESTS,
    seeds: Sequence[int] = SEEDS,
) -> Overload:
    """Means over some runs at a multiple of the capacity. `shares`: of the requests, by model. `spread`: the standard
    deviation of a batch's time, as a part of it."""
    most = capacity(curves, lanes, Ours(curves, lanes), shares, CLIENTS, requests)
    rates = {model: factor * most * share / sum(shares.values()) for model, share in shares.items()}
    runs = []
    for seed in seeds:
        arrivals = [replace(one, deadline_s=deadline_s) for one in poisson(rates, requests, seed)]
        result = _run(curves, lanes, arrivals, spread, seed)
        runs.append(_outcome(result, arrivals, list(curves), most, spread))
    return Overload(
        spread,
        mean(run.goodput for run in runs),
        mean(run.refused for run in runs),
        mean(run.late for run in runs),
        max(run.late_ms for run in runs),
        max(run.refusals_p99_ms for run in runs),
        (min(run.retry_ratio[0] for run in runs), max(run.retry_ratio[1] for run in runs)),
        {model: mean(run.answered[model] for run in runs) for model in curves},
    )


def _run(curves: Mapping[str, Curve], lanes: int, arrivals: Sequence[Request], spread: float, seed: int) -> Result:
    worker, draw = Admitting(curves, lanes), random.Random(seed)

    def factor() -> float:
        return draw.lognormvariate(-(spread**2) / 2, spread)

    front_end = ForecastingFrontEnd(worker, list(curves))
    return Simulation(curves, lanes, worker, arrivals, front_end=front_end, disturb=factor).run()


def _outcome(
    result: Result, arrivals: Sequence[Request], models: Sequence[str], most: float, spread: float
) -> Overload:
    answered = list(zip(result.requests, result.latencies_s, strict=True))
    in_time = [request for request, latency_s in answered if latency_s <= request.deadline_s]
    refused = [one for one in result.refusals if not one.accepted]
    accepted = len(answered) + len(result.refusals) - len(refused)
    count = {model: sum(one.model == model for one in arrivals) for model in models}
    # The latest end of what was accepted before each time.
    ends = sorted((request.due_s, request.due_s + latency_s) for request, latency_s in answered)
    due, latest = np.array([one for one, _ in ends]), np.maximum.accumulate([one for _, one in ends])
    ratios = []
    for one in refused:
        before = int(np.searchsorted(due, one.request.due_s))
        if before and isinstance(one.error, RetryLater):
            truth_s = max(1, math.ceil(latest[before - 1] - one.at_s))
            ratios.append(max(1, math.ceil(one.error.retry_after_s)) / truth_s)
    low, high = np.percentile(ratios or [1.0], (5, 95))
    return Overload(
        spread,
        len(in_time) / max(arrivals[-1].due_s, result.ended_s - arrivals[0].deadline_s) / most,
        len(refused) / len(arrivals),
        1 - len(in_time) / accepted,
        max([0.0, *((latency_s - request.deadline_s) * 1000 for request, latency_s in answered)]),
        float(np.percentile([(one.at_s - one.request.due_s) * 1000 for one in refused] or [0.0], 99)),
        (float(low), float(high)),
        {model: sum(one.model == model for one in in_time) / max(1, count[model]) for model in models},
    )


def overload_lines(rows: Sequence[Overload], factor: float, deadline_s: float) -> list[str]:
    """A table in Markdown."""
    models = list(rows[0].answered)
    heads = ["spread of batch times", "in time over capacity", "refused", "accepted but late", "late by at most, ms"]
    heads += ["refusals p99, ms", "Retry-After over truth", *(f"answered of {model}" for model in models)]
    table = ["| " + " | ".join(heads) + " |", "|---:" * len(heads) + "|"]
    for row in rows:
        low, high = row.retry_ratio
        cells = [
            f"{row.spread:.0%}",
            f"{row.goodput:.2f}",
            f"{row.refused:.1%}",
            f"{row.late:.2%}",
            f"{row.late_ms:.0f}",
        ]
        cells += [
            f"{row.refusals_p99_ms:.0f}",
            f"{low:.2f}-{high:.2f}",
            *(f"{row.answered[model]:.0%}" for model in models),
        ]
        table.append("| " + " | ".join(cells) + " |")
    return [f"Simulated at {factor:.0%} of the capacity, deadline {deadline_s * 1000:.0f} ms:", "", *table]
