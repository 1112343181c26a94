"""All metrics that processes count, by the contract's names. Prometheus conventions: base units, `_total` counters.

`exposition.py` writes them out and adds what it reads at each scrape; docs/monitoring.md explains each to operators.
No label value comes from a caller: models are the served ones, and every other label is a closed set.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge

from model.errors import ConvMLPError
from service.errors import ConnectionEnd, DeadlineExceeded, Overloaded, Refusal, Unavailable
from service.observability.histograms import Histogram, Observations

METRICS_DIR = "CONVMLP_METRICS_DIR"
"""Environment variable: the folder in which the processes of one service share their metrics."""

QUEUE_DEPTH, MODEL_READY, GPU_INFO = "convmlp_queue_depth", "convmlp_model_ready", "convmlp_gpu_info"
BEST_BATCH = "convmlp_best_batch_size"
GAUGE_MERGE: Mapping[str, Callable[[float, float], float]] = {
    "convmlp_in_flight_requests": operator.add,
    "convmlp_in_flight_limit": operator.add,
    "convmlp_decode_queue_images": operator.add,
    "convmlp_abandoned_images": operator.add,
    "convmlp_decoded_bytes": operator.add,
    "convmlp_decoded_bytes_limit": operator.add,
    "convmlp_event_loop_lag_seconds": max,
    "convmlp_worker_event_loop_lag_seconds": max,
    "convmlp_connections": operator.add,
    "convmlp_connections_limit": operator.add,
    "convmlp_worker_up": min,
    "convmlp_workers_up": min,
    QUEUE_DEPTH: operator.add,
    "convmlp_queue_limit": operator.add,
    "convmlp_queue_pixels": operator.add,
    "convmlp_queue_pixels_limit": operator.add,
    MODEL_READY: min,
    BEST_BATCH: max,
    GPU_INFO: max,
}
"""What a gauge of several live processes is. Every gauge is listed."""

_REQUEST_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STAGE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


K = TypeVar("K")
V = TypeVar("V")


class Children(dict[K, V]):
    """A metric's children by their label values, of which there are few.

    To find a child here takes a dict lookup; to find it by the metric's `labels` takes longer than to count.
    """

    def __init__(self, make: Callable[[K], V]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, labels: K) -> V:
        child = self[labels] = self._make(labels)
        return child


class FrontEndMetrics:
    """The metrics of a front-end process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        requests = Counter(
            "convmlp_requests",
            "Prediction requests that ended, by outcome: ok, cancelled, or an error code",
            ["transport", "task", "model", "outcome"],
            registry=registry,
        )
        duration = Histogram(
            "convmlp_request_duration_seconds",
            "Time from a request's first byte to its end, for all outcomes",
            ["transport", "task"],
            registry=registry,
            buckets=_REQUEST_BUCKETS,
        )
        by_model = Histogram(
            "convmlp_model_request_duration_seconds",
            "Time from a request's first byte to its end, of requests that one model answered",
            ["model"],
            registry=registry,
            buckets=_REQUEST_BUCKETS,
        )

        def of_requests(
            transport: str, task: str, model: str, outcome: str
        ) -> tuple[Counter, tuple[Observations, ...]]:
            durations = [duration.labels(transport, task)]
            if model and outcome == "ok":  # refusals are fast, and would flatter a model
                durations.append(by_model.labels(model))
            return requests.labels(transport, task, model, outcome), tuple(durations)

        self.requests: Children[tuple[str, str, str, str], tuple[Counter, tuple[Observations, ...]]] = Children(
            lambda labels: of_requests(*labels)
        )
        """Counter and durations of requests by transport, task, model and outcome."""
        stage = _stage_histogram(registry)
        self.stages: Children[tuple[str, str], Observations] = Children(lambda labels: stage.labels(*labels))
        """By stage and task."""
        self.in_flight = Gauge("convmlp_in_flight_requests", "Images in progress", registry=registry)
        self._in_flight_limit = Gauge(
            "convmlp_in_flight_limit",
            "Limit of images in progress; further ones are rejected",
            registry=registry,
        )
        self._waiting = Gauge("convmlp_decode_queue_images", "Images that wait for a thread", registry=registry)
        self._abandoned = Gauge(
            "convmlp_abandoned_images",
            "Images that a thread works on although their request has ended",
            registry=registry,
        )
        self._decoded = Gauge(
            "convmlp_decoded_bytes",
            "Memory charged to decoded images, network inputs and label maps",
            registry=registry,
        )
        self._decoded_limit = Gauge(
            "convmlp_decoded_bytes_limit", "Limit of this memory; further images wait", registry=registry
        )
        self._lag = Gauge(
            "convmlp_event_loop_lag_seconds",
            "Longest time of the last half minute for which a process handled no request",
            registry=registry,
        )
        self._rejected = Counter(
            "convmlp_rejected",
            "Predictions rejected although their images are valid, by reason",
            ["reason"],
            registry=registry,
        )
        for reason in Refusal:
            self._rejected.labels(reason)  # exported from the start, so that the first rejection is a rise from 0
        self._connections = Gauge(
            "convmlp_connections",
            "HTTP connections that are open",
            registry=registry,
        )
        self._connections_limit = Gauge(
            "convmlp_connections_limit",
            "Limit of HTTP connections; beyond it only probes are answered",
            registry=registry,
        )
        self._connections_ended = Counter(
            "convmlp_connections_ended",
            "HTTP connections that the service ended by itself, by reason",
            ["reason"],
            registry=registry,
        )
        for end in ConnectionEnd:
            self._connections_ended.labels(end)
        self._worker_up = Gauge(
            "convmlp_worker_up",
            "1 while all workers answer, else 0",
            registry=registry,
        )
        self._worker_up.set(0)
        self._workers_up = Gauge(
            "convmlp_workers_up",
            "Workers that answer",
            registry=registry,
        )
        self._resent = Counter(
            "convmlp_resent",
            "Images sent to a second worker, by the error of the first",
            ["reason"],
            registry=registry,
        )
        for error in (Overloaded, Unavailable):
            self._resent.labels(error.code)
        self._rerouted = Counter(
            "convmlp_rerouted_requests",
            "Requests for a model's name whose version by the split was not ready, answered by another version",
            ["model"],
            registry=registry,
        )
        fetches = Counter(
            "convmlp_fetches",
            "Pictures named by URL, by outcome: ok, cancelled, or an error code",
            ["outcome"],
            registry=registry,
        )
        fetch_duration = Histogram(
            "convmlp_fetch_duration_seconds",
            "Time to fetch a picture by its URL, including the wait for other fetches, for all outcomes",
            [],
            registry=registry,
            buckets=_REQUEST_BUCKETS,
        )
        self._fetches: Children[str, Counter] = Children(fetches.labels)
        self._fetch_duration = fetch_duration.labels()
        self._histograms = (duration, by_model, stage, fetch_duration)
        # Under a supervisor, the supervisor counts restarts; samples of all processes are summed.
        self._restarts = None if METRICS_DIR in os.environ else restart_counter(registry)

    def limits(self, images: int, decoded_bytes: int) -> None:
        """Set the gauges of the limits."""
        self._in_flight_limit.set(images)
        self._decoded_limit.set(decoded_bytes)

    def threads(self, waiting: int, abandoned: int, decoded_bytes: int) -> None:
        """Set the gauges of the threads, of which there are several changes for each request."""
        self._waiting.set(waiting)
        self._abandoned.set(abandoned)
        self._decoded.set(decoded_bytes)

    def event_loop_lag(self, seconds: float) -> None:
        self._lag.set(seconds)
        for histogram in self._histograms:
            histogram.count()

    def rejected(self, reason: Refusal) -> None:
        self._rejected.labels(reason).inc()

    def connections(self, open_now: int) -> None:
        self._connections.set(open_now)

    def connections_limit(self, connections: int) -> None:
        self._connections_limit.set(connections)

    def connection_ended(self, reason: ConnectionEnd) -> None:
        self._connections_ended.labels(reason).inc()

    def count_error(self, error: ConvMLPError) -> None:
        """Count an error that answers a request or one of its images. `Auth` counts its own refusals."""
        match error:
            case Overloaded():
                self.rejected(error.reason)
            case DeadlineExceeded():
                self.rejected(Refusal.DEADLINE)
            case Unavailable():
                self.rejected(Refusal.UNAVAILABLE)
            case _:
                pass  # a fault of the request or of the service, no rejection

    def fetched(self, outcome: str, seconds: float) -> None:
        """Count a picture named by URL: `ok`, `cancelled`, or the code of the error in its place."""
        self._fetches[outcome].inc()
        self._fetch_duration.add((seconds, None))

    def workers_up(self, up: int, total: int) -> None:
        self._worker_up.set(up == total)
        self._workers_up.set(up)

    def resent(self, reason: str) -> None:
        self._resent.labels(reason).inc()

    def rerouted(self, model: str) -> None:
        """Count a request that another version of this model answers."""
        self._rerouted.labels(model).inc()

    def worker_replaced(self) -> None:
        """Count that another worker process took a worker's place."""
        if self._restarts is not None:
            self._restarts.inc()


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """A model's metrics: looking them up by label each time takes longer than counting.

    `queue` and `infer` are seconds of an image, `busy` those of the whole device.
    """

    queue: Observations
    infer: Observations
    batch_size: Observations
    images: Counter
    busy: Counter
    not_finite: Counter


