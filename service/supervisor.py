"""`convmlp serve`: starts the worker and the front-ends, watches them, drains them in order, stops them.

The supervisor itself touches no request. A child that ends is started again after a back-off that doubles up to
a bound; one that says it is misconfigured ends the whole service, for starting it again would not help.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import structlog
from prometheus_client import CollectorRegistry

from service.metrics import MULTIPROC_DIR, forget_gauges, restart_counter
from service.process import EXIT_CONFIG, LIFELINE_FD, LISTEN_FD, ROLE, address_of, hold_port, open_listener, run_process
from service.settings import Settings
from service.wire.channel import WorkerChannel

FIRST_BACKOFF_S = 0.2
LAST_BACKOFF_S = 30.0
HEALTHY_AFTER_S = 60.0
"""A child that lived this long starts again with the first back-off."""
KILL_GRACE_S = 5.0
"""What a child gets beyond the drain time before it is killed."""

log = structlog.get_logger(__name__)


class Misconfigured(Exception):
    """A child cannot work as it is configured; its own log line says why."""


@dataclass(frozen=True, slots=True)
class Part:
    """One child process: its role, its command, and the socket that it is handed, if any."""

    role: str
    command: str
    listen_fd: int | None = None


class Child:
    """Keeps one part running until told to stop."""

    def __init__(self, part: Part, environment: dict[str, str], on_lost: Callable[[], None]) -> None:
        self._part = part
        self._environment = environment
        self._on_lost = on_lost
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._started_s = 0.0

    def age_s(self) -> float:
        """Seconds since its process was started last."""
        return time.monotonic() - self._started_s

    async def run(self) -> None:
        """Start it, and start it again whenever it ends.

        Raises:
            Misconfigured: it ended saying so.
        """
        backoff_s = FIRST_BACKOFF_S
        while True:
            self._started_s = time.monotonic()
            status = await self._run_once()
            if self._stopping:
                return
            if status == EXIT_CONFIG:
                raise Misconfigured(self._part.role)
            if self.age_s() > HEALTHY_AFTER_S:
                backoff_s = FIRST_BACKOFF_S
            log.error("process ended; starting it again", part=self._part.role, status=status, after_s=backoff_s)
            self._on_lost()
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)

    async def _run_once(self) -> int:
        lifeline, ours = os.pipe()
        try:
            environment = {**self._environment, LIFELINE_FD: str(lifeline), ROLE: self._part.role}
            descriptors = [lifeline]
            if self._part.listen_fd is not None:
                environment[LISTEN_FD] = str(self._part.listen_fd)
                descriptors.append(self._part.listen_fd)
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "service.cli", self._part.command),
                env=environment,
                pass_fds=descriptors,
                stdin=asyncio.subprocess.DEVNULL,
            )
            log.info("started", part=self._part.role, pid=self._process.pid)
            os.close(lifeline)
            lifeline = -1
            if self._stopping:  # asked to stop while it was being born
                self.signal(signal.SIGTERM)
            return await self._process.wait()
        finally:
            for descriptor in (lifeline, ours):
                if descriptor >= 0:
                    os.close(descriptor)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self, running: asyncio.Task[None], grace_s: float) -> None:
        """SIGTERM, and SIGKILL after the grace."""
        self._stopping = True
        self.signal(signal.SIGTERM)
        if self._process is None or self._process.returncode is not None:
            running.cancel()  # between two lives
        _, pending = await asyncio.wait([running], timeout=grace_s)
        if pending:
            log.error("did not stop in time; killed", part=self._part.role)
            self.signal(signal.SIGKILL)
            await asyncio.wait([running])


def run_supervisor(settings: Settings) -> int:
    """Serve on this machine until a signal; the exit status."""
    folder = Path(tempfile.mkdtemp(prefix="convmlp-"))
    try:
        os.environ[MULTIPROC_DIR] = str(folder)
        if not settings.worker_address:
            settings = settings.with_changes(worker_address=f"ipc://{folder}/worker")
        if settings.served_models_file is None:
            settings = settings.with_changes(served_models_file=folder / "served-models.json")
        return run_process("supervisor", settings, lambda stop: _supervise(settings, folder, stop))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _supervise(settings: Settings, folder: Path, stop: asyncio.Event) -> int:
    with contextlib.ExitStack() as sockets:
        try:
            port = settings.http_port
            http = sockets.enter_context(open_listener(settings.host, port))
            port = settings.grpc_port
            grpc = sockets.enter_context(hold_port(settings.host, port))
        except OSError as error:
            log.error("cannot listen", host=settings.host, port=port, error=error.strerror)
            return EXIT_CONFIG
        return await _supervise_at(http, grpc, settings, folder, stop)


async def _supervise_at(
    http: socket.socket, grpc: socket.socket, settings: Settings, folder: Path, stop: asyncio.Event
) -> int:
    restarts = restart_counter(CollectorRegistry())

    def child(part: Part, *, counted: bool = False) -> Child:
        def lost() -> None:
            forget_gauges(part.role, folder)
            if counted:
                restarts.inc()

        # NumPy's small products in a front-end gain nothing from threads of their own.
        return Child(part, {"OPENBLAS_NUM_THREADS": "1", **os.environ, **settings.as_environment()}, lost)

    worker = child(Part("worker-0", "worker"), counted=True)
    front_ends = [
        *(child(Part(f"rest-{n}", "rest", http.fileno())) for n in range(settings.rest_processes)),
        *(child(Part(f"grpc-{n}", "grpc", grpc.fileno())) for n in range(settings.grpc_processes)),
    ]
    running = {one: asyncio.create_task(one.run()) for one in (worker, *front_ends)}
    watching = asyncio.create_task(_watch_worker(settings, worker, address_of(http), address_of(grpc)))
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([stopping, *running.values()], return_when=asyncio.FIRST_COMPLETED)
    status = 0
    if stopping not in done:
        status = EXIT_CONFIG
        log.error("a part cannot work as it is configured; stopping", part=str(next(iter(done)).exception()))
    log.info("stopping")
    for task in (watching, stopping):
        task.cancel()
    # Front-ends first: the worker must outlive whoever still waits for its answers.
    grace_s = settings.drain_timeout_ms / 1000 + KILL_GRACE_S
    await asyncio.gather(*(one.stop(running[one], grace_s) for one in front_ends))
    await worker.stop(running[worker], grace_s)
    await asyncio.gather(watching, stopping, *running.values(), return_exceptions=True)
    return status


async def _watch_worker(settings: Settings, worker: Child, http: str, grpc: str) -> None:
    """Say when the service is ready; kill a worker that went silent, so that it is started again."""
    heartbeat_s, timeout_s = settings.heartbeat_interval_ms / 1000, settings.worker_timeout_ms / 1000

    def on_up(up: bool) -> None:
        # A younger worker is the silent one's successor already.
        if not up and worker.age_s() > timeout_s:
            worker.signal(signal.SIGKILL)

    url = f"http://{http}"
    async with WorkerChannel(settings.worker_address, heartbeat_s, timeout_s, on_up), httpx.AsyncClient() as client:
        ready = False
        while True:
            ready, before = await _answers_ready(client, url) and (ready or await _listens(grpc)), ready
            if ready and not before:
                # What one front-end has heard from the worker the others hear within a heartbeat.
                await asyncio.sleep(heartbeat_s)
                log.info("ready", url=url, grpc_address=grpc, models=list(settings.models))
            await asyncio.sleep(heartbeat_s)


async def _answers_ready(client: httpx.AsyncClient, url: str) -> bool:
    """What a caller would hear."""
    try:
        return (await client.get(f"{url}/readyz", timeout=5)).is_success
    except httpx.HTTPError:
        return False


async def _listens(address: str) -> bool:
    """Whether a front-end is there. With TLS only its callers could ask it more."""
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except OSError:
        return False
    writer.close()
    return True
