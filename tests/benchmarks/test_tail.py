"""The simulation of the tail's benchmark against known results, and how its report matches answers to batches."""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import mean

import pytest

from benchmarks.tail.compare import compare, lines
from benchmarks.tail.measure import Answer, Load, due_times, parse_timing
from benchmarks.tail.overload import Admitting, overload, overload_lines
from benchmarks.tail.policies import Bounded, Ours, policies
from benchmarks.tail.records import Batch, Collections, Pause, Records
from benchmarks.tail.report import STAGES, disturbance_lines, stage_lines, stories, worst_lines
from benchmarks.tail.simulation import Curve, Request, Result, Simulation, bound_s, capacity, poisson
from service.cli.load.loops import ANSWERED, Outcome, open_loop
from service.worker.types import RunningBatch

STEADY = Curve({1: 0.010, 2: 0.018, 4: 0.034}, lone_s=0.006, decode_s=0.001)
SLOW = Curve({1: 1.0, 2: 2.0}, lone_s=0.6, decode_s=0.001)


def run_bounded(curve: Curve, lanes: int, requests: Sequence[Request], images: int) -> Result:
    curves = {"m": curve}
    return Simulation(curves, lanes, Bounded(curves, lanes, images), requests).run()


def test_a_curve_is_a_line_between_measured_sizes() -> None:
    """Times between two sizes are interpolated, larger ones grow with the images, and all lanes make a batch faster."""
    assert STEADY.batch_s(3, 1, 2) == pytest.approx(0.026)
    assert STEADY.batch_s(8, 1, 2) == pytest.approx(0.068)
    assert STEADY.batch_s(1, 2, 2) == pytest.approx(0.006)
    assert STEADY.best_image_s == pytest.approx(0.0085)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_lane_waits_as_in_queueing_theory(load: float) -> None:
    """Without batches and decoding one lane is an M/D/1 queue, whose mean wait is known (Pollaczek, Khinchine)."""
    service_s = 0.01
    curve = Curve({1: service_s}, lone_s=service_s, decode_s=0.0)
    waits = run_bounded(curve, 1, poisson({"m": load / service_s}, 40_000, 3), 1).queue_s
    assert mean(waits) == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.05)


@pytest.mark.parametrize("name", policies(2))
def test_every_request_is_answered_once_and_not_before_it_can_be(name: str) -> None:
    """Under every policy all requests end, none sooner than a lone one, and none below the bound's percentile."""
    curves, rates = {"m": STEADY, "n": SLOW}, {"m": 40.0, "n": 0.4}
    requests = poisson(rates, 1000, 1)
    result = Simulation(curves, 2, policies(2)[name](curves, 2), requests).run()
    assert len(result.latencies_s) == len(requests)
    floors = {model: curve.lone_s + curve.decode_s for model, curve in curves.items()}
    assert all(one >= floors[of] - 1e-9 for one, of in zip(result.latencies_s, result.models, strict=True))
    assert result.percentile_ms(99) >= bound_s(curves, 2, requests, 0.01) * 1000


def test_the_bound_of_a_quiet_service_is_a_lone_request() -> None:
    """Where no request meets another, no policy is faster than a lone request, and this service is as fast."""
    requests = [Request(number, "m", 10.0 * number) for number in range(200)]
    curves = {"m": STEADY}
    assert bound_s(curves, 2, requests, 0.01) == pytest.approx(0.007)
    assert Simulation(curves, 2, Ours(curves, 2), requests).run().percentile_ms(99) == pytest.approx(7.0)


def test_the_capacity_is_that_of_the_fastest_batches() -> None:
    """A closed loop of many clients keeps both lanes in full batches; decoding takes its part of the cores."""
    curves = {"m": STEADY}
    answered = capacity(curves, 2, Bounded(curves, 2, 4), {"m": 1.0}, 32, 4000)
    assert answered == pytest.approx(2 / (0.0085 + 0.001), rel=0.03)