class WorkerMetrics:
    """The metrics of a worker process. `tasks` has the task of each model that is served at the start."""

    def __init__(self, registry: CollectorRegistry, tasks: Mapping[str, str]) -> None:
        self.models: dict[str, ModelMetrics] = {}
        self._queue_depth: Callable[[str], int] = lambda _: 0
        self._stage = _stage_histogram(registry)
        self._batch_size = Histogram(
            "convmlp_batch_size",
            "Images per batch",
            ["model"],
            registry=registry,
            buckets=_BATCH_BUCKETS,
        )
        self._histograms = (self._stage, self._batch_size)
        self._images = Counter(
            "convmlp_images",
            "Images that the network processed, including the worker's own checks",
            ["model"],
            registry=registry,
        )
        self._busy = Counter(
            "convmlp_device_busy_seconds",
            "Time in which the device ran batches of the model; a batch on part of the device counts by that part",
            ["model"],
            registry=registry,
        )
        self._not_finite = Counter(
            "convmlp_non_finite_outputs",
            "Images for which the network's output had NaN or infinity, including the worker's own checks",
            ["model"],
            registry=registry,
        )
        self._best_batch = Gauge(
            BEST_BATCH,
            "Fastest batch size of the model, as measured when it was loaded",
            ["model"],
            registry=registry,
        )
        self._depth = Gauge(QUEUE_DEPTH, "Images that wait for the device", ["model"], registry=registry)
        self._limit = Gauge(
            "convmlp_queue_limit", "Limit of images that wait; further ones are rejected", registry=registry
        )
        self._pixels = Gauge(
            "convmlp_queue_pixels", "Pixels of network input that wait for the device", registry=registry
        )
        self._pixels_limit = Gauge(
            "convmlp_queue_pixels_limit",
            "Limit of pixels of network input that wait; further ones are rejected",
            registry=registry,
        )
        self._lag = Gauge(
            "convmlp_worker_event_loop_lag_seconds",
            "Longest time of the last half minute for which the worker handled no message",
            registry=registry,
        )
        self._ready = Gauge(
            MODEL_READY,
            "1 while the model gives its committed answer on the reference picture, else 0",
            ["model"],
            registry=registry,
        )
        self._gpu = Gauge(
            GPU_INFO,
            "Always 1; a GPU in use: its UUID, its name, and the worker's name for it",
            ["gpu", "name", "device"],
            registry=registry,
        )
        for model, task in tasks.items():
            self.add_model(model, task)

    def add_model(self, model: str, task: str) -> None:
        """Add a model. It is not ready yet."""
        self.models[model] = ModelMetrics(
            queue=self._stage.labels("queue", task),
            infer=self._stage.labels("infer", task),
            batch_size=self._batch_size.labels(model),
            images=self._images.labels(model),
            busy=self._busy.labels(model),
            not_finite=self._not_finite.labels(model),
        )
        self._depth.labels(model).set_function(lambda: self._queue_depth(model))
        self.model_ready(model, ready=False)

    def remove_model(self, model: str) -> None:
        """Remove a model's gauges. Its counters stay."""
        for gauge in (self._depth, self._ready, self._best_batch):
            gauge.remove(model)

    def uses_gpu(self, uuid: str, name: str, device: str) -> None:
        """`uuid` as NVML has it; `device` as torch does: `cuda:0` is the first that the process may see."""
        self._gpu.labels(uuid, name, device).set(1)

    def best_batch(self, model: str, images: int) -> None:
        self._best_batch.labels(model).set(images)

    def event_loop_lag(self, seconds: float) -> None:
        self._lag.set(seconds)
        for histogram in self._histograms:
            histogram.count()

    def queue_limits(self, images: int, pixels: int) -> None:
        self._limit.set(images)
        self._pixels_limit.set(pixels)

    def watch_queue(self, depth: Callable[[str], int], pixels: Callable[[], int]) -> None:
        """Read the gauges of the queue at each scrape: the waiting images of a model, the waiting pixels of all."""
        self._queue_depth = depth
        self._pixels.set_function(pixels)

    def model_ready(self, model: str, *, ready: bool) -> None:
        self._ready.labels(model).set(ready)


class SupervisorMetrics:
    """The metrics of a supervisor."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._worker_restarts = restart_counter(registry)
        self._restarts = Counter(
            "convmlp_process_restarts",
            "Processes that were restarted, by reason: exited, or unresponsive and therefore killed",
            ["process", "reason"],
            registry=registry,
        )

    def restarts(self, process: str, reason: str) -> Counter:
        return self._restarts.labels(process, reason)

    def restarted(self, process: str, reason: str, *, worker: bool) -> None:
        self.restarts(process, reason).inc()
        if worker:
            self._worker_restarts.inc()


def restart_counter(registry: CollectorRegistry) -> Counter:
    """Counted by the supervisor, or without one by each front-end that finds another worker process than before."""
    return Counter("convmlp_worker_restarts", "Worker processes that replaced a lost one", registry=registry)


def _stage_histogram(registry: CollectorRegistry) -> Histogram:
    return Histogram(
        "convmlp_stage_duration_seconds",
        "Time of an image in a stage: decode, queue, infer or post",
        ["stage", "task"],
        registry=registry,
        buckets=_STAGE_BUCKETS,
    )
