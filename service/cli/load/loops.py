"""Two load patterns, and the measurements of both.

Closed loop: a fixed number of clients, each of which sends its next request when the last one ended. It finds the
service's capacity, and slows down with the service. Open loop: requests arrive as a Poisson process of a given rate,
whatever the service does, as those of many independent callers would. Latency counts from when a request was due: a
request that this program sent late has waited already.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

import numpy as np

MAX_IN_FLIGHT = 1024
"""Unanswered requests of an open loop. Further ones are not sent, and are counted as unsent."""

PAUSE_S = 0.05
"""How long a client of the closed loop pauses after a refusal or an error: retrying at once would be an attack."""


class Status(StrEnum):
    ANSWERED = "answered"
    REFUSED = "refused"
    """The server was overloaded and did no work for it."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request ended. `reason`: the error's code, or how the connection failed; empty if answered."""

    status: Status
    reason: str = ""


ANSWERED = Outcome(Status.ANSWERED)

Sender = Callable[[int], Awaitable[Outcome]]
"""Sends the n-th request and waits for its end. Raises nothing: an error is an outcome."""


@dataclass(slots=True)
class Measurement:
    """The outcomes of one measurement of `seconds`; a loop fills it.

    `latencies_s` are those of answered requests that were due within the window. `answers_in_window` counts answers
    that arrived within it, whenever they were requested: the rate derives from it, so that neither end of the window
    distorts it. `unsent` counts requests that were due while MAX_IN_FLIGHT were unanswered.
    """

    seconds: float
    latencies_s: list[float] = field(default_factory=list)
    answers_in_window: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    unsent: int = 0

    def count(self, outcome: Outcome, latency_s: float) -> None:
        match outcome.status:
            case Status.ANSWERED:
                self.latencies_s.append(latency_s)
            case Status.REFUSED:
                self.refused[outcome.reason] += 1
            case Status.FAILED:
                self.failed[outcome.reason] += 1

    @contextmanager
    def cut_short(self, start_s: float) -> Iterator[None]:
        """Where the loop is cancelled, the measurement ends now; `start_s`: when it began, by time.perf_counter()."""
        try:
            yield
        except asyncio.CancelledError:
            self.seconds = min(self.seconds, max(time.perf_counter() - start_s, 1e-9))
            raise

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.answers_in_window / self.seconds

    @property
    def requests(self) -> int:
        """All requests that were due within the window."""
        return len(self.latencies_s) + self.refused.total() + self.failed.total() + self.unsent

    def percentiles_ms(self, *percents: float) -> list[float]:
        """Latency percentiles of the answered requests; NaN if there are none."""
        if not self.latencies_s:
            return [float("nan")] * len(percents)
        return [float(value) * 1000 for value in np.percentile(self.latencies_s, percents)]

    @property
    def mean_ms(self) -> float:
        return float(np.mean(self.latencies_s)) * 1000 if self.latencies_s else float("nan")


async def closed_loop(
    send: Sender, concurrency: int, seconds: float, warm_up_s: float = 0.0, measurement: Measurement | None = None
) -> Measurement:
    """Send from `concurrency` clients for `warm_up_s`, measure for `seconds`, then wait for unanswered requests.

    Fills and returns `measurement`, if it is given: of a loop that is cancelled it has what was measured until then.
    """
    measurement = measurement or Measurement(seconds)
    numbers = count()
    start_s = time.perf_counter() + warm_up_s
    end_s = start_s + seconds

    async def client() -> None:
        while (sent_s := time.perf_counter()) < end_s:
            outcome = await send(next(numbers))
            ended_s = time.perf_counter()
            measurement.answers_in_window += outcome.status is Status.ANSWERED and start_s <= ended_s < end_s
            if sent_s >= start_s:
                measurement.count(outcome, ended_s - sent_s)
            if outcome.status is not Status.ANSWERED:
                await asyncio.sleep(PAUSE_S)

    with measurement.cut_short(start_s):
        await asyncio.gather(*(client() for _ in range(concurrency)))
    return measurement


async def open_loop(
    send: Sender,
    rate: float,
    seconds: float,
    warm_up_s: float = 0.0,
    seed: int = 0,
    measurement: Measurement | None = None,
) -> Measurement:
    """Send `rate` requests per second on average for `warm_up_s`, measure for `seconds`, then wait for unanswered ones.

    The same seed gives the same arrival times. `measurement` as in `closed_loop`.
    """
    measurement = measurement or Measurement(seconds)
    gaps = random.Random(seed)
    numbers = count()
    start_s = time.perf_counter() + warm_up_s
    end_s = start_s + seconds
    in_flight: set[asyncio.Task[None]] = set()

    async def request(due_s: float) -> None:
        outcome = await send(next(numbers))
        ended_s = time.perf_counter()
        measurement.answers_in_window += outcome.status is Status.ANSWERED and start_s <= ended_s < end_s
        if due_s >= start_s:
            measurement.count(outcome, ended_s - due_s)

    due_s = start_s - warm_up_s + gaps.expovariate(rate)
    with measurement.cut_short(start_s):
        while due_s < end_s:
            # A late loop must sleep too, or the event loop would never read an answer.
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            if len(in_flight) < MAX_IN_FLIGHT:
                task = asyncio.create_task(request(due_s))
                in_flight.add(task)
                task.add_done_callback(in_flight.discard)
            elif due_s >= start_s:
                measurement.unsent += 1
            due_s += gaps.expovariate(rate)
        await asyncio.gather(*in_flight)
    return measurement
