"""A worker whose device takes a fixed time for each image. Ray imports it on the nodes."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from model.types import Task
from service.observability.metrics import WorkerMetrics
from service.observability.tracing import Tracing
from service.settings import Settings
from service.wire.worker_endpoint import WorkerEndpoint
from service.worker.state_folder import StateFolder
from service.worker.worker import Worker
from tests.fakes import FakeRunner, _keep_best_batch, fake_bundle, store_bundle


@dataclass
class TimedRunner(FakeRunner):
    """Names, in the place of its precision, what answered."""

    name: str = ""

    def precision(self, slot: str) -> str:
        return f"{super().precision(slot)} {self.name}"


async def serve_timed(
    endpoint: WorkerEndpoint,
    settings: Settings,
    stop: asyncio.Event,
    tracing: Tracing,
    on_made: Callable[[Worker], None],
    *,
    image_s: float,
) -> None:
    """Serve a fake classifier for each of `settings.models`. Answers have the precision `fp32 MODELS HOST`."""
    host = endpoint.address.removeprefix("tcp://").rpartition(":")[0]

    def take(_model: str, images: int, _lanes: int) -> None:
        time.sleep(images * image_s)

    runner = TimedRunner(takes=take, name=f"{'+'.join(settings.models)} {host}")
    with tempfile.TemporaryDirectory(prefix="convmlp-test-") as name:
        folder = Path(name)
        settings = settings.with_changes(models_dir=folder)
        bundles = [store_bundle(folder, fake_bundle(Task.CLASSIFY, model)) for model in settings.models]
        for bundle in bundles:
            _keep_best_batch(folder / "state", bundle, settings)
        metrics = WorkerMetrics(CollectorRegistry(), {bundle.config.name: "classify" for bundle in bundles})
        worker = Worker(bundles, lambda _: runner, settings, metrics, tracing, StateFolder(folder / "state"))
        on_made(worker)
        await worker.run(endpoint, stop)
