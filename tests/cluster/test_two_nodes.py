"""The service on two nodes of this machine: `make test-cluster`."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import httpx2
import pytest
import structlog

from convmlp_client import AsyncClient
from tests.cluster.local_cluster import JPEG, LocalCluster, cluster_settings, load, local_cluster

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make test-cluster"),
    pytest.mark.timeout(600),
]


log = structlog.get_logger(__name__)


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
    log.info("shares", answered_by=dict(result.answered_by))
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
        again_s = round(time.monotonic() - killed_s, 1)
        await asyncio.sleep(5)
    log.info("a worker was killed", statuses=dict(result.statuses), again_s=again_s)
    assert set(result.statuses) == {"200"}, result.failures[:3]


async def test_an_update_costs_no_request(two_workers: LocalCluster) -> None:
    """A rolling update of all parts, under load to its end, loses nothing."""
    async with load(two_workers.http_port, 8) as result:
        seconds = await asyncio.to_thread(two_workers.deploy, cluster_settings(settings={"request_timeout_ms": 20000}))
        await asyncio.sleep(3)
    log.info("an update", statuses=dict(result.statuses), seconds=round(seconds, 1))
    assert set(result.statuses) == {"200"}, result.failures[:3]


@pytest.fixture(scope="module")
def groups(cluster: LocalCluster) -> LocalCluster:
    """A group of workers on each node, each with a model of its own; and a third that scales."""
    short = {"max_queue_images": 4, "max_batch_images": 1}
    settings = cluster_settings(
        groups=[
            {"name": "one", "models": ["fake_a"], "resources": {"node0": 1}, "settings": short},
            {"name": "two", "models": ["fake_b"], "resources": {"node1": 1}},
            {
                **{"name": "more", "models": ["fake_c"], "max_workers": 2, "target_images": 4},
                **{"upscale_delay_s": 2, "downscale_delay_s": 5, "settings": {"max_batch_images": 1}},
            },
        ],
        grpc_front_ends=2,
        settings={"grpc_port": cluster.grpc_port, "grpc_metrics_port": cluster.grpc_metrics_port},
    )
    cluster.deploy(settings, image_s=0.05)
    return cluster


async def test_each_request_reaches_the_group_of_its_model(groups: LocalCluster) -> None:
    """Two groups on two nodes: each model's requests are answered on the node of its group, and nowhere else."""
    async with (
        load(groups.http_port, 2, "/classify?model=fake_a") as one,
        load(groups.http_port, 2, "/classify?model=fake_b") as two,
    ):
        await asyncio.sleep(3)
    assert (set(one.statuses), set(two.statuses)) == ({"200"}, {"200"}), (one.failures[:3], two.failures[:3])
    assert (set(one.answered_by), set(two.answered_by)) == ({"fake_a 127.0.0.2"}, {"fake_b 127.0.0.3"})


async def test_grpc_answers_on_each_node(groups: LocalCluster) -> None:
    """Each gRPC front-end listens on its own node, and reaches the models of all groups."""
    for node in groups.nodes:
        async with AsyncClient(f"grpc://{node.address}:{groups.grpc_port}") as client:
            for model in ("fake_a", "fake_b"):
                assert (await client.classify(JPEG, model=model)).labels[0].label == "grey 100"


async def test_grpc_has_its_metrics_on_each_node(groups: LocalCluster) -> None:
    """A gRPC front-end counts the calls of its own node, at its metrics port there."""
    async with httpx2.AsyncClient(timeout=60) as http:
        for node in groups.nodes:
            async with AsyncClient(f"grpc://{node.address}:{groups.grpc_port}") as client:
                await client.classify(JPEG, model="fake_a")
            exposed = (await http.get(f"http://{node.address}:{groups.grpc_metrics_port}/metrics")).text
            counted = [line for line in exposed.splitlines() if line.startswith("convmlp_requests_total{")]
            assert any('transport="grpc"' in line and 'model="fake_a"' in line for line in counted)


async def test_overload_and_deadlines_are_answered_by_the_service(groups: LocalCluster) -> None:
    """What is too much is a problem+json with Retry-After, a deadline 504: nothing of Ray's own reaches a caller."""
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{groups.http_port}", timeout=60) as http:

        async def ask(**headers: str) -> httpx2.Response:
            headers = {"Content-Type": "image/jpeg", **headers}
            return await http.post("/classify?model=fake_a", content=JPEG, headers=headers)

        answers = await asyncio.gather(*(ask() for _ in range(60)))
        late = await ask(**{"X-Request-Timeout-Ms": "1"})
    refused = [answer for answer in answers if answer.status_code != 200]
    log.info("overload", answered=len(answers) - len(refused), refused=len(refused))
    assert 0 < len(refused) < len(answers)
    for answer in refused:
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert answer.json()["type"] == "/problems/overloaded"
        assert int(answer.headers["retry-after"]) >= 1
        assert len(answer.headers.get_list("x-request-id")) == 1
    assert (late.status_code, late.headers["content-type"]) == (504, "application/problem+json")


