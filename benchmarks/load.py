"""Closed-loop load: a fixed number of clients, each of which asks again as soon as it was answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx


@dataclass(frozen=True, slots=True)
class Measured:
    """Latencies of the requests that were answered, in seconds, ascending; how many were not; over which time."""

    latencies_s: tuple[float, ...]
    failures: int
    seconds: float

    @property
    def per_second(self) -> float:
        return len(self.latencies_s) / self.seconds

    def percentile_ms(self, share: float) -> float:
        at = min(len(self.latencies_s) - 1, int(share * len(self.latencies_s)))
        return self.latencies_s[at] * 1000


async def closed_loop(url: str, pictures: Sequence[bytes], concurrency: int, seconds: float) -> Measured:
    """POST the pictures in turn from `concurrency` clients for `seconds`, after a tenth of that to warm up."""
    latencies: list[float] = []
    failures = 0
    began_s = time.monotonic() + seconds / 10
    end_s = began_s + seconds

    async def one(client: httpx.AsyncClient, number: int) -> None:
        nonlocal failures
        asked = number
        while (started_s := time.monotonic()) < end_s:
            reply = await client.post(url, content=pictures[asked % len(pictures)])
            asked += concurrency
            finished_s = time.monotonic()
            if not began_s <= finished_s <= end_s:
                continue
            if reply.status_code == httpx.codes.OK:
                latencies.append(finished_s - started_s)
            else:
                failures += 1

    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        await asyncio.gather(*(one(client, number) for number in range(concurrency)))
    return Measured(tuple(sorted(latencies)), failures, seconds)
