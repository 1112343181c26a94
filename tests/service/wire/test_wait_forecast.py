"""What a front-end expects of a worker, on a clock that the test moves."""

from __future__ import annotations

from service.wire.messages import WaitEstimate
from service.wire.worker_client import WaitForecast
from tests.fakes import FakeClock

BUDGET_S = 10.0
"""The time left of every request in these tests, unless a test sets another."""


def learnt(clock: FakeClock) -> WaitForecast:
    """One request is pending. An earlier answer brought 3 s for the next request and 0.5 s for each more."""
    forecast = WaitForecast(clock)
    forecast.sent()
    forecast.sent()
    forecast.ended(BUDGET_S, WaitEstimate(3.0, 0.5))
    return forecast


def test_without_an_answer_nothing_is_expected() -> None:
    """However many requests are prepared or sent: a worker that has not answered is not judged."""
    forecast = WaitForecast(FakeClock())
    for _ in range(100):
        forecast.reserve()
        forecast.sent()
    assert forecast.expected_s(BUDGET_S) == 0.0


def test_the_expected_wait_falls_as_time_passes() -> None:
    """The worker goes on after its answer: so many seconds later the wait is so much shorter, in the end 0."""
    clock = FakeClock()
    forecast = learnt(clock)
    assert forecast.expected_s(BUDGET_S) == 3.0
    clock.now_s += 2.0
    assert forecast.expected_s(BUDGET_S) == 1.0
    clock.now_s += 2.0
    assert forecast.expected_s(BUDGET_S) == 0.0
    forecast.sent()
    assert forecast.expected_s(BUDGET_S) == 0.5


def test_a_request_counts_once_from_its_reservation_on() -> None:
    """A picture that is being decoded is ahead of the next one. It counts no more if it cannot be decoded."""
    forecast = learnt(FakeClock())
    for _ in range(4):
        forecast.reserve()
    assert forecast.expected_s(BUDGET_S) == 5.0
    forecast.prepared()
    forecast.sent()
    assert forecast.expected_s(BUDGET_S) == 5.0
    forecast.prepared()  # it could not be decoded
    assert forecast.expected_s(BUDGET_S) == 4.5


def test_an_answer_replaces_what_was_expected() -> None:
    """The worker's estimate includes every request that was sent; those that are being prepared are added to it."""
    forecast = learnt(FakeClock())
    for _ in range(4):
        forecast.sent()
    forecast.reserve()
    forecast.ended(BUDGET_S, WaitEstimate(1.0, 0.25))
    assert forecast.expected_s(BUDGET_S) == 1.25


def test_a_failed_request_brings_no_estimate() -> None:
    """After a failure the last estimate still holds."""
    forecast = learnt(FakeClock())
    forecast.sent()
    forecast.ended(BUDGET_S, None)
    assert forecast.expected_s(BUDGET_S) == 3.5


def test_without_a_pending_request_one_is_tried() -> None:
    """An estimate that is too high is corrected: it holds only while a pending request may bring a better one."""
    forecast = learnt(FakeClock())
    forecast.ended(BUDGET_S, WaitEstimate(1000.0, 1000.0))
    assert forecast.expected_s(BUDGET_S) == 0.0
    forecast.sent()
    assert forecast.expected_s(BUDGET_S) >= 1000.0


def test_a_much_more_urgent_request_is_not_judged() -> None:
    """The worker serves urgent requests first: an estimate holds for requests that are due later, or little sooner."""
    forecast = learnt(FakeClock())
    assert forecast.expected_s(0.5 * BUDGET_S) == forecast.expected_s(10 * BUDGET_S) == 3.0
    assert forecast.expected_s(0.49 * BUDGET_S) == 0.0


def test_a_picture_in_windows_counts_as_many_requests() -> None:
    """Its own windows are waited for, and those of one that is being prepared; afterwards none of them counts."""
    forecast = learnt(FakeClock())
    assert forecast.expected_s(BUDGET_S, images=11) == 8.0
    forecast.reserve(10)
    assert forecast.expected_s(BUDGET_S) == 8.0
    forecast.prepared(10)
    assert forecast.expected_s(BUDGET_S) == 3.0
