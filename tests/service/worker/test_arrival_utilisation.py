"""How busy jobs find the device."""

from __future__ import annotations

import pytest

from service.worker.estimates import REMEMBERED_S, ArrivalUtilisation


def test_the_first_job_is_all_that_is_known() -> None:
    """Before any job came the device was quiet; then what the first one found is what is known."""
    seen = ArrivalUtilisation()
    assert seen.lately == 0.0
    seen.found(0.5, now_s=100.0)
    assert seen.lately == 0.5


def test_it_is_the_mean_of_what_jobs_found() -> None:
    """Jobs that find the device taken every other time find it half taken."""
    seen = ArrivalUtilisation()
    for number in range(1000):
        seen.found(float(number % 2), now_s=number * 0.01)
    assert seen.lately == pytest.approx(0.5, abs=0.02)


def test_a_burst_counts_as_one_arrival() -> None:
    """What finds the lanes taken by those it came with says nothing of how busy the device is."""
    seen = ArrivalUtilisation()
    seen.found(0.0, now_s=1.0)
    for _ in range(100):
        seen.found(1.0, now_s=1.0)
    assert seen.lately == 0.0


def test_what_was_is_forgotten() -> None:
    """A rush of some seconds ago counts for nothing."""
    seen = ArrivalUtilisation()
    for number in range(100):
        seen.found(1.0, now_s=number * 0.01)
    assert seen.lately > 0.9
    seen.found(0.0, now_s=1.0 + 10 * REMEMBERED_S)
    assert seen.lately < 0.001
