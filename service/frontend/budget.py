"""Room for requests' bodies: how many bytes all of them together may hold."""

from __future__ import annotations

from collections.abc import Callable

from service.errors import Overloaded, Refusal


class Budget:
    """`limit` bytes. `retry_after_s` tells in how many seconds there may be room again."""

    def __init__(self, limit: int, retry_after_s: Callable[[], float]) -> None:
        self._limit = limit
        self._retry_after_s = retry_after_s
        self._held = 0

    def take(self, count: int) -> None:
        """Raises Overloaded: there is no room for so many more."""
        if self._held + count > self._limit:
            raise Overloaded(
                f"the requests in hand hold {self._held} bytes, {self._limit} is the most; try again later",
                self._retry_after_s(),
                Refusal.BODIES,
            )
        self._held += count

    def give_back(self, count: int) -> None:
        self._held -= count


class Share:
    """What one request has of a budget, given back at its end: use as a context manager."""

    __slots__ = ("_budget", "_held")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._held = 0

    def __enter__(self) -> Callable[[int], None]:
        return self.take

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self._held)

    def take(self, count: int) -> None:
        """Raises Overloaded: there is no room for so many more."""
        self._budget.take(count)
        self._held += count