async def test_workers_follow_the_images_that_wait(groups: LocalCluster) -> None:
    """Under load a group gets its second worker, which takes jobs; without load it goes again; nothing is lost."""
    assert groups.running("worker-more") == 1
    started_s = time.monotonic()
    async with load(groups.http_port, 8, "/classify?model=fake_c") as result:
        await becomes(lambda: len(result.answered_by) == 2 or groups.running("worker-more") == 2, 120)
        up_s = time.monotonic() - started_s
        await asyncio.sleep(5)
    await becomes(lambda: groups.running("worker-more") == 1, 180)
    down_s = time.monotonic() - started_s - up_s
    log.info("scaled", up_s=round(up_s), down_s=round(down_s), statuses=dict(result.statuses))
    assert set(result.statuses) == {"200"}, result.failures[:3]


async def test_replicas_add_up(cluster: LocalCluster) -> None:
    """1, 2 and 4 workers with a device of a fixed time answer in proportion: at least 0.9 of linear."""
    rates = {}
    for workers in (1, 2, 4):
        group = {"name": "a", "models": ["fake_a"], "min_workers": workers, "settings": {"max_batch_images": 1}}
        await asyncio.to_thread(cluster.deploy, cluster_settings(groups=[group]), 0.1)
        async with load(cluster.http_port, 4 * workers) as result:
            await becomes(lambda workers=workers, result=result: result.answered > 5 * workers)  # type: ignore[misc]
            before, started_s = result.answered, time.monotonic()
            await asyncio.sleep(10)
            rates[workers] = (result.answered - before) / (time.monotonic() - started_s)
        assert set(result.statuses) == {"200"}, result.failures[:3]
    log.info("replicas", rates={workers: round(rate, 2) for workers, rate in rates.items()})
    assert rates[2] >= 0.9 * 2 * rates[1]
    assert rates[4] >= 0.9 * 4 * rates[1]


async def test_a_killed_node_costs_no_request(cluster: LocalCluster) -> None:
    """When all processes of a node are killed under load, the other one answers everything: also what was on its way
    through the killed front-end. Ray starts what was lost on the other node."""
    cluster.deploy(cluster_settings())
    async with load(cluster.http_port, 8) as result:
        await asyncio.sleep(3)
        before = dict(result.answered_by)
        cluster.nodes[1].kill()
        killed_s = time.monotonic()
        await becomes(lambda: len(cluster.nodes[0].replicas("worker-a")) == 2, 180)
        again_s = time.monotonic() - killed_s
        await asyncio.sleep(5)
    log.info("a node was killed", before=before, statuses=dict(result.statuses), again_s=round(again_s, 1))
    assert len(before) == 2
    assert set(result.statuses) == {"200"}, result.failures[:3]


async def test_a_node_that_joins_takes_its_share(cluster: LocalCluster) -> None:
    """A third node joins the running cluster; a group placed there serves a model beside another group, under load."""
    cluster.start_node()
    everywhere = {"name": "a", "models": ["fake_a"], "min_workers": 2}
    there = {"name": "b", "models": ["fake_a"], "resources": {"node2": 1}}
    async with load(cluster.http_port, 8) as result:
        await asyncio.to_thread(cluster.deploy, cluster_settings(groups=[everywhere, there]))
        before = result.answered_by["fake_a 127.0.0.4"], result.answered
        await asyncio.sleep(5)
    joined, answered = result.answered_by["fake_a 127.0.0.4"] - before[0], result.answered - before[1]
    log.info("a third node joined", answered=answered, of_it=joined, statuses=dict(result.statuses))
    assert set(result.statuses) == {"200"}, result.failures[:3]
    assert joined >= 0.2 * answered


async def test_the_command_line_shows_and_ends_the_service(cluster: LocalCluster) -> None:
    """`status` shows nodes and parts, `down` drains and ends the service, and then there is none."""
    cluster.deploy(cluster_settings())
    shown = json.loads(cluster.run("service.cli", "cluster", "status", "--json", "--address", cluster.head))
    assert shown["state"] == "RUNNING"
    assert {part["name"]: part["replicas"] for part in shown["parts"]} == {
        "rest": {"RUNNING": 2},
        "worker-a": {"RUNNING": 2},
    }
    assert cluster.nodes[0].address in shown["nodes"]
    assert cluster.run("service.cli", "cluster", "down", "--address", cluster.head) == "convmlp is down\n"
    assert (cluster.running("worker-a"), cluster.running("rest")) == (0, 0)
    with pytest.raises(AssertionError, match="no application 'convmlp' is deployed"):
        cluster.run("service.cli", "cluster", "down", "--address", cluster.head)