def test_a_short_request_does_not_wait_for_long_ones() -> None:
    """This service runs a short request beside two long ones; by order of arrival it waits for one of them."""
    curves = {"m": STEADY, "n": SLOW}
    requests = [Request(0, "n", 0.0), Request(1, "n", 0.0), Request(2, "m", 0.3)]
    ours = Simulation(curves, 2, Ours(curves, 2), requests).run()
    oldest = Simulation(curves, 2, Bounded(curves, 2, 1), requests).run()
    assert ours.percentile_ms(100, "m") < 30.0
    assert oldest.percentile_ms(100, "m") > 700.0
    assert ours.percentile_ms(100, "n") < oldest.percentile_ms(100, "n") + 30.0


def test_a_policy_that_keeps_jobs_is_an_error() -> None:
    """A policy that never starts a job ends the simulation with an error instead of a result."""

    class Never(Bounded):
        def next(self, free: int, running: Sequence[RunningBatch], now_s: float) -> None:  # noqa: ARG002
            return None

    curves = {"m": STEADY}
    with pytest.raises(RuntimeError, match="leaves jobs"):
        Simulation(curves, 2, Never(curves, 2, 1), [Request(0, "m", 0.0)]).run()


def test_a_comparison_names_the_best_policy() -> None:
    """The table has a row for each policy, and the conclusion the ratio to the best and the bound."""
    compared = compare({"m": STEADY}, 2, 0.8, {"m": 1.0}, requests=300)
    assert compared.offered == pytest.approx(0.8 * compared.capacity)
    assert compared.over_best == compared.rows[0].p99_ms / min(row.p99_ms for row in compared.rows) >= 1.0
    text = "\n".join(lines(compared))
    assert all(f"| {name} |" in text for name in policies(1))
    assert repr(compared.best.policy) in text


def test_an_overload_is_refused_before_it_is_late() -> None:
    """At 120 % of the capacity two models with unequal needs are answered in time or refused at once, with a
    Retry-After that is true within a factor of 2; the one that needs less than its share is always answered."""
    other = Curve({1: 0.030, 2: 0.050, 4: 0.096}, lone_s=0.018, decode_s=0.001)
    curves = {"m": STEADY, "n": other}
    done = overload(curves, 2, {"m": 1.0, "n": 1.0}, 1.2, 0.5, requests=2000, seeds=(1,))
    assert done.goodput >= 0.95
    assert 0.02 < done.refused <= 0.2
    assert done.late <= 0.005
    assert done.late_ms < 50.0
    low, high = done.retry_ratio
    assert 0.5 <= low <= high <= 2.0
    assert done.answered["m"] > 0.99 > done.answered["n"]
    assert f"| {done.goodput:.2f} |" in overload_lines([done], 1.2, 0.5)[-1]


def test_varying_times_make_few_answers_late() -> None:
    """Where the times of batches vary at random by 40 %, at most 2 % of what was accepted is late."""
    done = overload({"m": STEADY}, 2, {"m": 1.0}, 1.2, 0.5, 0.4, requests=2000, seeds=(1,))
    assert done.late <= 0.02
    assert done.goodput >= 0.95


def test_a_refused_request_is_not_answered() -> None:
    """A front-end refuses before decoding, and a worker when a job comes; each request ends once."""
    worker = Admitting({"m": SLOW}, 2)
    requests = [Request(number, "m", 0.01 * number, deadline_s=3.0) for number in range(20)]
    result = Simulation({"m": SLOW}, 2, worker, requests).run()
    refused = {one.request.number for one in result.refusals}
    answered = {request.number for request in result.requests}
    assert refused
    assert not refused & answered
    assert len(refused) + len(answered) == 20
    assert len(answered) == len(result.latencies_s)
    assert all(one.at_s == pytest.approx(one.request.due_s + SLOW.decode_s, abs=1e-3) for one in result.refusals)


async def test_due_times_are_those_of_the_open_loop() -> None:
    """The benchmark knows when each request of the load client was due."""
    sent = 0

    async def send(number: int) -> Outcome:
        nonlocal sent
        assert number == sent
        sent += 1
        return ANSWERED

    await asyncio.wait_for(open_loop(send, 200.0, 0.3), 60)
    assert sent == len(list(itertools.takewhile(lambda due_s: due_s < 0.3, due_times(200.0))))


