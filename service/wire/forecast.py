"""When a worker would have answered another request, by what a front-end knows of it.

A worker tells with each answer how long one more like it would take, were it to come then (`WaitEstimate`). From then
time passes, and what this front-end sends or prepares itself is added; of what others send it hears with the next
answer. It is enough to refuse at once most of what the worker would refuse anyway, before a picture is decoded for it:
the worker has the last word on all else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from service.wire.messages import WaitEstimate

MAX_KINDS = 256


@dataclass(slots=True, eq=False)
class Kind:
    """Requests that find the same before them: for one version of a model, and due about as soon.

    `in_hand` are those of this front-end that are being prepared for the worker, or are with it.
    """

    _clock: Callable[[], float]
    in_hand: int = 0
    _preparing: int = 0
    _image_s: float = 0.0
    _answered_s: float = 0.0
    """On the clock: when one more would be answered."""

    def expected_s(self) -> float:
        """Seconds until one more would be answered; 0 where nothing is known.

        Where none is in hand nothing is known to the moment: one is tried, and an estimate that is too high is found
        out.
        """
        return max(0.0, self._answered_s - self._clock()) if self.in_hand else 0.0

    def prepare(self) -> None:
        """One more is being prepared."""
        self._preparing += 1
        self.send()

    def prepared(self) -> None:
        """It is ready, or came to nothing."""
        self._preparing -= 1
        self.done()
        self._answered_s -= self._image_s

    def send(self) -> None:
        """One more goes to the worker."""
        self.in_hand += 1
        self._answered_s = max(self._answered_s, self._clock()) + self._image_s

    def done(self) -> None:
        """The worker is through with one, or lost it."""
        self.in_hand -= 1

    def learn(self, outlook: WaitEstimate) -> None:
        """What the worker told with an answer."""
        self._image_s = outlook.image_s
        self._answered_s = self._clock() + outlook.answered_s + self._preparing * outlook.image_s


class Forecast:
    """Of one worker, by kind."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[tuple[str, int], Kind] = {}

    def kind(self, version: str, left_s: float) -> Kind:
        """Of requests that are due in so many seconds, or up to twice or half as many.

        The worker serves the earliest deadline first: what waits with more time does not hold up one that is urgent.
        """
        key = version, math.frexp(left_s)[1]
        known = self._kinds.get(key)
        if known is None:
            known = self._kinds[key] = Kind(self._clock)
            if len(self._kinds) > MAX_KINDS:
                del self._kinds[next(iter(self._kinds))]
        return known

    def forget(self) -> None:
        """The worker was lost."""
        self._kinds.clear()
