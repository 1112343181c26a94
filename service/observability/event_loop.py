"""The lag of an event loop: how much later than asked for it runs what is due.

While something occupies the loop, or holds the interpreter's lock, no request of the process moves on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Never

INTERVAL_S = 0.1
"""Between two measurements. A block is measured as at least its length less this time."""
REPORT_S = 1.0
WINDOW_S = 15.0
"""The largest lag is reported for one to two windows, so that usual scrape intervals do not miss it."""


class LargestLag:
    """The largest lag of the current window and of the one before. `clock` returns seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, window_s: float = WINDOW_S) -> None:
        self._clock = clock
        self._window_s = window_s
        self._ends_s = clock() + window_s
        self._before = self._now = 0.0

    def add(self, lag_s: float) -> float:
        """Take a measurement, and return the largest in seconds."""
        now_s = self._clock()
        if now_s >= self._ends_s:
            # After more than a whole window the current one is too old as well.
            self._before = self._now if now_s < self._ends_s + self._window_s else 0.0
            self._now = 0.0
            self._ends_s = now_s + self._window_s
        self._now = max(self._now, lag_s)
        return max(self._now, self._before)


async def watch_event_loop(report: Callable[[float], None]) -> Never:
    """Measure the running loop's lag until cancelled. `report` gets the largest of late, in seconds, about every
    `REPORT_S`."""
    largest = LargestLag()
    while True:
        lag_s = 0.0
        for _ in range(round(REPORT_S / INTERVAL_S)):
            asked_s = time.monotonic()
            await asyncio.sleep(INTERVAL_S)
            lag_s = max(lag_s, time.monotonic() - asked_s - INTERVAL_S)
        report(largest.add(lag_s))
