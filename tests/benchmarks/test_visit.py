from __future__ import annotations

import pytest

from benchmarks.visit import steady_rate


@pytest.mark.parametrize("phase", [0.0, 0.3, 0.7, 0.99])
def test_batches_at_the_windows_ends_do_not_distort_a_rate(phase: float) -> None:
    """Batches of 8 every second are 8 a second wherever the window begins; a count in 5.5 s would give 7.3 or 8.7."""
    answered_s = [float(batch) for batch in range(20) for _ in range(8)]
    assert steady_rate(answered_s, 5 + phase, 5.5) == pytest.approx(8.0, rel=0.04)


def test_a_server_that_stalls_is_slower() -> None:
    """A rate is of the whole window: what answers only in its first half has half the rate at most."""
    assert steady_rate([at / 100 for at in range(300)], 0.0, 6.0) == pytest.approx(50.0, rel=0.01)
