"""`convmlp serve`: starts workers and front-ends, watches them, drains and stops them in order.

The supervisor handles no requests. A child that exits is restarted after a back-off that doubles up to a bound. A child
whose configuration is wrong ends the whole service, because a restart would not help.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx2
import structlog
from prometheus_client import CollectorRegistry

from service.observability.exposition import forget_process
from service.observability.metrics import MULTIPROC_DIR, restart_counter
from service.process import EXIT_CONFIG, address_of, hold_port, open_listener, run_process
from service.settings import Settings
from service.supervision.child import Child, ChildSpec
from service.supervision.placement import Unplaceable, count_cuda_devices, place_workers
from service.wire.worker_client import WorkerClient

KILL_GRACE_S = 5.0
"""How long a child may take beyond the drain time before it is killed."""

log = structlog.get_logger(__name__)


def run_supervisor(settings: Settings) -> int:
    """Serve on this machine until a signal; the exit status."""
    folder = Path(tempfile.mkdtemp(prefix="convmlp-"))
    try:
        os.environ[MULTIPROC_DIR] = str(folder)
        return run_process("supervisor", settings, lambda stop: _supervise(settings, folder, stop))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _supervise(settings: Settings, folder: Path, stop: asyncio.Event) -> int:
    try:
        workers = await asyncio.to_thread(place_workers, settings, folder, count_cuda_devices)
    except Unplaceable as error:
        log.error("cannot serve", error=str(error))
        return EXIT_CONFIG
    addresses = [worker.worker_address[0] for worker in workers]
    settings = settings.with_changes(worker_address=addresses)
    with contextlib.ExitStack() as sockets:
        try:
            port = settings.http_port
            http = sockets.enter_context(open_listener(settings.host, port))
            port = settings.grpc_port
            grpc = sockets.enter_context(hold_port(settings.host, port))
        except OSError as error:
            log.error("cannot listen", host=settings.host, port=port, error=error.strerror)
            return EXIT_CONFIG
        return await _supervise_at(http, grpc, settings, workers, folder, stop)


async def _supervise_at(
    http: socket.socket,
    grpc: socket.socket,
    settings: Settings,
    workers_settings: Sequence[Settings],
    folder: Path,
    stop: asyncio.Event,
) -> int:
    restarts = restart_counter(CollectorRegistry())

    def make_child(spec: ChildSpec, settings: Settings) -> Child:
        def lost() -> None:
            forget_process(spec.role, folder)
            if spec.command == "worker":
                restarts.inc()

        # A front-end's small NumPy products gain nothing from BLAS threads.
        return Child(spec, {"OPENBLAS_NUM_THREADS": "1", **os.environ, **settings.as_environment()}, lost)

    workers = [
        make_child(ChildSpec(f"worker-{n}", "worker"), worker_settings)
        for n, worker_settings in enumerate(workers_settings)
    ]
    front_ends = [
        *(make_child(ChildSpec(f"rest-{n}", "rest", http.fileno()), settings) for n in range(settings.rest_processes)),
        *(make_child(ChildSpec(f"grpc-{n}", "grpc", grpc.fileno()), settings) for n in range(settings.grpc_processes)),
    ]
    running = {child: asyncio.create_task(child.run()) for child in (*workers, *front_ends)}
    watching = asyncio.create_task(_watch(settings, workers, address_of(http), address_of(grpc)))
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([stopping, *running.values()], return_when=asyncio.FIRST_COMPLETED)
    status = 0
    if stopping not in done:
        status = EXIT_CONFIG
        log.error("a part is misconfigured; stopping", part=str(next(iter(done)).exception()))
    log.info("stopping")
    for task in (watching, stopping):
        task.cancel()
    # Front-ends first: their requests in progress still need the workers.
    grace_s = settings.drain_timeout_ms / 1000 + KILL_GRACE_S
    for group in (front_ends, workers):
        await asyncio.gather(*(child.stop(running[child], grace_s) for child in group))
    await asyncio.gather(watching, stopping, *running.values(), return_exceptions=True)
    return status


async def _watch(settings: Settings, workers: Sequence[Child], http: str, grpc: str) -> None:
    """Log when the service is ready; kill a worker that does not answer any more, so that it is restarted."""
    heartbeat_s, url = settings.heartbeat_interval_ms / 1000, f"http://{http}"
    async with contextlib.AsyncExitStack() as stack:
        for address, worker in zip(settings.worker_address, workers, strict=True):
            await stack.enter_async_context(_watch_worker(worker, address, settings))
        client = await stack.enter_async_context(httpx2.AsyncClient())
        ready = False
        while True:
            ready, before = await _answers_ready(client, url) and (ready or await _listens(grpc)), ready
            if ready and not before:
                # The other front-ends learn the workers' state within a heartbeat.
                await asyncio.sleep(heartbeat_s)
                log.info("ready", url=url, grpc_address=grpc, models=list(settings.models), workers=len(workers))
            await asyncio.sleep(heartbeat_s)


def _watch_worker(worker: Child, address: str, settings: Settings) -> WorkerClient:
    """A client that kills the worker's process when it stops answering."""
    timeout_s = settings.worker_timeout_ms / 1000

    def on_change() -> None:
        # A process younger than the timeout is already the successor.
        if client.phase is None and worker.age_s() > timeout_s:
            worker.signal(signal.SIGKILL)

    client = WorkerClient(address, settings.heartbeat_interval_ms / 1000, timeout_s, on_change, lambda: None)
    return client


async def _answers_ready(client: httpx2.AsyncClient, url: str) -> bool:
    """Whether /readyz answers 200."""
    try:
        return (await client.get(f"{url}/readyz", timeout=5)).is_success
    except httpx2.HTTPError:
        return False


async def _listens(address: str) -> bool:
    """Whether a front-end accepts connections. With TLS, only callers with its certificate could check more."""
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except OSError:
        return False
    writer.close()
    return True
