"""The loss of the head, whose state is in Redis or nowhere: `make test-cluster`."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import structlog

from tests.cluster.local_cluster import LocalCluster, cluster_settings, free_port, load, local_cluster

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make test-cluster"),
    pytest.mark.timeout(900),
]
AWAY_S = 20.0
GROUPS = [{"name": "a", "models": ["fake_a"], "min_workers": 1, "cpus": 1}]

log = structlog.get_logger(__name__)


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis of its own; its HOST:PORT."""
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server")
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def state(cluster: LocalCluster) -> dict[str, object]:
    """What `status` shows; empty while the head is not there."""
    shown = cluster.ask("service.cli", "cluster", "status", "--json", "--address", cluster.head)
    return json.loads(shown.stdout) if shown.stdout else {}


async def test_a_head_that_comes_back_costs_no_request(tmp_path: Path) -> None:
    """While the head is away the other nodes answer everything. One that is started again with the same Redis goes on:
    it knows the application, whose processes stay, and updates it."""
    with redis_server(tmp_path) as redis, local_cluster(2, redis, head_cpus=0) as cluster:
        node = cluster.nodes[1]
        await asyncio.to_thread(cluster.deploy, cluster_settings(groups=GROUPS, front_ends=1))
        before = {part: [one.pid for one in node.replicas(part)] for part in ("worker-a", "rest")}
        assert all(before.values())
        async with load(node.http_port, 4) as result:
            await asyncio.sleep(3)
            cluster.nodes[0].kill()
            await asyncio.sleep(AWAY_S)
            assert state(cluster) == {}
            started_s = time.monotonic()
            await asyncio.to_thread(cluster.restart_head, 0)
            while (await asyncio.to_thread(state, cluster)).get("state") != "RUNNING":
                await asyncio.sleep(1)
            again_s = time.monotonic() - started_s
            await asyncio.sleep(5)
        log.info("the head was killed", statuses=dict(result.statuses), again_s=round(again_s))
        assert set(result.statuses) == {"200"}, result.failures[:3]
        assert {part: [one.pid for one in node.replicas(part)] for part in before} == before
        async with load(node.http_port, 4) as result:
            changed = cluster_settings(groups=GROUPS, front_ends=1, settings={"request_timeout_ms": 20000})
            await asyncio.to_thread(cluster.deploy, changed)
        assert set(result.statuses) == {"200"}, result.failures[:3]
        assert [one.pid for one in node.replicas("worker-a")] != before["worker-a"]
