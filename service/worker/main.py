"""The worker process: composition root of `convmlp worker`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry

from model.bundle import Bundle, find_bundle, read_bundle
from model.errors import BundleInvalid
from service.observability.exposition import metrics_server, open_metrics
from service.observability.metrics import WorkerMetrics
from service.observability.tracing import Tracing, TracingUnavailable, open_tracing
from service.process import EXIT_CONFIG, EXIT_WEDGED, CannotListen, port_errors, run_process
from service.settings import Settings
from service.wire.curve import InsecureWire, worker_wire
from service.wire.worker_endpoint import AddressUnavailable, WorkerEndpoint
from service.worker.runner import DeviceLost, DeviceMissing
from service.worker.served_models_file import ServedModels, ServedModelsFile, require_models
from service.worker.state_folder import StateFolder
from service.worker.torch_runner import TorchRunner
from service.worker.worker import Worker, WorkerWedged

log = structlog.get_logger(__name__)


def run_worker(settings: Settings) -> int:
    """Serve `settings.models` at `settings.worker_address` until a signal; the exit status."""
    return run_process("worker", settings, lambda stop: _serve(settings, stop))


async def _serve(settings: Settings, stop: asyncio.Event) -> int:
    status = 0
    try:
        require_models(settings)
        (address,) = settings.worker_address
        with open_tracing(settings, "worker", follows=True) as tracing:
            async with WorkerEndpoint(address, worker_wire(settings)) as endpoint:
                await serve_worker(endpoint, settings, stop, tracing)
    except* (BundleInvalid, DeviceMissing, InsecureWire, TracingUnavailable) as errors:
        log.error("cannot serve", error=str(_first(errors)))
        status = EXIT_CONFIG
    except* AddressUnavailable as errors:
        log.error("cannot listen", error=str(_first(errors)))
        status = 1  # a deleted folder, or the port of a process that ends, may be there at the next start
    except* CannotListen as errors:
        error = _first(errors)
        assert isinstance(error, CannotListen)
        error.log(settings.host)
        status = EXIT_CONFIG
    except* (WorkerWedged, DeviceLost) as errors:
        log.critical("the device does not answer", error=str(_first(errors)))
        # The device thread hangs in foreign code, and a normal exit would wait for it.
        os._exit(EXIT_WEDGED)
    return status


async def serve_worker(
    endpoint: WorkerEndpoint,
    settings: Settings,
    stop: asyncio.Event,
    tracing: Tracing,
    on_made: Callable[[Worker], None] = lambda _: None,
) -> None:
    """Serve `settings.models` at an endpoint until `stop` is set; then drain. `on_made` gets the worker first.

    Raises:
        BundleInvalid: a configured bundle cannot be read, or its weights do not fit.
        CannotListen: the port of the metrics is not available.
        DeviceMissing: there is no such device.
        WorkerWedged, DeviceLost: the device does not work any more, and a thread hangs in it.
    """
    bundles = await asyncio.to_thread(_bundles, settings)
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, {bundle.config.name: bundle.config.task.value for bundle in bundles})
    state = StateFolder(settings.state_folder)

    def make_runner(settings: Settings) -> TorchRunner:
        runner = TorchRunner((), settings, state)
        if gpu := runner.gpu():
            metrics.uses_gpu(*gpu, runner.device)
        return runner

    with contextlib.ExitStack() as stack:
        shared = stack.enter_context(open_metrics(registry))
        with port_errors("--worker-metrics-port", settings.worker_metrics_port):
            server = metrics_server(shared.of_one(), settings.host, settings.worker_metrics_port)
            metrics_port = stack.enter_context(server)
        log.info(
            "loading",
            models=[bundle.config.name for bundle in bundles],
            address=endpoint.address,
            metrics_port=metrics_port,
        )
        worker = Worker(bundles, make_runner, settings, metrics, tracing, state)
        on_made(worker)
        await worker.run(endpoint, stop)


def _bundles(settings: Settings) -> list[Bundle]:
    """The bundles that were served last, or the configured ones.

    Raises:
        BundleInvalid: a configured one cannot be read.
    """
    bundles = []
    file = ServedModelsFile(settings.served_models_file, ServedModels.configured(settings))
    for name in file.read().models:
        try:
            bundles.append(read_bundle(find_bundle(name, settings.models_dir)))
        except BundleInvalid as error:
            if name in settings.models:
                raise
            # A caller loaded it once: the other models are served without it.
            log.error("cannot read a model that was served last", model=name, error=str(error))
    return bundles


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
