"""Processes that are killed, hang, stop, or cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.reference import REFERENCE_PICTURE
from tests.e2e.convmlp_process import RunningService, is_alive, running_service, started_service
from tests.waiting import eventually

PICTURE = REFERENCE_PICTURE.read_bytes()
CLASSIFY_ONLY = ("--models", "convmlp_pets_breed")


PAUSE_S = 0.2
"""Of a caller after an answer, so that the load leaves a part of the machine to a process that starts."""


@pytest.fixture(scope="module")
def classifier() -> Iterator[RunningService]:
    """A service whose worker a test kills; the last test ends it."""
    with running_service(*CLASSIFY_ONLY) as running:
        yield running


@pytest.fixture(scope="module")
def two_workers() -> Iterator[RunningService]:
    """A service with two workers, whose processes tests kill; the last one kills its supervisor."""
    with running_service(*CLASSIFY_ONLY, "--workers", "2", "--device", "cpu") as running:
        yield running


async def under_load(client: httpx2.AsyncClient, stop: asyncio.Event, outcomes: list[tuple[float, int, str]]) -> None:
    """A closed-loop client; records each reply's time, status and text. Status 0: the connection failed."""
    while not stop.is_set():
        await post_once(client, outcomes)
        await asyncio.sleep(PAUSE_S)


async def post_once(client: httpx2.AsyncClient, outcomes: list[tuple[float, int, str]]) -> None:
    try:
        reply = await client.post("/classify", content=PICTURE)
        outcomes.append((time.monotonic(), reply.status_code, reply.text))
    except httpx2.TransportError as error:
        outcomes.append((time.monotonic(), 0, repr(error)))


async def started_burst(client: httpx2.AsyncClient, outcomes: list[tuple[float, int, str]]) -> list[asyncio.Task[None]]:
    """Eight requests that the service has in progress, as far as it has not answered them already."""
    burst = [asyncio.create_task(post_once(client, outcomes)) for _ in range(8)]
    await eventually(lambda: all_arrived(client, burst))
    return burst


async def all_arrived(client: httpx2.AsyncClient, requests: Sequence[asyncio.Task[Any]]) -> bool:
    """Whether the service has each of these requests, or has answered it."""
    return await _in_flight(client) + sum(one.done() for one in requests) >= len(requests)


async def test_a_killed_worker_is_replaced(classifier: RunningService) -> None:
    """After kill -9 under load, requests in flight get a 503 at once, readiness fails, and later requests succeed."""
    async with httpx2.AsyncClient(base_url=classifier.url, timeout=30) as client:
        stop, outcomes = asyncio.Event(), list[tuple[float, int, str]]()
        clients = [asyncio.create_task(under_load(client, stop, outcomes)) for _ in range(4)]
        await eventually(lambda: _seen(outcomes, 200))
        burst = await started_burst(client, outcomes)
        killed = classifier.pid_of("worker-0")
        os.kill(killed, signal.SIGKILL)
        killed_s = time.monotonic()

        async def unready() -> bool:
            return (await client.get("/readyz")).status_code == 503

        async def ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await eventually(unready)
        await eventually(lambda: _seen(outcomes, 503))
        await eventually(ready)
        stop.set()
        await asyncio.gather(*clients, *burst)
        assert (await client.post("/classify", content=PICTURE)).status_code == 200
        await eventually(lambda: _restarted_once(client))

    statuses = {status for _, status, _ in outcomes}
    assert statuses == {200, 503}, statuses
    first = min(outcomes, key=lambda one: (one[1] != 503, one[0]))
    assert "worker" in first[2]
    # The contract allows 5 s until requests in flight fail.
    after = sorted(when for when, _, _ in outcomes if when > killed_s)
    assert after[0] - killed_s < 5
    assert classifier.pid_of("worker-0") != killed


async def _restarted_once(client: httpx2.AsyncClient) -> bool:
    """Whether /metrics has one restart of a worker."""
    text = (await client.get("/metrics")).text
    (restarts,) = [one for one in text_string_to_metric_families(text) if one.name == "convmlp_worker_restarts"]
    return sum(sample.value for sample in restarts.samples if sample.name.endswith("_total")) == 1


async def _seen(outcomes: list[tuple[float, int, str]], status: int) -> bool:
    return any(one[1] == status for one in outcomes)


async def test_sigterm_drains_the_service(classifier: RunningService) -> None:
    """Every request sent before SIGTERM is answered, and all processes exit with status 0. The worker logs how long it
    took, which is not its age."""
    pids = [classifier.pid_of(part) for part in ("worker-0", "rest-0", "grpc-0")]
    async with httpx2.AsyncClient(base_url=classifier.url, timeout=60) as client:
        assert (await client.post("/classify", content=PICTURE)).status_code == 200
        requests = [asyncio.create_task(client.post("/classify", content=PICTURE)) for _ in range(24)]
        await eventually(lambda: all_arrived(client, requests), 30)
        signalled_s = time.monotonic()
        classifier.process.send_signal(signal.SIGTERM)
        replies = await asyncio.gather(*requests)
    assert {reply.status_code: reply.text for reply in replies}.keys() == {200}, replies[-1].text
    assert await asyncio.to_thread(classifier.process.wait, 60) == 0
    took_s = time.monotonic() - signalled_s
    assert not any(is_alive(pid) for pid in pids)
    assert 0 <= classifier.wait_for("drained")["seconds"] <= took_s


