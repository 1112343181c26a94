"""Asking again: only what may succeed, not before the service said, never beyond the caller's deadline."""

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
    def now_s(self) -> float:
        """Seconds that only ever grow."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time on `clock`; there is none where `at_s` is None."""

    clock: Clock
    at_s: float | None

    @classmethod
    def after(cls, timeout_s: float | None, clock: Clock) -> Deadline:
        return cls(clock, None if timeout_s is None else clock.now_s() + timeout_s)

    def left_s(self) -> float | None:
        """Seconds until then; None where there is no deadline.

        Raises:
            DeadlineExceeded: there are none left.
        """
        if self.at_s is None:
            return None
        left_s = self.at_s - self.clock.now_s()
        if left_s <= 0:
            raise DeadlineExceeded("the deadline passed before the request could be sent")
        return left_s

    def is_passed_in(self, seconds: float) -> bool:
        return self.at_s is not None and self.clock.now_s() + seconds >= self.at_s


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and how patiently, a request is sent again.

    A pause doubles from `first_wait_s` on, up to `backoff_limit_s`, and is never shorter than what the service asked
    for; a random part is added, so that callers who were refused together do not come back together. A service that
    asks for more than `longest_wait_s` is not asked again. `random` gives numbers from 0 to 1.
    """

    attempts: int = 4
    first_wait_s: float = 0.1
    backoff_limit_s: float = 2.0
    longest_wait_s: float = 15.0
    random: Callable[[], float] = random.random

    async def call(self, ask: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        """What `ask` gives, at its first or a later attempt. Each further attempt is logged at level INFO.

        Raises:
            ClientError: that of the last attempt; at once where another one cannot help or would come too late.
        """
        for attempt in range(1, self.attempts):
            try:
                return await ask()
            except ClientError as error:
                wait_s = self._wait_s(error, attempt)
                asked_s = error.retry_after_s or 0.0
                if not error.retryable or asked_s > self.longest_wait_s or deadline.is_passed_in(wait_s):
                    raise
                log.info("%s; trying again in %.1f s", error.detail, wait_s)
            await deadline.clock.sleep(wait_s)
        return await ask()

    def _wait_s(self, error: ClientError, attempt: int) -> float:
        own_s = min(self.first_wait_s * 2.0 ** (attempt - 1), self.backoff_limit_s)
        least_s = max(own_s, error.retry_after_s or 0.0)
        return least_s + self.random() * max(own_s, least_s / 4)
