"""What a running service survives beside the loss of its processes: of its log's reader, of its folder, of its time."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.reference import REFERENCE_PICTURE
from tests.e2e.convmlp_process import RunningService, is_alive, running_service, started_service
from tests.waiting import eventually, until

PICTURE = REFERENCE_PICTURE.read_bytes()
FLAGS = ("--models", "convmlp_pets_heads")
PARTS = ("worker-0", "rest-0", "grpc-0")
OK = {"transport": "rest", "task": "detect", "model": "convmlp_pets_heads", "outcome": "ok"}


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """XDG_RUNTIME_DIR of a service. Its path is short, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="convmlp-test-") as folder:
        yield Path(folder)


def running_in(runtime_dir: Path, *flags: str) -> AbstractContextManager[RunningService]:
    """A service whose folder is in `runtime_dir`."""
    return running_service(*FLAGS, *flags, environment={"XDG_RUNTIME_DIR": str(runtime_dir)})


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    """A service whose processes tests stop and kill; the last of them ends it, without its log."""
    with running_service(*FLAGS, "--front-end-timeout-ms", "5000", fresh=True) as running:
        yield running


async def metric(client: httpx2.AsyncClient, name: str, /, **labels: str) -> float:
    """The value of a sample; 0 where there is none."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    found = [one.value for family in families for one in family.samples if (one.name, one.labels) == (name, labels)]
    return found[0] if found else 0.0


async def test_a_front_end_that_hangs_is_replaced(service: RunningService) -> None:
    """A stopped front-end is killed and restarted, and counted. A stop of the supervisor costs no front-end."""
    pids = [service.pid_of(part) for part in PARTS]
    service.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(6)  # longer than the front-ends' timeout
    service.process.send_signal(signal.SIGCONT)
    os.kill(service.pid_of("grpc-0"), signal.SIGSTOP)
    service.wait_for("process does not respond; killed", part="grpc-0")
    service.wait_for("started", part="grpc-0")
    assert [service.pid_of(part) for part in ("worker-0", "rest-0")] == pids[:2]
    async with httpx2.AsyncClient(base_url=service.url, timeout=60) as client:
        grpc = {"process": "grpc-0", "reason": "unresponsive"}
        await eventually(lambda: has(client, 1, "convmlp_process_restarts_total", **grpc))
        assert await metric(client, "convmlp_process_restarts_total", process="rest-0", reason="unresponsive") == 0
        assert await metric(client, "convmlp_worker_restarts_total") == 0


async def test_a_log_without_a_reader_costs_no_process(service: RunningService) -> None:
    """A full pipe blocks nothing, and a closed one ends nothing: the service answers and replaces a killed worker.
    SIGTERM then ends all of it with status 0."""
    supervisor = psutil.Process(service.process.pid)
    async with httpx2.AsyncClient(base_url=service.url, timeout=60) as client:
        await asyncio.to_thread(service.stop_reading)

        async def dropped() -> bool:
            assert (await client.post("/detect", content=PICTURE)).status_code == 200
            return await metric(client, "convmlp_log_lines_dropped_total") > 0

        await eventually(dropped)
        assert service.process.stderr is not None
        service.process.stderr.close()
        os.kill(service.pid_of("worker-0"), signal.SIGKILL)
        await eventually(lambda: is_ready(client, False))
        await eventually(lambda: is_ready(client, True))
        assert (await client.post("/detect", content=PICTURE)).status_code == 200
    parts = supervisor.children()
    assert len(parts) == 3
    service.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(service.process.wait, 60) == 0
    assert not any(is_alive(part.pid) for part in parts)


async def test_a_deleted_folder_costs_neither_requests_nor_counts(runtime_dir: Path) -> None:
    """After something deleted the sockets and the metrics, requests are answered, a new front-end finds the worker, and
    counts go on. The folder of a service that was killed is removed by the next one."""
    with running_in(runtime_dir) as service:
        (folder,) = entries(runtime_dir)
        async with httpx2.AsyncClient(base_url=service.url, timeout=60) as client:
            assert (await client.post("/detect", content=PICTURE)).status_code == 200
            # At once, for the processes write into it meanwhile.
            shutil.rmtree(folder.rename(runtime_dir / "deleted"))
            assert (await client.post("/detect", content=PICTURE)).status_code == 200
            assert await metric(client, "convmlp_requests_total", **OK) == 2
            shared = [folder / "worker-0", *(folder / "metrics" / f"{part}.metrics" for part in (*PARTS, "supervisor"))]
            await until(lambda: all(file.exists() for file in shared))
            os.kill(service.pid_of("rest-0"), signal.SIGKILL)
        service.wait_for("started", part="rest-0")
        async with httpx2.AsyncClient(base_url=service.url, timeout=60) as client:
            await eventually(lambda: is_ready(client, True))
            assert (await client.post("/detect", content=PICTURE)).status_code == 200
            assert await metric(client, "convmlp_requests_total", **OK) == 3
            await eventually(
                lambda: has(client, 1, "convmlp_process_restarts_total", process="rest-0", reason="exited")
            )
        pids = [service.pid_of(part) for part in PARTS]
        service.process.kill()
        await until(lambda: not any(is_alive(pid) for pid in pids))
        assert folder.exists()
    with started_service(*FLAGS, environment={"XDG_RUNTIME_DIR": str(runtime_dir)}) as service:
        service.wait_for("removed the folder of a service that was killed", folder=str(folder))
    assert entries(runtime_dir) == []


async def test_a_service_that_can_write_no_file_answers() -> None:
    """As on a full disk: it starts, answers, exposes what the asked front-end counted, and replaces a killed one."""
    with started_service(*FLAGS, fresh=True) as service:
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (0, 0))  # its processes inherit that
        url = service.wait_for("ready", role="supervisor")["url"]
        async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
            assert (await client.post("/detect", content=PICTURE)).status_code == 200
            assert await metric(client, "convmlp_requests_total", **OK) == 1
            assert await metric(client, "convmlp_metrics_snapshots_dropped_total") > 0
            os.kill(service.pid_of("rest-0"), signal.SIGKILL)
        service.wait_for("started", part="rest-0")
        async with httpx2.AsyncClient(base_url=url, timeout=60) as client:
            await eventually(lambda: is_ready(client, True))
            assert (await client.post("/detect", content=PICTURE)).status_code == 200


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def is_ready(client: httpx2.AsyncClient, ready: bool) -> bool:
    return (await client.get("/readyz")).is_success is ready


async def has(client: httpx2.AsyncClient, value: float, name: str, /, **labels: str) -> bool:
    return await metric(client, name, **labels) == value
