"""A rate limit for each of many callers: the generic cell rate algorithm (ITU-T I.371, annex A).

It holds one number for each caller, and allows what a token bucket allows: `burst` at once, then `per_s` on average.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MAX_CALLERS = 10_000
"""Beyond it the caller that was quiet the longest is forgotten."""

ROUNDING_S = 1e-6
"""A caller that waited for the returned time is not refused because of a float's last digits."""


class RateLimit:
    """Gives each caller `per_s` > 0 permits a second, and `burst` >= 1 of them at once after a pause.

    `clock` returns seconds and never goes back.
    """

    def __init__(
        self,
        per_s: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        max_callers: int = MAX_CALLERS,
    ) -> None:
        self.per_s = per_s
        self._interval_s = 1.0 / per_s
        self._tolerance_s = (burst - 1) / per_s
        self._clock = clock
        self._max_callers = max_callers
        self._due_s: OrderedDict[str, float] = OrderedDict()
        """When each caller has its whole burst again; the least recently seen caller first."""

    def take(self, caller: str) -> float:
        """Take a permit and return 0, or take none and return the seconds until one is free."""
        now = self._clock()
        due_s = max(self._due_s.get(caller, now), now)
        wait_s = due_s - now - self._tolerance_s
        if wait_s > ROUNDING_S:
            self._due_s.move_to_end(caller)
            return wait_s
        self._keep(caller, due_s + self._interval_s)
        return 0.0

    def charge(self, caller: str, permits: int) -> None:
        """Take permits even if they are not free yet: missing ones delay the caller's next ones."""
        now = self._clock()
        self._keep(caller, max(self._due_s.get(caller, now), now) + permits * self._interval_s)

    def _keep(self, caller: str, due_s: float) -> None:
        self._due_s[caller] = due_s
        self._due_s.move_to_end(caller)
        if len(self._due_s) > self._max_callers:
            self._due_s.popitem(last=False)
