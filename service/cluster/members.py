"""Which workers a front-end talks to: those that Ray's controller reports for each group, as they come and go."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import structlog

from service.wire.pool import WorkerPool

ADDRESS = "worker_address"
"""Key of a worker's address in the metadata of its replica."""
JOIN_S = 10.0
"""How long a worker that leaves is kept at the most until those that take its place are ready."""
FIRST_S = 10.0
"""How long a front-end that starts waits for its first workers."""
LOOK_S = 2.0
"""Between two looks whether the controller still reports."""

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
async def follow_controller(members: Members, app: str, groups: Collection[str]) -> AsyncIterator[None]:
    """Reports the replicas of the deployments `groups` of a Serve application to `members`."""
    watching = asyncio.create_task(_watch(members, app, groups), name="members-watch")
    following = asyncio.create_task(members.run(), name="members")
    try:
        yield
    finally:
        for task in (watching, following):
            task.cancel()
        await asyncio.gather(watching, following, return_exceptions=True)


async def _watch(members: Members, app: str, groups: Collection[str]) -> None:
    """Long-poll the controller, from a new client after each error: one ends with the controller that it asked."""
    import ray
    from ray.serve._private.common import DeploymentID
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.serve._private.long_poll import LongPollClient, LongPollNamespace

    client: Any = None
    try:
        while True:
            if client is None or not client.is_running:
                try:
                    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
                except ValueError:
                    log.warning("there is no controller of Serve; the workers stay as they were reported last")
                else:
                    listeners = {
                        (LongPollNamespace.DEPLOYMENT_TARGETS, DeploymentID(name=group, app_name=app)): partial(
                            _report, members, group
                        )
                        for group in groups
                    }
                    client = LongPollClient(
                        controller, listeners, call_in_event_loop=asyncio.get_running_loop(), client_id=f"convmlp-{app}"
                    )
            await asyncio.sleep(LOOK_S)
    finally:
        if client is not None:
            client.stop()


def _report(members: Members, group: str, targets: Any) -> None:  # noqa: ANN401  (Ray's DeploymentTargetInfo)
    addresses = [replica.replica_metadata.get(ADDRESS, "") for replica in targets.running_replicas]
    members.report(group, [address for address in addresses if address])
