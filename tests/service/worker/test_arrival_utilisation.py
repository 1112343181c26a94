"""How busy the device is when jobs arrive."""

from __future__ import annotations

import pytest

from service.worker.batching import DECAY_S, ArrivalUtilisation


def test_the_first_arrival_is_the_first_value() -> None:
    """Before the first arrival the utilisation is 0; then it is that of the first arrival."""
    utilisation = ArrivalUtilisation()
    assert utilisation.recent == 0.0
    utilisation.record(0.5, now_s=100.0)
    assert utilisation.recent == 0.5


def test_it_is_the_mean_over_arrivals() -> None:
    """Where every second arrival finds the device busy, it is half busy."""
    utilisation = ArrivalUtilisation()
    for number in range(1000):
        utilisation.record(float(number % 2), now_s=number * 0.01)
    assert utilisation.recent == pytest.approx(0.5, abs=0.02)


def test_a_burst_counts_as_one_arrival() -> None:
    """Jobs that arrive together do not count the lanes that the first of them took."""
    utilisation = ArrivalUtilisation()
    utilisation.record(0.0, now_s=1.0)
    for _ in range(100):
        utilisation.record(1.0, now_s=1.0)
    assert utilisation.recent == 0.0


def test_old_arrivals_are_forgotten() -> None:
    """A burst of some seconds ago does not count."""
    utilisation = ArrivalUtilisation()
    for number in range(100):
        utilisation.record(1.0, now_s=number * 0.01)
    assert utilisation.recent > 0.9
    utilisation.record(0.0, now_s=1.0 + 10 * DECAY_S)
    assert utilisation.recent < 0.001
