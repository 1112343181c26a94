"""Deadlines and retries."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from convmlp_client.errors import ClientError, DeadlineExceeded

T = TypeVar("T")

log = logging.getLogger("convmlp_client")


class Clock(Protocol):
    """The clock of deadlines and pauses; tests replace it."""

    def now_s(self) -> float:
        """Monotonic time in seconds."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time on `clock`; `at_s` is None if there is no deadline."""

    clock: Clock
    at_s: float | None

    @classmethod
    def after(cls, timeout_s: float | None, clock: Clock) -> Deadline:
        return cls(clock, None if timeout_s is None else clock.now_s() + timeout_s)

    def remaining_s(self) -> float | None:
        """Seconds until the deadline; None if there is none.

        Raises:
            DeadlineExceeded: the deadline has passed.
        """
        if self.at_s is None:
            return None
        remaining_s = self.at_s - self.clock.now_s()
        if remaining_s <= 0:
            raise DeadlineExceeded("timed out before the request was sent; allow a longer timeout_s")
        return remaining_s

    def passes_within(self, seconds: float) -> bool:
        """Whether the deadline is at most this many seconds away."""
        return self.at_s is not None and self.clock.now_s() + seconds >= self.at_s


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a request is sent again, and after which pauses.

    attempts: maximum number of attempts, the first one included.
    first_wait_s: pause after the first attempt. Each further pause is twice as long.
    backoff_limit_s: longest of these pauses. A pause is never shorter than the service's Retry-After.
    longest_wait_s: a request is not sent again if the service asks for a longer pause than this.
    random: source of numbers from 0 to 1. Each pause has a random part, so that callers refused together do not return
    together.
    """

    attempts: int = 4
    first_wait_s: float = 0.1
    backoff_limit_s: float = 2.0
    longest_wait_s: float = 15.0
    random: Callable[[], float] = random.random

    async def call(self, send: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        """The result of `send`, from its first or a later attempt. Each further attempt is logged at level INFO.

        Raises:
            ClientError: the last attempt's error. There is no further attempt if the error is not retryable, or if the
                pause would end after the deadline.
        """
        for attempt in range(1, self.attempts):
            try:
                return await send()
            except ClientError as error:
                wait_s = self._wait_s(error, attempt)
                too_long = (error.retry_after_s or 0.0) > self.longest_wait_s
                if not error.retryable or too_long or deadline.passes_within(wait_s):
                    raise
                log.info("%s; trying again in %.1f s", error.detail, wait_s)
            await deadline.clock.sleep(wait_s)
        return await send()

    def _wait_s(self, error: ClientError, attempt: int) -> float:
        backoff_s = min(self.first_wait_s * 2.0 ** (attempt - 1), self.backoff_limit_s)
        shortest_s = max(backoff_s, error.retry_after_s or 0.0)
        return shortest_s + self.random() * max(backoff_s, shortest_s / 4)
