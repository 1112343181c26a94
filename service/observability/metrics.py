"""Every metric that is counted, by the contract's names. Prometheus conventions: base units, `_total` counters.

What a scrape tells of them, and what it adds, is in `scrape.py`; what each means to its reader in docs/monitoring.md.
No label's value is a caller's own: models are those that are served, everything else is a closed set.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from model.errors import ConvMLPError
from service.errors import DeadlineExceeded, Overloaded, Refusal, Unavailable

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable: the folder where the processes of one service share their figures, as prometheus_client
has it."""

QUEUE_DEPTH, MODEL_READY, GPU_INFO = "convmlp_queue_depth", "convmlp_model_ready", "convmlp_gpu_info"
BEST_BATCH = "convmlp_best_batch_size"
GONE = math.inf
"""Readiness of a model that was unloaded: a shared file cannot forget it, so whoever reads the files leaves it out."""

_REQUEST_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STAGE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class FrontEndMetrics:
    """What a front-end process counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # To find a counter by its labels each time takes longer than to count; of labels there are few.
        self._of_requests: dict[tuple[str, str, str, str], tuple[Counter, Histogram]] = {}
        self._of_stages: dict[tuple[str, str], Histogram] = {}
        self._requests = Counter(
            "convmlp_requests",
            "Requests for predictions that ended, by how: ok, cancelled, or the code of an error",
            ["transport", "task", "model", "outcome"],
            registry=registry,
        )
        self._duration = Histogram(
            "convmlp_request_duration_seconds",
            "From a request's first byte to its end, whatever its outcome",
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
        self._in_flight_limit = Gauge(
            "convmlp_in_flight_limit",
            "Images that may be in hand; beyond it they are refused",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._rejected = Counter(
            "convmlp_rejected",
            "Predictions that were refused though nothing is wrong with their images",
            ["reason"],
            registry=registry,
        )
        for reason in Refusal:
            self._rejected.labels(reason)  # told from the start: a first refusal is a rise from 0
        self._worker_up = Gauge(
            "convmlp_worker_up",
            "1 while every worker answers",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._worker_up.set(0)
        self._workers_up = Gauge(
            "convmlp_workers_up",
            "Workers that answer",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._resent = Counter(
            "convmlp_resent",
            "Images sent to a second worker, by the error that they met at the first",
            ["reason"],
            registry=registry,
        )
        for error in (Overloaded, Unavailable):
            self._resent.labels(error.code)
        # Under a supervisor it is the one who counts, and all are summed.
        self._restarts = None if MULTIPROC_DIR in os.environ else restart_counter(registry)

    def request(self, transport: str, task: str, model: str, outcome: str, seconds: float) -> None:
        labels = transport, task, model, outcome
        known = self._of_requests.get(labels)
        if known is None:
            known = self._requests.labels(*labels), self._duration.labels(transport, task)
            self._of_requests[labels] = known
        count, duration = known
        count.inc()
        duration.observe(seconds)

    def stage(self, stage: str, task: str, seconds: float) -> None:
        known = self._of_stages.get((stage, task))
        if known is None:
            known = self._of_stages[stage, task] = self._stage.labels(stage, task)
        known.observe(seconds)

    def in_flight(self, change: int) -> None:
        self._in_flight.inc(change)

    def in_flight_limit(self, images: int) -> None:
        self._in_flight_limit.set(images)

    def rejected(self, reason: Refusal) -> None:
        self._rejected.labels(reason).inc()

    def told(self, error: ConvMLPError) -> None:
        """A request, or one of its images, was answered with this error. The gate counts its own refusals."""
        match error:
            case Overloaded():
                self.rejected(error.reason)
            case DeadlineExceeded():
                self.rejected(Refusal.DEADLINE)
            case Unavailable():
                self.rejected(Refusal.UNAVAILABLE)
            case _:
                """Its own fault, or ours."""

    def workers_up(self, up: int, of: int) -> None:
        self._worker_up.set(up == of)
        self._workers_up.set(up)

    def resent(self, reason: str) -> None:
        self._resent.labels(reason).inc()

    def worker_replaced(self) -> None:
        """Another worker answers than before."""
        if self._restarts is not None:
            self._restarts.inc()


@dataclass(frozen=True, slots=True)
class _OfModel:
    """A model's own counters: to find them by their labels each time takes longer than to count."""

    queue: Histogram
    infer: Histogram
    batch_size: Histogram
    images: Counter
    busy: Counter
    depth: Gauge


