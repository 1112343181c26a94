"""The report of the benchmark of overload, from requests whose times are known."""

from __future__ import annotations

from benchmarks.overload import Ended, report_of


def test_refusals_answers_and_late_ones_are_counted() -> None:
    """Late is what was answered after its deadline, or with 504."""
    ended = [
        Ended(0.0, 1.0, 200, 0.0),
        Ended(0.0, 2.5, 200, 0.0),
        Ended(0.5, 2.5, 504, 0.0),
        Ended(0.5, 0.51, 503, 3.0),
        Ended(1.0, 1.03, 503, 3.0),
    ]
    report = report_of("device", 1.0, ended, 0.0, 2.0, 2.0)
    assert report.statuses == {200: 2, 504: 1, 503: 2}
    assert (report.late, report.refused, report.goodput) == (2, 2, 0.5)
    assert report.refusals_p99_ms <= 30.0


def test_retry_after_is_compared_with_the_end_of_what_was_accepted_before() -> None:
    """A request accepted later does not count, and whole seconds are compared."""
    ended = [Ended(0.0, 2.0, 200, 0.0), Ended(1.0, 9.0, 200, 0.0), Ended(0.5, 0.5, 503, 4.0)]
    report = report_of("device", 1.0, ended, 0.0, 10.0, 20.0)
    assert report.retry_ratio_p5 == report.retry_ratio_p95 == 2.0
