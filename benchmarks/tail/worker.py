"""The worker of the measured service: it records each batch that runs on the device."""

from __future__ import annotations

import asyncio
import resource
import time

from prometheus_client import CollectorRegistry

from benchmarks.tail.records import Batch as Recorded
from benchmarks.tail.records import Records
from model.bundle import find_bundle, read_bundle
from model.types import Batch
from service.observability.metrics import WorkerMetrics
from service.observability.tracing import NO_TRACING
from service.settings import Settings
from service.wire.worker_endpoint import WorkerEndpoint
from service.worker.runner import Outputs
from service.worker.state_folder import StateFolder
from service.worker.torch_runner import TorchRunner
from service.worker.worker import Worker


class RecordingRunner(TorchRunner):
    def __init__(self, settings: Settings, state: StateFolder, records: Records) -> None:
        super().__init__((), settings, state)
        self._records = records

    def run(self, slot: str, batch: Batch, lanes: int) -> Outputs:
        before, cpu_s, started_s = resource.getrusage(resource.RUSAGE_THREAD), time.thread_time(), time.monotonic()
        outputs = super().run(slot, batch, lanes)
        ended_s = time.monotonic()
        after = resource.getrusage(resource.RUSAGE_THREAD)
        self._records.batches.append(
            Recorded(
                slot,
                len(batch),
                lanes,
                started_s,
                ended_s,
                time.thread_time() - cpu_s,
                after.ru_minflt - before.ru_minflt,
                after.ru_nivcsw - before.ru_nivcsw,
            )
        )
        return outputs


async def serve(settings: Settings, records: Records, stop: asyncio.Event) -> None:
    bundles = [read_bundle(find_bundle(name, settings.models_dir)) for name in settings.models]
    metrics = WorkerMetrics(CollectorRegistry(), {one.config.name: one.config.task.value for one in bundles})
    state = StateFolder(settings.state_folder)
    async with WorkerEndpoint(settings.worker_address[0]) as endpoint:
        worker = Worker(
            bundles,
            lambda settings: RecordingRunner(settings, state, records),
            settings,
            metrics,
            NO_TRACING,
            state,
        )
        await worker.run(endpoint, stop)
