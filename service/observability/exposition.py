"""The exposition of metrics: what `metrics.py` counts, and what is read at each scrape (build, processes, GPUs).

A process that runs alone (`convmlp rest`, `grpc`, `worker`) exposes its metrics. Under `convmlp serve` all processes
share theirs in one folder, see `snapshots.py`. The HTTP port exposes all of them, a worker's port only its own.
"""

from __future__ import annotations

import gzip
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, disable_created_metrics, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from service.content_negotiation import preferred_coding, weighted_values
from service.observability.gpu import GpuFigures
from service.observability.logs import LogStream
from service.observability.metrics import GPU_INFO, METRICS_DIR
from service.observability.snapshots import Family, SnapshotFolder, SnapshotPublisher, families_of, merge

MAX_SCRAPES = 8
"""Connections to a metrics port that are served at a time."""
SCRAPE_S = 10.0

log = structlog.get_logger(__name__)

_role = ContextVar("role", default="convmlp")

Counted = tuple[list[Family], Mapping[str, str]]
"""Metrics, and the processes whose figures are read from /proc: their ids by role."""


def join_metrics(role: str) -> None:
    """Export this process as `role`. Call it before any metric exists."""
    _role.set(role)
    disable_created_metrics()
    # prometheus_client's own way to share metrics maps files into memory, and a full disk then kills the process.
    for variable in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        os.environ.pop(variable, None)
    values.ValueClass = values.MutexValue


class ProcessMetrics:
    """The metrics of this process in `registry`, and those of the processes that share them with it, if any do."""

    def __init__(self, registry: CollectorRegistry, publisher: SnapshotPublisher | None) -> None:
        self._registry = registry
        self._publisher = publisher
        self._role = _role.get()

    def of_one(self, gpus: GpuFigures | None = None) -> CollectorRegistry:
        """This process alone, with its predecessors' counters."""
        return _registry(self._own, gpus)

    def of_all(self) -> CollectorRegistry:
        """All processes that share their metrics with this one."""
        return _registry(self._all)

    def _own(self) -> Counted:
        # Its snapshot is never behind what was exposed: a successor would begin with less.
        families = self._publisher.publish() if self._publisher else families_of(self._registry)
        return families, {self._role: "self"}

    def _all(self) -> Counted:
        families, pids = self._own()
        if self._publisher is None:
            return families, pids
        others = self._publisher.others()
        pids = {**pids, **{role: str(one.pid) for role, one in others.items() if one.pid}}
        return merge((families, *(one.families for one in others.values()))), dict(sorted(pids.items()))


@contextmanager
def open_metrics(registry: CollectorRegistry) -> Iterator[ProcessMetrics]:
    """Expose the metrics in `registry`, and share them if there is a shared folder."""
    folder = SnapshotFolder(Path(os.environ[METRICS_DIR])) if METRICS_DIR in os.environ else None
    registry.register(_LossCollector(folder))
    if folder is None:
        yield ProcessMetrics(registry, None)
    else:
        with SnapshotPublisher(folder, _role.get(), registry) as publisher:
            yield ProcessMetrics(registry, publisher)


