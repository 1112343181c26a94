"""One timer for the deadlines of many requests.

A timer of uvloop costs some 20 µs where it is cancelled, as a request's own nearly always would be.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

MAX_TIMER_S = 1e6
"""The longest time for which the timer is set."""
RESOLUTION_S = 0.001
"""Of uvloop's timers."""


class Deadlines(Generic[K]):
    """Calls `expire` with each key of `pending` whose deadline has passed, and removes it there.

    Deadlines are on the clock of `time.monotonic`. Keys are added to and removed from `pending` directly, because this
    is done twice for each request; after adding one that is due before `next_s`, call `wake_at`.
    """

    def __init__(self, expire: Callable[[K], None]) -> None:
        self.pending: dict[K, float] = {}
        self.next_s = math.inf
        self._expire = expire
        self._timer: asyncio.TimerHandle | None = None

    def wake_at(self, deadline_s: float) -> None:
        """Set the timer. Needs a running event loop."""
        self.close()
        self.next_s = deadline_s
        left_s = min(max(deadline_s - time.monotonic(), 0.0), MAX_TIMER_S)
        self._timer = asyncio.get_running_loop().call_later(left_s, self._on_time)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_time(self) -> None:
        now_s = time.monotonic() + RESOLUTION_S
        for key in [key for key, deadline_s in self.pending.items() if deadline_s <= now_s]:
            del self.pending[key]
            self._expire(key)
        self._timer, self.next_s = None, math.inf
        if self.pending:
            self.wake_at(min(self.pending.values()))