def test_a_timing_header_is_parsed() -> None:
    """Stages in ms, and the images of the batch."""
    header = "decode;dur=1.10, queue;dur=2.00, infer;dur=20.50, post;dur=0.04, total;dur=24.00, batch;desc=3"
    assert parse_timing(header) == (
        {"decode": 1.1, "queue": 2.0, "infer": 20.5, "post": 0.04, "total": 24.0},
        3,
    )


def batch(started_s: float, seconds: float, images: int = 2, slot: str = "m#1") -> Batch:
    return Batch(slot, images, 1, started_s, started_s + seconds, cpu_s=seconds / 2, faults=7, switches=3)


def answer(sent_s: float, ended_s: float, stages: Mapping[str, float], images: int = 2) -> Answer:
    return Answer("m", sent_s - 0.001, sent_s, ended_s, stages, images)


def test_an_answer_is_matched_to_its_batch() -> None:
    """By model, images and times; its stages add up to its latency, and what ran before and meanwhile is listed."""
    own, before = batch(10.010, 0.020), batch(9.990, 0.0205)
    others = [batch(10.0101, 0.020, images=3), batch(10.0102, 0.020, slot="n#1"), batch(10.032, 0.0199)]
    pauses = [Pause("rest", 2, 10.005, 10.006), Pause("worker", 0, 11.0, 11.1)]
    records = Records([*others, own, before], pauses)
    one = answer(10.0, 10.034, {"decode": 1.5, "queue": 6.0, "infer": 20.1})
    (story,) = stories([one], records)
    assert story.batch == own
    assert list(story.ms) == list(STAGES)
    assert sum(story.ms.values()) == pytest.approx(one.ms)
    assert story.ms["before decoding"] == pytest.approx(2.5)
    assert story.before == [before]
    assert story.pauses == pauses[:1]
    (row,) = worst_lines([story], 9.0)[2:]
    assert "2 x m#1 20 ms" in row or "2 x m#1 21 ms" in row
    assert "rest 1.0 ms" in row
    assert stage_lines([story])[2].startswith("| p50 | 1.0 | 2.5 | 1.5 | 6.0 | 20.0 | 4.0 | 35.0 |")


def test_only_the_latest_batches_before_are_listed() -> None:
    """Of many batches before an answer's own, the table has the latest and the number of the others."""
    own = batch(10.9, 0.02)
    records = Records([*(batch(10.0 + at / 10, 0.09, images=1) for at in range(8)), own])
    (story,) = stories([answer(10.0, 10.93, {"decode": 0.5, "queue": 890.0, "infer": 20.0})], records)
    (row,) = worst_lines([story], 9.0)[2:]
    assert "| 4 others, 1 x m#1 90 ms, 1 x m#1 90 ms, 1 x m#1 90 ms, 1 x m#1 90 ms |" in row


def test_an_answer_without_its_batch_is_left_out() -> None:
    """A batch of another size, or one that began before the request was sent, is not taken instead."""
    records = Records([batch(10.010, 0.020, images=1), batch(9.99, 0.020)])
    assert stories([answer(10.0, 10.034, {"decode": 1.5, "queue": 1.0, "infer": 20.0})], records) == []


def test_disturbances_are_those_of_the_load() -> None:
    """Pauses and batches before the load do not count."""
    load = Load([answer(10.0, 10.1, {})], began_s=10.0)
    records = Records(
        [batch(9.0, 0.5), batch(10.0, 0.02)], [Pause("rest", 2, 9.0, 9.5), Pause("rest", 0, 10.0, 10.002)]
    )
    (line,) = disturbance_lines(records, load)
    assert "rest 1 times, at most 2.0 ms" in line
    assert "page faults p50 7, p99 7" in line
    assert "without a core for p50 50, p99 50 %" in line
    assert disturbance_lines(Records(), load) == []


def test_collections_are_recorded() -> None:
    """A run of the collector leaves a pause with its process and generation."""
    records = Records()
    recording = Collections("rest", records)
    try:
        gc.collect()
    finally:
        recording.close()
    gc.collect()
    assert [(one.process, one.generation) for one in records.pauses if one.generation == 2] == [("rest", 2)]
    assert all(one.seconds >= 0.0 and not math.isnan(one.seconds) for one in records.pauses)