class WorkerMetrics:
    """What a worker process counts. `tasks` says which task each model is for; see `serves` for more of them."""

    def __init__(self, registry: CollectorRegistry, tasks: Mapping[str, str]) -> None:
        self._models: dict[str, _OfModel] = {}
        self._stage = _stage_histogram(registry)
        self._batch_size = Histogram(
            "convmlp_batch_size",
            "Images in a batch that ran",
            ["model"],
            registry=registry,
            buckets=_BATCH_BUCKETS,
        )
        self._images = Counter(
            "convmlp_images",
            "Images that went through the network, the worker's own checks among them",
            ["model"],
            registry=registry,
        )
        self._busy = Counter(
            "convmlp_device_busy_seconds",
            "Time in which the device ran batches of the model; one that has a part of it counts by that part",
            ["model"],
            registry=registry,
        )
        self._best_batch = Gauge(
            BEST_BATCH,
            "Images in a batch of the model when there are enough of them, as measured when it was loaded",
            ["model"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._depth = _sum(registry, QUEUE_DEPTH, "Images that wait for the device", ["model"])
        self._limit = _sum(registry, "convmlp_queue_limit", "Images that may wait; beyond it they are refused")
        self._pixels = _sum(registry, "convmlp_queue_pixels", "Pixels of network input that wait for the device")
        self._pixels_limit = _sum(
            registry, "convmlp_queue_pixels_limit", "Pixels of network input that may wait; beyond it they are refused"
        )
        self._ready = Gauge(
            MODEL_READY,
            "1 while the model gives its committed answer on the reference picture",
            ["model"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._gpu = Gauge(
            GPU_INFO,
            "A GPU that a worker computes on: its UUID, its name, and the worker's name for it",
            ["gpu", "name", "device"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        for model, task in tasks.items():
            self.serves(model, task)

    def serves(self, model: str, task: str) -> None:
        """A model is served from now on; it is not ready yet."""
        self._models[model] = _OfModel(
            queue=self._stage.labels("queue", task),
            infer=self._stage.labels("infer", task),
            batch_size=self._batch_size.labels(model),
            images=self._images.labels(model),
            busy=self._busy.labels(model),
            depth=self._depth.labels(model),
        )
        self.queue_depth(model, 0)
        self.model_ready(model, ready=False)

    def serves_no_more(self, model: str) -> None:
        """What is told of the present ends for a model; what was counted stays."""
        if MULTIPROC_DIR in os.environ:
            self._depth.labels(model).set(0)
            self._ready.labels(model).set(GONE)
        else:
            for gauge in (self._depth, self._ready, self._best_batch):
                gauge.remove(model)

    def uses_gpu(self, uuid: str, name: str, device: str) -> None:
        """`uuid` as NVML has it; `device` as torch does: `cuda:0` is the first that the process may see."""
        self._gpu.labels(uuid, name, device).set(1)

    def batch(self, model: str, images: int, seconds: float, part: float = 1.0) -> None:
        """Images ran for so long on a part of the device."""
        of = self._models[model]
        of.batch_size.observe(images)
        of.images.inc(images)
        of.busy.inc(seconds * part)
        for _ in range(images):  # each of them waited for all
            of.infer.observe(seconds)

    def waited(self, model: str, seconds: float) -> None:
        self._models[model].queue.observe(seconds)

    def queue_depth(self, model: str, images: int) -> None:
        self._models[model].depth.set(images)

    def best_batch(self, model: str, images: int) -> None:
        self._best_batch.labels(model).set(images)

    def queue_pixels(self, pixels: int) -> None:
        self._pixels.set(pixels)

    def queue_limits(self, images: int, pixels: int) -> None:
        self._limit.set(images)
        self._pixels_limit.set(pixels)

    def model_ready(self, model: str, *, ready: bool) -> None:
        self._ready.labels(model).set(ready)


def restart_counter(registry: CollectorRegistry) -> Counter:
    """Counted by whoever restarts workers, or else by each front-end that meets another worker than before."""
    return Counter("convmlp_worker_restarts", "Workers that took a lost one's place", registry=registry)


def _sum(registry: CollectorRegistry, name: str, words: str, labels: tuple[str, ...] | list[str] = ()) -> Gauge:
    """A gauge that is summed over processes."""
    return Gauge(name, words, labels, registry=registry, multiprocess_mode="livesum")


def _stage_histogram(registry: CollectorRegistry) -> Histogram:
    return Histogram(
        "convmlp_stage_duration_seconds",
        "Time of an image in one stage: decode, queue, infer or post",
        ["stage", "task"],
        registry=registry,
        buckets=_STAGE_BUCKETS,
    )
