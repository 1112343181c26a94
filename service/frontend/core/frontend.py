"""What every front-end process is made of: workers, workshop, engine, gate, metrics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from prometheus_client import CollectorRegistry

from model.preprocess import COMPILED
from service.frontend.core.auth import Auth, open_auth
from service.frontend.core.engine import Engine
from service.frontend.core.executor import PreparePool
from service.observability.exposition import registry_of_all
from service.observability.metrics import FrontEndMetrics
from service.settings import Settings, usable_cores
from service.wire.pool import WorkerPool

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FrontEnd:
    engine: Engine
    gate: Auth
    metrics: FrontEndMetrics
    registry: CollectorRegistry
    """What a scrape of this process tells."""


@asynccontextmanager
async def open_front_end(settings: Settings) -> AsyncIterator[FrontEnd]:
    """An engine that talks to the workers at `settings.worker_address`.

    Workers that are there are heard first, so that no early request is refused for want of them; one that is not
    may come later.

    Raises:
        KeysUnusable: the file of API keys cannot be used.
    """
    if not COMPILED:
        log.warning("pictures are resized by Pillow alone, which takes longer: model/resample.c was not compiled")
    registry = CollectorRegistry()
    metrics = FrontEndMetrics(registry)
    metrics.in_flight_limit(settings.max_in_flight)
    threads = settings.prepare_threads or usable_cores()
    workshop = PreparePool(threads, settings.decode_limits, fast=settings.fast_decode)
    workers = WorkerPool(
        settings.worker_address,
        heartbeat_s=settings.heartbeat_interval_ms / 1000,
        timeout_s=settings.worker_timeout_ms / 1000,
        listener=metrics,
    )
    async with open_auth(settings, metrics) as gate, workers:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * settings.heartbeat_interval_ms / 1000):
                await workers.introduced()
        try:
            yield FrontEnd(Engine(workers, workshop, settings, metrics), gate, metrics, registry_of_all(registry))
        finally:
            workshop.close()
