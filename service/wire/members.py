"""Which workers a front-end talks to, where they come and go: those that were reported last, for each group of them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import structlog

from service.wire.pool import WorkerPool

JOIN_S = 10.0
"""How long a worker that leaves is kept at the most until those that take its place are ready."""
FIRST_S = 10.0
"""How long a front-end that starts waits for its first workers."""

log = structlog.get_logger(__name__)


class Members:
    """Keeps the workers of `pool` those that were reported last. `drain_s` bounds the drain of one that leaves.

    A group without a worker keeps those that it had: their models are then unavailable for a while, and not unknown. A
    worker leaves once those that take its place are ready, so that its models have a worker at all times.
    """

    def __init__(self, pool: WorkerPool, groups: Iterable[str], drain_s: float) -> None:
        self._pool = pool
        self._drain_s = drain_s
        self._addresses: dict[str, frozenset[str]] = {group: frozenset() for group in groups}
        self._reported: set[str] = set()
        self._changed = asyncio.Event()

    def report(self, group: str, addresses: Collection[str]) -> None:
        """The workers of a group now. Call it on the event loop of `run`."""
        self._reported.add(group)
        if addresses and self._addresses[group] != frozenset(addresses):
            log.info("workers of a group", group=group, addresses=sorted(addresses))
            self._addresses[group] = frozenset(addresses)
            self._changed.set()

    async def run(self) -> None:
        """Follow the reports until cancelled."""
        leaves_by_s = math.inf
        while True:
            self._changed.clear()
            for address in sorted(self._wanted - self._pool.addresses):
                try:
                    await self._pool.add(address)
                except ValueError as error:
                    log.error("a worker cannot join", error=str(error))
            leaving = self._pool.addresses - self._wanted
            if not leaving:
                leaves_by_s = math.inf
                await self._changed.wait()
            elif self._wanted <= self._pool.ready_addresses or time.monotonic() > leaves_by_s:
                for address in leaving:
                    self._pool.remove(address, self._drain_s)
            else:
                leaves_by_s = min(leaves_by_s, time.monotonic() + JOIN_S)
                await self._next_change()

    async def wait_for_workers(self) -> None:
        """Wait until each group has been reported and its workers are ready, but not for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_S):
                while self._reported != self._addresses.keys() or not self._wanted <= self._pool.ready_addresses:
                    await self._next_change()

    @property
    def _wanted(self) -> frozenset[str]:
        return frozenset().union(*self._addresses.values())

    async def _next_change(self) -> None:
        """Wait for a change of the workers' states; a report may come without one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await self._pool.next_change().wait()


@asynccontextmanager
async def following(members: Members, reporting: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Follows what `reporting` reports to `members`."""
    tasks = [asyncio.create_task(one, name="members") for one in (reporting, members.run())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
