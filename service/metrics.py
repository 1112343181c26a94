"""Every metric, by the contract's names. Prometheus conventions: base units, `_total` counters.

Under `convmlp serve` all processes write to files in PROMETHEUS_MULTIPROC_DIR, under the name of their role, and
any of them can tell the sum. A restarted process goes on with its predecessor's files: counters never fall back.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess, values
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"

_QUEUE_DEPTH, _MODEL_READY = "convmlp_queue_depth", "convmlp_model_ready"
_GONE = math.inf
"""Readiness of a model that was unloaded: a shared file cannot forget it, so whoever reads the files leaves it out."""

_REQUEST_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STAGE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def join_metrics(role: str) -> None:
    """Write this process's metrics under `role`, where a shared folder is set; call before making any metric."""
    if MULTIPROC_DIR in os.environ:
        values.ValueClass = values.MultiProcessValue(lambda: role)


def forget_gauges(role: str, folder: Path) -> None:
    """Remove what a dead process last said of the present; its counters stay."""
    for path in folder.glob(f"gauge_live*_{role}.db"):
        path.unlink(missing_ok=True)


def shared_registry(own: CollectorRegistry) -> CollectorRegistry:
    """What a scrape of this process tells: all processes together where they share a folder, else its own."""
    if MULTIPROC_DIR not in os.environ:
        return own
    registry = CollectorRegistry()
    registry.register(_AllProcesses())
    return registry


class _AllProcesses(Collector):
    """The sum of all processes' files, without the gauges of models that no worker serves any more."""

    def collect(self) -> Iterator[Metric]:
        families = list(multiprocess.MultiProcessCollector(None).collect())
        gone = {
            sample.labels["model"]
            for family in families
            if family.name == _MODEL_READY
            for sample in family.samples
            if sample.value == _GONE
        }
        for family in families:
            if family.name in (_MODEL_READY, _QUEUE_DEPTH):
                family.samples = [sample for sample in family.samples if sample.labels["model"] not in gone]
            if family.samples:
                yield family


def exposition(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The text for Prometheus and its media type."""
    return generate_latest(registry), CONTENT_TYPE_LATEST


class FrontEndMetrics:
    """What a front-end process counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "convmlp_requests",
            "Requests answered",
            ["transport", "task", "model", "outcome"],
            registry=registry,
        )
        self._duration = Histogram(
            "convmlp_request_duration_seconds",
            "From the request's first byte to its answer",
            ["transport", "task"],
            registry=registry,
            buckets=_REQUEST_BUCKETS,
        )
        self._stage = _stage_histogram(registry)
        self._in_flight = Gauge(
            "convmlp_in_flight_requests",
            "Images in hand",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._rejected = Counter("convmlp_rejected", "Images refused", ["reason"], registry=registry)
        self._worker_up = Gauge(
            "convmlp_worker_up",
            "1 while the worker answers",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._worker_up.set(0)

    def request(self, transport: str, task: str, model: str, outcome: str, seconds: float) -> None:
        self._requests.labels(transport, task, model, outcome).inc()
        self._duration.labels(transport, task).observe(seconds)

    def stage(self, stage: str, task: str, seconds: float) -> None:
        self._stage.labels(stage, task).observe(seconds)

    def in_flight(self, change: int) -> None:
        self._in_flight.inc(change)

    def rejected(self, reason: str) -> None:
        self._rejected.labels(reason).inc()

    def worker_up(self, up: bool) -> None:
        self._worker_up.set(up)


class WorkerMetrics:
    """What a worker process counts. `tasks` says which task each model is for; see `serves` for more of them."""

    def __init__(self, registry: CollectorRegistry, tasks: Mapping[str, str]) -> None:
        self._tasks: dict[str, str] = {}
        self._stage = _stage_histogram(registry)
        self._batch_size = Histogram(
            "convmlp_batch_size",
            "Images in a batch that ran",
            ["model"],
            registry=registry,
            buckets=_BATCH_BUCKETS,
        )
        self._images = Counter("convmlp_images", "Images that went through the network", ["model"], registry=registry)
        self._depth = Gauge(
            _QUEUE_DEPTH,
            "Images that wait for the device",
            ["model"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._ready = Gauge(
            _MODEL_READY,
            "1 while the model gives its committed answer on the reference picture",
            ["model"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        for model, task in tasks.items():
            self.serves(model, task)

    def serves(self, model: str, task: str) -> None:
        """A model is served from now on; it is not ready yet."""
        self._tasks[model] = task
        self.queue_depth(model, 0)
        self.model_ready(model, ready=False)

    def serves_no_more(self, model: str) -> None:
        """What is told of the present ends for a model; what was counted stays."""
        if MULTIPROC_DIR in os.environ:
            self._depth.labels(model).set(0)
            self._ready.labels(model).set(_GONE)
        else:
            self._depth.remove(model)
            self._ready.remove(model)

    def batch(self, model: str, images: int, seconds: float) -> None:
        self._batch_size.labels(model).observe(images)
        self._images.labels(model).inc(images)
        self._stage.labels("infer", self._tasks[model]).observe(seconds)

    def waited(self, model: str, seconds: float) -> None:
        self._stage.labels("queue", self._tasks[model]).observe(seconds)

    def queue_depth(self, model: str, images: int) -> None:
        self._depth.labels(model).set(images)

    def model_ready(self, model: str, *, ready: bool) -> None:
        self._ready.labels(model).set(ready)


def restart_counter(registry: CollectorRegistry) -> Counter:
    """Counted by whoever restarts workers."""
    return Counter("convmlp_worker_restarts", "Workers started after one was lost", registry=registry)


def _stage_histogram(registry: CollectorRegistry) -> Histogram:
    return Histogram(
        "convmlp_stage_duration_seconds",
        "Time in one stage: decode, queue, infer or post",
        ["stage", "task"],
        registry=registry,
        buckets=_STAGE_BUCKETS,
    )
