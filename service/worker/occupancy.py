"""How busy jobs find the device as they come."""

from __future__ import annotations

import math

REMEMBERED_S = 1.0
"""What was found so long ago counts e times less."""


class Occupancy:
    """The share of the lanes that is taken, as jobs have found it lately: 0 to 1.

    A mean over arrivals, not over time. A client that waits for each answer before it asks again never finds a lane
    taken, however much it has the device do; requests that come at random find it as busy as it is on average.
    """

    def __init__(self) -> None:
        self.lately = 0.0
        self._found_s = -math.inf

    def found(self, taken: float, now_s: float) -> None:
        """A job came while this share of the lanes was taken."""
        kept = math.exp((self._found_s - now_s) / REMEMBERED_S)
        self.lately = kept * self.lately + (1 - kept) * taken
        self._found_s = now_s