async def _in_flight(client: httpx2.AsyncClient) -> float:
    """Images in progress in the front-end."""
    text = (await client.get("/metrics")).text
    (family,) = [one for one in text_string_to_metric_families(text) if one.name == "convmlp_in_flight_requests"]
    return sum(sample.value for sample in family.samples)


async def test_the_loss_of_one_of_two_workers_fails_no_request(two_workers: RunningService) -> None:
    """If one is killed or hangs under load, the other answers; the service stays ready and replaces the lost one."""
    async with httpx2.AsyncClient(base_url=two_workers.url, timeout=60) as client:

        async def all_ready() -> bool:
            return bool((await client.get("/readyz")).json().get("reason") == "ready")

        await eventually(all_ready)
        stop, outcomes, probes = asyncio.Event(), list[tuple[float, int, str]](), list[int]()

        async def probe() -> None:
            while not stop.is_set():
                probes.append((await client.get("/readyz")).status_code)
                await asyncio.sleep(0.05)

        async def degraded() -> bool:
            return not await all_ready()

        tasks = [asyncio.create_task(under_load(client, stop, outcomes)) for _ in range(4)]
        tasks.append(asyncio.create_task(probe()))
        await eventually(lambda: _seen(outcomes, 200))
        for part, how in (("worker-1", signal.SIGKILL), ("worker-0", signal.SIGSTOP)):
            burst = await started_burst(client, outcomes)
            os.kill(two_workers.pid_of(part), how)
            await eventually(degraded)
            await eventually(all_ready)
            await asyncio.gather(*burst)
        stop.set()
        await asyncio.gather(*tasks)
    assert {status for _, status, _ in outcomes} == {200}
    assert set(probes) == {200}
    assert [_starts(two_workers, part) for part in ("worker-0", "worker-1")] == [2, 2]


async def test_front_ends_share_a_port_and_their_metrics() -> None:
    """Two front-ends listen on one port, and /metrics of either has the sum of both; a killed one is replaced."""
    with running_service(*CLASSIFY_ONLY, "--rest-processes", "2") as service:
        killed = service.pid_of("rest-1")
        # A connection each, so that the kernel spreads them over the processes.
        for _ in range(20):
            async with httpx2.AsyncClient(base_url=service.url, timeout=30) as client:
                assert (await client.post("/classify", content=PICTURE)).status_code == 200
        async with httpx2.AsyncClient(base_url=service.url, timeout=30) as client:
            await eventually(lambda: _has_requests(client, 20))
            os.kill(killed, signal.SIGKILL)

        async def replaced() -> bool:
            return service.pid_of("rest-1") != killed

        await eventually(replaced)
        for _ in range(5):
            async with httpx2.AsyncClient(base_url=service.url, timeout=30) as client:
                assert (await client.post("/classify", content=PICTURE)).status_code == 200
        async with httpx2.AsyncClient(base_url=service.url, timeout=30) as client:
            await eventually(lambda: _has_requests(client, 25))


async def _has_requests(client: httpx2.AsyncClient, count: int) -> bool:
    """Whether /metrics has so many successful requests."""
    text = (await client.get("/metrics")).text
    (family,) = [one for one in text_string_to_metric_families(text) if one.name == "convmlp_requests"]
    samples = [sample for sample in family.samples if sample.name.endswith("_total")]
    return sum(sample.value for sample in samples if sample.labels["outcome"] == "ok") == count


async def test_no_process_outlives_a_killed_supervisor(two_workers: RunningService) -> None:
    """After kill -9 of the supervisor, workers and front-ends exit by themselves."""
    pids = [two_workers.pid_of(part) for part in ("worker-0", "worker-1", "rest-0", "grpc-0")]
    assert all(is_alive(pid) for pid in pids)
    two_workers.process.kill()

    async def all_ended() -> bool:
        return not any(is_alive(pid) for pid in pids)

    await eventually(all_ended, 30)


def test_contradictory_workers_and_addresses_are_an_error() -> None:
    """Two workers at one address are an error in the log, and the service exits."""
    with started_service("--workers", "2", "--worker-address", "ipc:///tmp/convmlp-test-unused") as service:
        assert "set only one of the two" in service.wait_for("cannot serve", role="supervisor")["error"]
        assert service.process.wait(timeout=60) == 78


def test_an_unknown_model_is_an_error() -> None:
    """It is found before anything listens: no part is started, the log has the error, and the service exits."""
    with started_service("--models", "no_such_model") as service:
        line = service.wait_for("cannot serve", role="supervisor")
        assert "no_such_model" in line["error"]
        assert "convmlp_pets_breed" in line["error"]
        assert service.process.wait(timeout=60) == 78
        assert _starts(service, "worker-0") == 0


def test_a_damaged_model_is_an_error(tmp_path: Path) -> None:
    """A misconfigured part is not restarted: the log has the error, and the service exits."""
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/config.json").write_text("{}")
    with started_service("--models", "damaged", "--models-dir", str(tmp_path)) as service:
        assert "config.json is not valid" in service.wait_for("cannot serve")["error"]
        assert service.process.wait(timeout=60) == 78
        assert _starts(service, "worker-0") == 1


def _starts(service: RunningService, part: str) -> int:
    return sum(line["event"] == "started" and line["part"] == part for line in service.lines)