def exposition(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """The metrics and their media type: OpenMetrics, with exemplars, or Prometheus' text, as `accept` asks."""
    try:
        encode, media_type = choose_encoder(_by_weight(accept))
    except (TypeError, ValueError):  # a version that is no number
        encode, media_type = choose_encoder("")
    return encode(registry), media_type


def _by_weight(accept: str) -> str:
    """The media ranges up to the first that text answers, the best first: `choose_encoder` knows no weights."""
    ranges = [one for one in weighted_values(accept) if one.weight > 0]
    ranges.sort(key=lambda one: (-one.weight, one.value != "application/openmetrics-text"))
    chosen: list[str] = []
    for one in ranges:
        chosen.append(one.text)
        if one.value in ("text/plain", "text/*", "*/*"):
            break
    return ",".join(chosen)


@contextmanager
def metrics_server(registry: CollectorRegistry, host: str, port: int, timeout_s: float = SCRAPE_S) -> Iterator[int]:
    """Expose a process's metrics over HTTP on a port of its own; gives the port. 0 takes a free one.

    `timeout_s`: how long to wait for a connection to send its request, or to take the answer.

    Raises:
        OSError: the port cannot be used.
    """
    with _MetricsServer(registry, host, port, timeout_s) as server:
        threading.Thread(target=server.serve_forever, name="metrics-server", daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


class _MetricsServer(socketserver.ThreadingTCPServer):
    """A thread for each scrape. Beyond `MAX_SCRAPES` at a time, connections are closed."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    server_address: tuple[str, int]

    def __init__(self, registry: CollectorRegistry, host: str, port: int, timeout_s: float) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.registry = registry
        self.timeout_s = timeout_s
        self._free = threading.BoundedSemaphore(MAX_SCRAPES)
        super().__init__((host, port), _MetricsHandler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  (socketserver's)
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  (socketserver's)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002  (socketserver's)
        if not isinstance(sys.exception(), OSError):  # else the scraper has left
            log.exception("metrics cannot be exposed")


class _MetricsHandler(BaseHTTPRequestHandler):
    """GET and HEAD of any path."""

    server: _MetricsServer
    server_version = "convmlp"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.timeout_s)

    def do_GET(self) -> None:
        text, media_type = exposition(self.server.registry, self.headers.get("Accept", ""))
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", media_type)
        if preferred_coding(self.headers.get("Accept-Encoding"), ("gzip",)):
            text = gzip.compress(text)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_HEAD = do_GET  # noqa: N815  (the base class's name)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class's name)
        """Scrapes leave no line in the log."""


class _LossCollector(Collector):
    """Log lines and snapshots of metrics that were lost."""

    def __init__(self, folder: SnapshotFolder | None) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        lines = sys.stderr.dropped if isinstance(sys.stderr, LogStream) else 0
        yield CounterMetricFamily(
            "convmlp_log_lines_dropped", "Log lines that could not be written at once", value=lines
        )
        if self._folder is not None:
            yield CounterMetricFamily(
                "convmlp_metrics_snapshots_dropped",
                "Snapshots of a process's metrics that could not be written for the other processes",
                value=self._folder.dropped,
            )
            yield CounterMetricFamily(
                "convmlp_metrics_snapshots_unreadable",
                "Snapshots of another process's metrics that could not be read during a scrape",
                value=self._folder.unreadable,
            )


class _ServiceCollector(Collector):
    """`counted` returns what was counted at the moment of a scrape."""

    def __init__(self, counted: Callable[[], Counted], gpus: GpuFigures) -> None:
        self._counted = counted
        self._gpus = gpus

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("convmlp_build_info", "Always 1; the running version", labels=["version"])
        build.add_metric([version("convmlp-serving")], 1)
        yield build
        in_use = set()
        families, pids = self._counted()
        for family in families:
            if family.name == GPU_INFO:
                in_use = {labels["gpu"] for _, labels, *_ in family.samples}
            if family.samples:
                metric = Metric(family.name, family.documentation, family.kind)
                for name, labels, value, exemplar in family.samples:
                    metric.add_sample(name, labels, value, exemplar=Exemplar(*exemplar) if exemplar else None)
                yield metric
        yield from self._gpus.read(in_use)
        yield from _process_figures(pids)


def _registry(counted: Callable[[], Counted], gpus: GpuFigures | None = None) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_ServiceCollector(counted, gpus or GpuFigures()))
    return registry


def _process_figures(pids: Mapping[str, str]) -> Iterable[Metric]:
    """The standard process metrics (memory, CPU, descriptors) of each process, with its role as a label."""
    families: dict[str, Metric] = {}
    for role, pid in pids.items():
        for family in ProcessCollector(pid=partial(str, pid), registry=None).collect():
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                merged.add_sample(sample.name, {**sample.labels, "process": role}, sample.value)
    return families.values()
