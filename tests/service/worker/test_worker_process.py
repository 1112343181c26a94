"""The real worker process with its real networks: after a kill it serves the same models again."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx2
import pytest

from model.bundle import CONFIG_FILE, EMBEDDED_DIR, WEIGHTS_FILE
from model.postprocess.results import postprocess
from model.reference import REFERENCE_PARAMS, mismatch, reference_input
from model.types import Task
from service.errors import Unavailable
from service.process import EXIT_CONFIG
from service.wire.pool import WorkerPool
from tests.e2e.convmlp_process import started
from tests.fakes import fake_bundle
from tests.fork_server import STDERR, STDOUT, ForkedProcess
from tests.service.wire.worker_pool import front_end, served, status_of

BREED, HEADS, OUTLINE = "convmlp_pets_breed", "convmlp_pets_heads", "convmlp_pets_outline"
START_TIMEOUT_S = 120.0


@contextmanager
def worker_process(folder: Path, precision: str = "exact") -> Iterator[ForkedProcess]:
    """`convmlp worker` on BREED and OUTLINE, whose socket, store, log and metrics are in `folder`."""
    settings = {
        "models": f"{BREED},{OUTLINE}",
        "models_dir": str(folder / "store"),
        "model_control": "true",
        "served_models_file": str(folder / "served.json"),
        "worker_address": f"ipc://{folder}/worker",
        "worker_metrics_port": "0",
        "heartbeat_interval_ms": "50",
        "log_format": "json",
        "compute_threads": "1",
        "precision": precision,
    }
    if precision == "auto":  # it measures anew; the others share what an earlier test of the run measured
        settings["state_dir"] = str(folder / "state")
    environment = {f"CONVMLP_{name.upper()}": value for name, value in settings.items()}
    for name in ("store", "metrics"):
        (folder / name).mkdir(exist_ok=True)
    with (folder / "log").open("wb") as log:
        variables = {**os.environ, **environment, "CONVMLP_METRICS_DIR": str(folder / "metrics")}
        process = ForkedProcess(("worker",), variables, {STDOUT: STDOUT, STDERR: log.fileno()})
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=60)


@asynccontextmanager
async def patient_front_end(folder: Path) -> AsyncIterator[WorkerPool]:
    """A front-end that loses its worker only when the connection breaks, not after silence."""
    async with front_end(f"ipc://{folder}/worker", 0.05, 10_000.0) as pool:
        yield pool


async def until_ready(pool: WorkerPool, process: ForkedProcess, folder: Path) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while not pool.readiness().ready:
            assert process.poll() is None, (folder / "log").read_text()
            await asyncio.sleep(0.02)


async def agrees(pool: WorkerPool, model: str) -> bool:
    """Whether a model gives its committed answer."""
    status = status_of(pool, model)
    config = status.config
    one = reference_input(config.preprocessing)
    answer = await pool.predict("r", status, one, REFERENCE_PARAMS, time.monotonic() + START_TIMEOUT_S)
    return mismatch(postprocess(answer.output, config, one.geometry.original), config.reference) is None


def scrape(folder: Path) -> str:
    """What Prometheus would read."""
    lines = map(json.loads, (folder / "log").read_text().splitlines())
    port = next(line["metrics_port"] for line in lines if line["event"] == "loading")
    return httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text


async def test_a_killed_worker_serves_its_models_again(tmp_path: Path) -> None:
    """After loads, an unload and kill -9 the next process serves the changed set, without one that left the disk."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    async with patient_front_end(tmp_path) as pool:
        with worker_process(tmp_path) as process:
            await until_ready(pool, process, tmp_path)
            assert served(pool) == [BREED, OUTLINE]
            for name in ("lost", "guest"):
                add_to_store(tmp_path, name)
                await pool.load(name, deadline_s)
            await pool.load(HEADS, deadline_s)
            assert served(pool) == [BREED, OUTLINE, "lost", "guest", HEADS]
            assert await agrees(pool, HEADS)
            await pool.unload(BREED, deadline_s)
            assert served(pool) == [OUTLINE, "lost", "guest", HEADS]
            scraped = await asyncio.to_thread(scrape, tmp_path)
            assert f'convmlp_model_ready{{model="{HEADS}"}} 1.0' in scraped
            assert f'convmlp_model_ready{{model="{BREED}"}}' not in scraped
            assert f'convmlp_queue_depth{{model="{BREED}"}}' not in scraped
            assert f'convmlp_images_total{{model="{BREED}"}}' in scraped
            await kill(process, pool)

        shutil.rmtree(tmp_path / "store" / "lost")
        with worker_process(tmp_path) as process:
            await until_ready(pool, process, tmp_path)
            assert served(pool) == [OUTLINE, "guest", HEADS]
            assert await agrees(pool, HEADS)
            assert "cannot read a model that was served last" in (tmp_path / "log").read_text()
            await kill(process, pool)


