"""The parts of every front-end process: engine, authentication, metrics, and the workers' clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry

from model.resize import COMPILED
from service.frontend.core.auth import Auth, open_auth
from service.frontend.core.engine import Engine
from service.frontend.core.executor import PreparePool
from service.observability.event_loop import watch_event_loop
from service.observability.exposition import open_metrics
from service.observability.metrics import FrontEndMetrics
from service.settings import Settings, usable_cores
from service.wire.curve import CurveKeys, front_end_wire
from service.wire.discovery import fixed, follow_names
from service.wire.pool import WorkerPool

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FrontEnd:
    workers: WorkerPool
    engine: Engine
    auth: Auth
    metrics: FrontEndMetrics
    registry: CollectorRegistry
    """For a scrape: with several processes, the metrics of all of them."""


@asynccontextmanager
async def open_front_end(settings: Settings, keys: CurveKeys | None = None) -> AsyncIterator[FrontEnd]:
    """An engine that talks to the workers at `settings.worker_address`, with `keys` or those of `wire_key_file`.

    It waits shortly for running workers to report, so that no early request is refused. Others may start later.

    Raises:
        InvalidKeysFile: the file of API keys cannot be used.
        InsecureWire: a worker is on a network, and there is no usable key file for the wire.
    """
    options = front_end_wire(settings, keys)
    if not COMPILED:
        log.warning("model/resample.c is not compiled; Pillow resizes images, which is slower")
    registry = CollectorRegistry()
    metrics = FrontEndMetrics(registry)
    metrics.limits(settings.max_in_flight, settings.decoded_bytes)
    async with open_auth(settings, metrics) as auth:
        threads = PreparePool(
            settings.prepare_threads or usable_cores(),
            settings.decode_limits,
            fast=settings.fast_decode,
            max_bytes=settings.decoded_bytes,
        )
        workers = WorkerPool(
            fixed(settings.worker_address),
            heartbeat_s=settings.heartbeat_interval_ms / 1000,
            timeout_s=settings.worker_timeout_ms / 1000,
            listener=metrics,
            options=options,
        )

        def report(lag_s: float) -> None:
            metrics.event_loop_lag(lag_s)
            metrics.threads(threads.waiting, threads.abandoned, threads.held_bytes)

        drain_s = settings.drain_timeout_ms / 1000
        async with workers, follow_names(workers, settings.worker_address, drain_s) as wait_for_workers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * settings.heartbeat_interval_ms / 1000):
                    await wait_for_workers()
            engine = Engine(workers, threads, settings, metrics, auth.charge)
            watching = asyncio.create_task(watch_event_loop(report), name="event-loop")
            try:
                with open_metrics(registry) as shared:
                    yield FrontEnd(workers, engine, auth, metrics, shared.of_all())
            finally:
                watching.cancel()
                engine.fetcher.close()
                threads.close()
