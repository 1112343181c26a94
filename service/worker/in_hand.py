"""The batches that run on the device, and when they are expected to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.worker.queue import Job


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """A batch on the device. `expected_s` are seconds of one lane, 0 where nothing is known of its shape."""

    jobs: tuple[Job, ...]
    lanes: int
    expected_s: float
    begun_s: float

    def left_s(self, now_s: float) -> float:
        """Seconds of one lane that it is expected to take from now on."""
        return max(0.0, self.expected_s - (now_s - self.begun_s) * self.lanes)


class InHand:
    """At most one for each lane."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running: list[Running] = []

    def __iter__(self) -> Iterator[Running]:
        return iter(self._running)

    def begin(self, jobs: tuple[Job, ...], lanes: int, expected_s: float) -> Running:
        running = Running(jobs, lanes, expected_s, self._clock())
        self._running.append(running)
        return running

    def end(self, running: Running) -> None:
        self._running.remove(running)

    def left_s(self) -> float:
        """Seconds of one lane that all of them are expected to take from now on."""
        now_s = self._clock()
        return sum([one.left_s(now_s) for one in self._running])

    def soon(self, each_s: float) -> list[float]:
        """When each lane that is taken is expected to be free: in the time of so many images, of `each_s` seconds each.
        Empty where that is 0, for it is not known."""
        if not each_s:
            return []
        now_s = self._clock()
        return [one.left_s(now_s) / one.lanes / each_s for one in self._running for _ in range(one.lanes)]
