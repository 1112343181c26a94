"""What a front-end expects of a worker, on a clock that moves when the test says so."""

from __future__ import annotations

import pytest

from service.wire.forecast import MAX_KINDS, Forecast, Kind
from service.wire.messages import WaitEstimate
from tests.service.worker.dispatcher_bench import Clock


def at_work(clock: Clock) -> Kind:
    """A kind of which one is with the worker, that told of 3 s for the next one and 0.5 s for each more."""
    kind = Forecast(clock).kind("v", 10.0)
    kind.send()
    kind.learn(WaitEstimate(3.0, 0.5))
    return kind


def test_where_nothing_is_known_nothing_is_expected() -> None:
    """However many are in hand: what was never answered is not judged."""
    kind = Forecast(Clock()).kind("v", 10.0)
    for _ in range(100):
        kind.prepare()
    assert kind.expected_s() == 0.0


def test_time_passes_for_what_was_told() -> None:
    """A worker works on after its answer: so long after it there is so much less to wait for, in the end nothing."""
    clock = Clock()
    kind = at_work(clock)
    assert kind.expected_s() == 3.0
    clock.now_s += 2.0
    assert kind.expected_s() == 1.0
    clock.now_s += 2.0
    assert kind.expected_s() == 0.0
    kind.send()
    assert kind.expected_s() == 0.5


def test_what_is_sent_counts_from_the_moment_that_it_is_prepared_and_once() -> None:
    """A picture that is being decoded will be before the next one; when it is sent, or is none, it does not count
    twice."""
    kind = at_work(Clock())
    for _ in range(4):
        kind.prepare()
    assert kind.expected_s() == 5.0
    kind.prepared()
    kind.send()
    assert kind.expected_s() == 5.0
    kind.prepared()  # it was no picture
    assert kind.expected_s() == 4.5


def test_an_answer_brings_the_truth_up_to_the_moment() -> None:
    """What the worker tells replaces all that was expected, but for what has not reached it yet."""
    kind = at_work(Clock())
    for _ in range(4):
        kind.send()
    kind.prepare()
    kind.done()
    kind.learn(WaitEstimate(1.0, 0.25))
    assert kind.expected_s() == 1.25


def test_where_none_is_in_hand_one_is_tried() -> None:
    """An estimate that is too high is found out: it holds only while another one may bring a better."""
    kind = at_work(Clock())
    kind.learn(WaitEstimate(1000.0, 1000.0))
    assert kind.expected_s() == 1000.0
    kind.done()
    assert kind.expected_s() == 0.0


def test_what_is_due_much_later_or_sooner_is_another_kind() -> None:
    """What one more without hurry would wait for says nothing of an urgent one, nor a model of another."""
    forecast = Forecast(Clock())
    patient = forecast.kind("v", 30.0)
    patient.send()
    patient.learn(WaitEstimate(20.0, 0.5))
    assert forecast.kind("v", 29.9) is patient
    for other in (forecast.kind("v", 0.5), forecast.kind("w", 30.0)):
        other.send()
        assert other.expected_s() == 0.0


def test_a_lost_worker_s_backlog_is_lost_with_it() -> None:
    """Nothing of what was known of a worker is expected of the one that takes its place."""
    forecast = Forecast(Clock())
    kind = forecast.kind("v", 10.0)
    kind.send()
    kind.learn(WaitEstimate(1000.0, 1000.0))
    forecast.forget()
    kind.done()
    successor = forecast.kind("v", 10.0)
    successor.send()
    assert successor.expected_s() == 0.0


@pytest.mark.parametrize("kept", [0, 1])
def test_so_many_kinds_are_remembered(kept: int) -> None:
    """The oldest kind is forgotten for one more than the bound, and not before."""
    forecast = Forecast(Clock())
    first = forecast.kind("0", 10.0)
    for number in range(1, MAX_KINDS + 1 - kept):
        forecast.kind(str(number), 10.0)
    assert (forecast.kind("0", 10.0) is first) == bool(kept)
