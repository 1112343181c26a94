"""The service on two nodes of this machine: `make test-cluster`."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pytest

from tests.cluster.local_cluster import LocalCluster, cluster_settings, load, local_cluster

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make test-cluster"),
    pytest.mark.timeout(600),
]


async def becomes(condition: Callable[[], bool], seconds: float = 90) -> None:
    """Wait for what a test sees in the system's processes: each look costs some milliseconds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.25)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(2) as started:
        yield started


@pytest.fixture(scope="module")
def two_workers(cluster: LocalCluster) -> LocalCluster:
    """A worker and a front-end on each node."""
    cluster.deploy(cluster_settings())
    return cluster


async def test_one_address_gives_each_node_its_share(two_workers: LocalCluster) -> None:
    """Behind one address each node's worker gives at least 30 % of the answers to 8 callers."""
    async with load(two_workers.http_port, 8) as result:
        await asyncio.sleep(5)
    print("shares", result.answered_by, result.seconds)
    assert set(result.statuses) == {"200"}, result.failures[:3]
    assert len(result.answered_by) == 2
    assert min(result.answered_by.values()) >= 0.3 * result.answered


async def test_a_killed_worker_costs_no_request(two_workers: LocalCluster) -> None:
    """When a worker's process is killed under load, all requests are answered, and Ray starts another."""
    async with load(two_workers.http_port, 8) as result:
        await asyncio.sleep(2)
        (victim,) = two_workers.nodes[1].replicas("worker-a")
        victim.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        await becomes(lambda: two_workers.running("worker-a") == 2 and not victim.is_running())
        await asyncio.sleep(5)
    print("killed worker", result.statuses, "process again after", time.monotonic() - killed_s - 5)
    assert set(result.statuses) == {"200"}, result.failures[:3]


async def test_an_update_costs_no_request(two_workers: LocalCluster) -> None:
    """A rolling update of all parts, under load to its end, loses nothing."""
    async with load(two_workers.http_port, 8) as result:
        seconds = await asyncio.to_thread(two_workers.deploy, cluster_settings(settings={"request_timeout_ms": 20000}))
        await asyncio.sleep(3)
    print("update", result.statuses, "took", seconds)
    assert set(result.statuses) == {"200"}, result.failures[:3]
