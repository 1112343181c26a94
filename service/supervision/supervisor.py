"""`convmlp serve`: starts workers and front-ends, watches them, drains and stops them in order.

The supervisor handles no requests. A child that exits or no longer responds is restarted after a back-off that doubles
up to a bound. A child whose configuration is wrong ends the whole service, because a restart would not help.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence

import httpx2
import structlog
from prometheus_client import CollectorRegistry

from model.errors import BundleInvalid
from service.frontend.core.tls import (
    TRANSPORTS,
    CertificateFiles,
    InvalidCertificates,
    certificate_files,
    own_client_context,
)
from service.observability.exposition import open_metrics
from service.observability.metrics import METRICS_DIR, SupervisorMetrics
from service.process import EXIT_CONFIG, CannotListen, address_of, hold_port, open_listener, port_errors, run_process
from service.settings import Settings
from service.supervision.child import Child, ChildSpec, Loss, Misconfigured, StartProcess, start_process
from service.supervision.placement import Unplaceable, count_cuda_devices, place_workers
from service.supervision.runtime_folder import NoRuntimeFolder, RuntimeFolder, runtime_parents
from service.worker.served_models_file import require_models

KILL_GRACE_S = 5.0
"""How long a child may take beyond the drain time before it is killed."""
RESTORE_INTERVAL_S = 0.5
"""Between two looks at the runtime folder."""

log = structlog.get_logger(__name__)


def run_supervisor(settings: Settings, start: StartProcess = start_process) -> int:
    """Serve on this machine until a signal; the exit status. `start` starts the processes of workers and front-ends."""
    return run_process("supervisor", settings, lambda stop: _supervise(settings, stop, start))


async def _supervise(settings: Settings, stop: asyncio.Event, start: StartProcess) -> int:
    with contextlib.ExitStack() as stack:
        try:
            for transport in TRANSPORTS:
                certificate_files(settings, transport)
            require_models(settings)
            folder = stack.enter_context(RuntimeFolder(runtime_parents(os.environ)))
            workers = await asyncio.to_thread(place_workers, settings, folder.path, count_cuda_devices)
        except NoRuntimeFolder as error:
            log.error("cannot make a runtime folder; set XDG_RUNTIME_DIR or TMPDIR to a writable one", error=str(error))
            return EXIT_CONFIG
        except (BundleInvalid, InvalidCertificates, Unplaceable) as error:
            log.error("cannot serve", error=str(error))
            return EXIT_CONFIG
        os.environ[METRICS_DIR] = str(folder.path / "metrics")
        addresses = [worker.worker_address[0] for worker in workers]
        settings = settings.with_changes(worker_address=addresses)
        try:
            with port_errors("--http-port", settings.http_port):
                http = stack.enter_context(open_listener(settings.host, settings.http_port))
            with port_errors("--grpc-port", settings.grpc_port):
                grpc = stack.enter_context(hold_port(settings.host, settings.grpc_port))
        except CannotListen as error:
            error.log(settings.host)
            return EXIT_CONFIG
        return await _supervise_at(http, grpc, settings, workers, folder, stop, start)


async def _supervise_at(
    http: socket.socket,
    grpc: socket.socket,
    settings: Settings,
    workers_settings: Sequence[Settings],
    folder: RuntimeFolder,
    stop: asyncio.Event,
    start: StartProcess,
) -> int:
    registry = CollectorRegistry()
    metrics = SupervisorMetrics(registry)

    def make_child(spec: ChildSpec, settings: Settings) -> Child:
        def lost(loss: Loss) -> None:
            metrics.restarted(spec.role, loss, worker=spec.command == "worker")

        for loss in Loss:
            metrics.restarts(spec.role, loss)  # exported from the start, so that the first one is a rise from 0
        # A front-end's small NumPy products gain nothing from BLAS threads.
        environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ, **settings.as_environment()}
        return Child(spec, environment, lambda: [folder.lock], lost, start)

    worker_timeout_s, timeout_s = settings.worker_timeout_ms / 1000, settings.front_end_timeout_ms / 1000
    workers = [
        make_child(ChildSpec(f"worker-{n}", "worker", worker_timeout_s), worker_settings)
        for n, worker_settings in enumerate(workers_settings)
    ]
    parts = (("rest", settings.rest_processes, http), ("grpc", settings.grpc_processes, grpc))
    front_ends = [
        make_child(ChildSpec(f"{part}-{n}", part, timeout_s, listener.fileno()), settings)
        for part, processes, listener in parts
        for n in range(processes)
    ]
    with open_metrics(registry):
        running = {child: asyncio.create_task(child.run()) for child in (*workers, *front_ends)}
        watching = [
            asyncio.create_task(_report_ready(settings, address_of(http), address_of(grpc), len(workers))),
            asyncio.create_task(_keep_folder(folder)),
        ]
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([stopping, *running.values()], return_when=asyncio.FIRST_COMPLETED)
        status = 0 if stop.is_set() else _status_of(next(task for task in running.values() if task.done()))
        log.info("stopping")
        for task in (*watching, stopping):
            task.cancel()
        # Front-ends first: their requests in progress still need the workers.
        grace_s = settings.drain_timeout_ms / 1000 + KILL_GRACE_S
        for group in (front_ends, workers):
            await asyncio.gather(*(child.stop(running[child], grace_s) for child in group))
        await asyncio.gather(*watching, stopping, *running.values(), return_exceptions=True)
    return status


def _status_of(ended: asyncio.Task[None]) -> int:
    """The exit status of the service after the task of a child has failed."""
    error = ended.exception()
    if isinstance(error, Misconfigured):
        log.error("a part is misconfigured; stopping", part=str(error))
        return EXIT_CONFIG
    log.critical("a part cannot be supervised; stopping", exc_info=error)
    return 1


async def _keep_folder(folder: RuntimeFolder) -> None:
    while True:
        await asyncio.sleep(RESTORE_INTERVAL_S)
        folder.restore()


async def _report_ready(settings: Settings, http: str, grpc: str, workers: int) -> None:
    """Log each time that the service becomes ready."""
    heartbeat_s, ready = settings.heartbeat_interval_ms / 1000, False
    files = certificate_files(settings, "http")
    url = f"{'http' if files is None else 'https'}://{http}"
    while True:
        # A new client after each failure: it may trust a certificate that was renewed.
        async with _client(files) as client:
            answers = True
            while answers:
                answers = await _answers_ready(client, url)
                ready, before = answers and (ready or await _listens(grpc)), ready
                if ready and not before:
                    # The other front-ends learn the workers' state within a heartbeat.
                    await asyncio.sleep(heartbeat_s)
                    log.info("ready", url=url, grpc_address=grpc, models=list(settings.models), workers=workers)
                await asyncio.sleep(heartbeat_s)


def _client(files: CertificateFiles | None) -> httpx2.AsyncClient:
    """A client of the service's own REST."""
    if files is None:
        return httpx2.AsyncClient(verify=False)
    try:
        return httpx2.AsyncClient(verify=own_client_context(files))
    except OSError:  # a renewal that is not complete: this client is refused, and the next one tries again
        return httpx2.AsyncClient()


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
