"""The rate of each caller, on a clock of the test's own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from service.frontend.core.rate_limit import RateLimit


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_burst_then_the_rate() -> None:
    """After a pause `burst` permits are there at once; then one comes every 1 / per_s seconds."""
    clock = Clock()
    limit = RateLimit(per_s=2.0, burst=3, clock=clock)
    assert [limit.take("a") for _ in range(3)] == [0, 0, 0]
    assert limit.take("a") == pytest.approx(0.5, abs=1e-4)
    clock.now_s += 0.25
    assert limit.take("a") == pytest.approx(0.25, abs=1e-4)
    clock.now_s += 0.25
    assert limit.take("a") == 0
    assert limit.take("a") > 0


@pytest.mark.parametrize("per_s", [0.1, 0.3, 3.0, 7.0, 333.3])
@pytest.mark.parametrize("start_s", [0.0, 12.345, 9.9e5])
def test_a_caller_that_waits_is_admitted(per_s: float, start_s: float) -> None:
    """The time that a refusal returns is enough, whatever rounding does; and the rate holds in the long run."""
    clock = Clock(start_s)
    limit = RateLimit(per_s, burst=4, clock=clock)
    taken = 0
    for _ in range(200):
        wait_s = limit.take("a")
        if wait_s:
            clock.now_s += wait_s
            assert limit.take("a") == 0
        taken += 1
    assert taken <= 4 + per_s * (clock.now_s - start_s) + 1


def test_refusals_cost_nothing() -> None:
    """Requests that are refused do not delay the next permit."""
    clock = Clock()
    limit = RateLimit(per_s=1.0, burst=1, clock=clock)
    assert limit.take("a") == 0
    for _ in range(100):
        assert limit.take("a") == pytest.approx(1.0, abs=1e-4)
    clock.now_s += 1.0
    assert limit.take("a") == 0


def test_callers_do_not_share() -> None:
    """One caller's use leaves another's as it was."""
    limit = RateLimit(per_s=1.0, burst=1, clock=Clock())
    assert limit.take("a") == 0
    assert limit.take("b") == 0
    assert limit.take("a") > 0


def test_charges_delay_the_next_one() -> None:
    """What is charged is never refused, and the caller's next permit comes after all of it."""
    clock = Clock()
    limit = RateLimit(per_s=10.0, burst=5, clock=clock)
    assert limit.take("a") == 0
    limit.charge("a", 63)
    assert limit.take("a") == pytest.approx((64 - 4) / 10, abs=1e-4)
    clock.now_s += 6.0
    assert limit.take("a") == 0


def test_memory_is_bounded() -> None:
    """Of too many callers the one that was quiet the longest is forgotten, and no other."""
    limit = RateLimit(per_s=1.0, burst=1, clock=Clock(), max_callers=3)
    for caller in ("a", "b", "c"):
        assert limit.take(caller) == 0
    assert limit.take("a") > 0  # refused, but seen
    assert limit.take("d") == 0
    assert limit.take("a") > 0
    assert limit.take("c") > 0
    assert limit.take("b") == 0
