"""When a lost worker is expected back, on a clock that the test moves."""

from __future__ import annotations

from service.wire.worker_view import FIRST_RETRY_S, MIN_RETRY_S, Recovery
from tests.fakes import FakeClock


def test_before_anything_is_known_the_time_doubles() -> None:
    """Who asks again and again while the worker is away asks a logarithmic number of times."""
    clock = FakeClock()
    recovery, asked_s = Recovery(clock), []
    for _ in range(6):
        asked_s.append(recovery.left_s())
        clock.now_s += asked_s[-1]
    assert asked_s == [FIRST_RETRY_S, FIRST_RETRY_S, 4.0, 8.0, 16.0, 32.0]


def test_the_last_outage_is_the_estimate_of_the_next() -> None:
    """After an outage of 80 s a caller of the next one learns the time that is left of 80 s."""
    clock = FakeClock()
    recovery = Recovery(clock)
    clock.now_s += 80.0
    recovery.ready()
    clock.now_s += 1000.0
    recovery.lost()
    assert recovery.left_s() == 80.0
    clock.now_s += 30.0
    recovery.lost()  # it is still away
    assert recovery.left_s() == 50.0
    clock.now_s += 49.9
    assert recovery.left_s() == MIN_RETRY_S


def test_an_outage_that_lasts_longer_than_the_last_doubles() -> None:
    """A supervisor that waits longer from one restart to the next is followed."""
    clock = FakeClock()
    recovery = Recovery(clock)
    clock.now_s += 10.0
    recovery.ready()
    recovery.lost()
    clock.now_s += 25.0
    assert recovery.left_s() == 25.0


def test_the_worker_s_own_start_is_known_before_the_first_outage() -> None:
    """A front-end that found the worker ready knows how long its start took from the worker. What it measures itself
    includes the time until the start began, and counts from then on."""
    clock = FakeClock()
    recovery = Recovery(clock)
    recovery.ready()
    recovery.learn(5.0)
    recovery.lost()
    assert recovery.left_s() == 5.0
    clock.now_s += 6.5
    recovery.ready()
    recovery.learn(5.0)
    recovery.lost()
    assert recovery.left_s() == 6.5


def test_a_worker_that_is_there_needs_no_time() -> None:
    """Between an answer that failed and the news of the loss the shortest time is given."""
    recovery = Recovery(FakeClock())
    recovery.ready()
    assert recovery.left_s() == MIN_RETRY_S


def test_what_the_first_start_measured_is_not_expected_again() -> None:
    """The first start of all takes 80 s, of which 75 are measurements that later starts do not repeat, as the worker
    reports. The next outage is expected to take 5 s, and the one after it as long as that one took."""
    clock = FakeClock()
    recovery = Recovery(clock)
    clock.now_s += 80.0
    recovery.ready()
    recovery.learn(5.0)
    recovery.lost()
    assert recovery.left_s() == 5.0
    clock.now_s += 7.0
    recovery.learn(0.0)
    recovery.ready()
    recovery.learn(5.0)
    recovery.lost()
    assert recovery.left_s() == 7.0