def logged(folder: Path, event: str) -> list[dict[str, str]]:
    """The lines of the present process's log about an event."""
    lines = map(json.loads, (folder / "log").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


async def test_a_restarted_worker_measures_nothing_again(tmp_path: Path) -> None:
    """After kill -9 the next process serves each model in the precision and with the batch size that the first one
    measured."""
    async with patient_front_end(tmp_path) as pool:
        with worker_process(tmp_path, "auto") as process:
            await until_ready(pool, process, tmp_path)
            chosen = {line["model"]: line["chosen"] for line in logged(tmp_path, "precision")}
            assert {model.config.name: model.precision for model in pool.models or ()} == chosen
            assert {line["source"] for line in logged(tmp_path, "precision")} == {"measured"}
            best = {line["model"]: line["images"] for line in logged(tmp_path, "best batch")}
            await kill(process, pool)

        with worker_process(tmp_path, "auto") as process:
            await until_ready(pool, process, tmp_path)
            for event in ("precision", "best batch"):
                # A size that had too little time is measured once more after the worker is ready.
                assert {line["source"] for line in logged(tmp_path, event)[:2]} == {"measured before"}
            assert {line["model"]: line["chosen"] for line in logged(tmp_path, "precision")} == chosen
            assert {line["model"]: line["images"] for line in logged(tmp_path, "best batch")[:2]} == best
            assert await agrees(pool, BREED)
            await kill(process, pool)


def add_to_store(folder: Path, name: str) -> None:
    """OUTLINE under another name."""
    copy = folder / "store" / name
    copy.mkdir()
    shutil.copy(EMBEDDED_DIR / OUTLINE / WEIGHTS_FILE, copy)
    config = json.loads((EMBEDDED_DIR / OUTLINE / CONFIG_FILE).read_text())
    (copy / CONFIG_FILE).write_text(json.dumps({**config, "name": name}))


async def kill(process: ForkedProcess, pool: WorkerPool) -> None:
    """kill -9, and wait until the pool knows."""
    process.kill()
    async with asyncio.timeout(START_TIMEOUT_S):
        while pool.readiness().ready:
            await asyncio.sleep(0.01)


async def test_a_worker_killed_during_a_load_fails_it_at_once(tmp_path: Path) -> None:
    """After kill -9 while a model is being read, the caller gets its error long before the deadline."""
    async with patient_front_end(tmp_path) as pool:
        with worker_process(tmp_path) as process:
            await until_ready(pool, process, tmp_path)
            stuck = tmp_path / "store" / "stuck"
            stuck.mkdir()
            (stuck / CONFIG_FILE).write_text(fake_bundle(Task.CLASSIFY, "stuck").config.model_dump_json())
            (stuck / WEIGHTS_FILE).touch()
            os.truncate(stuck / WEIGHTS_FILE, 1 << 40)  # takes no room on disk, and hours to read
            loading = asyncio.create_task(pool.load("stuck", time.monotonic() + 10_000))
            async with asyncio.timeout(START_TIMEOUT_S):
                while not any(
                    one.reason == "it is being loaded" for one in await pool.repository(time.monotonic() + 60)
                ):
                    await asyncio.sleep(0.02)
            assert await agrees(pool, BREED)
            process.kill()
            async with asyncio.timeout(START_TIMEOUT_S):
                with pytest.raises(Unavailable):
                    await loading


def test_a_metrics_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    """The error names port and flag, and the exit status means a wrong configuration, which no restart mends."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        flags = ("--models", BREED, "--worker-address", f"ipc://{tmp_path}/worker", "--worker-metrics-port", str(port))
        with started("worker", *flags) as process:
            line = process.wait_for("cannot listen")
            assert (line["port"], "another --worker-metrics-port " in str(line["remedy"])) == (port, True)
            assert process.process.wait(60) == EXIT_CONFIG
