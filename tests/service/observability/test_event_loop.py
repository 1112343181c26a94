"""The lag of an event loop: of a running one, and the largest of late on a clock that the test moves."""

from __future__ import annotations

import asyncio
import time

from service.observability.event_loop import WINDOW_S, LargestLag, watch_event_loop
from tests.fakes import FakeClock
from tests.waiting import until


async def test_a_blocked_loop_is_noticed() -> None:
    """What holds the loop for a second is reported as nearly a second."""
    lags: list[float] = []
    watching = asyncio.create_task(watch_event_loop(lags.append))
    await until(lambda: bool(lags))
    time.sleep(1.0)  # noqa: ASYNC251  (it is what blocks the loop)
    await until(lambda: lags[-1] > 0.5)
    watching.cancel()


def test_a_block_is_reported_for_a_whole_window() -> None:
    """However the windows lie, a scrape once in a window's time sees it; two windows later it is over."""
    clock = FakeClock()
    largest = LargestLag(clock)
    clock.now_s += WINDOW_S - 0.1
    assert largest.add(2.0) == 2.0
    clock.now_s += WINDOW_S
    assert largest.add(0.1) == 2.0
    clock.now_s += WINDOW_S
    assert largest.add(0.1) == 0.1


def test_a_lag_that_outlasts_a_window_replaces_all() -> None:
    """After a long block older lags are forgotten, and the block itself is reported."""
    clock = FakeClock()
    largest = LargestLag(clock)
    largest.add(40.0)
    clock.now_s += 3 * WINDOW_S
    assert largest.add(3.0) == 3.0
