"""The exposition of metrics: what `metrics.py` counts, and what is read at each scrape (build, processes, GPUs).

A process that runs alone (`convmlp rest`, `grpc`, `worker`) exposes its metrics. Under `convmlp serve` all processes
write to files in one folder, named by role. The HTTP port exposes all of them, a worker's port only its own. A
restarted process continues its predecessor's files, so counters never decrease.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest, multiprocess, values
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from service.observability.gpu import GpuFigures
from service.observability.metrics import BEST_BATCH, GPU_INFO, MODEL_READY, MULTIPROC_DIR, QUEUE_DEPTH, UNLOADED

_role = ContextVar("role", default="convmlp")


def join_metrics(role: str) -> None:
    """Export this process as `role`, into the shared folder if there is one. Call it before any metric exists."""
    _role.set(role)
    disable_created_metrics()
    if MULTIPROC_DIR in os.environ:
        _pid_file(_shared_folder(), role).write_text(str(os.getpid()), encoding="ascii")
        values.ValueClass = values.MultiProcessValue(lambda: role)


def forget_process(role: str, folder: Path) -> None:
    """Remove a dead process's gauges. Its counters stay."""
    for path in (*folder.glob(f"gauge_live*_{role}.db"), _pid_file(folder, role)):
        path.unlink(missing_ok=True)


def registry_of_all(registry: CollectorRegistry) -> CollectorRegistry:
    """All processes that share a folder with this one; without a folder, this one."""
    if MULTIPROC_DIR not in os.environ:
        return registry_of_one(registry)
    folder = _shared_folder()
    return _registry(lambda: _counted_in(folder, "*"), lambda: _pids_in(folder))


def registry_of_one(registry: CollectorRegistry, gpus: GpuFigures | None = None) -> CollectorRegistry:
    """This process alone; `registry` has its metrics. With a shared folder, its predecessors' counters are included."""
    role = _role.get()
    if MULTIPROC_DIR not in os.environ:
        return _registry(registry.collect, lambda: {role: "self"}, gpus)
    folder = _shared_folder()
    return _registry(lambda: _counted_in(folder, role), lambda: {role: "self"}, gpus)


def exposition(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The text for Prometheus and its media type."""
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _ServiceCollector(Collector):
    """`counted` returns the counted metrics; `pids` the processes whose figures are read from /proc, by role."""

    def __init__(
        self, counted: Callable[[], Iterable[Metric]], pids: Callable[[], Mapping[str, str]], gpus: GpuFigures
    ) -> None:
        self._counted = counted
        self._pids = pids
        self._gpus = gpus

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("convmlp_build_info", "Always 1; the running version", labels=["version"])
        build.add_metric([version("convmlp-serving")], 1)
        yield build
        in_use = set()
        for family in self._counted():
            if family.name == GPU_INFO:
                in_use = {sample.labels["gpu"] for sample in family.samples}
            if family.samples:
                yield family
        yield from self._gpus.read(in_use)
        yield from _process_figures(self._pids())


def _registry(
    counted: Callable[[], Iterable[Metric]], pids: Callable[[], Mapping[str, str]], gpus: GpuFigures | None = None
) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_ServiceCollector(counted, pids, gpus or GpuFigures()))
    return registry


def _counted_in(folder: Path, role: str) -> list[Metric]:
    """The sum over the files of a role, which may be `*`, without the gauges of unloaded models."""
    # A starting process creates its files empty and grows them at once.
    files = [str(path) for path in folder.glob(f"*_{role}.db") if _size(path)]
    families = list(multiprocess.MultiProcessCollector.merge(files))
    of_models = [family for family in families if family.name in (MODEL_READY, QUEUE_DEPTH, BEST_BATCH)]
    unloaded = {sample.labels["model"] for family in of_models for sample in family.samples if sample.value == UNLOADED}
    for family in of_models:
        family.samples = [sample for sample in family.samples if sample.labels["model"] not in unloaded]
    return families


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a process that was just forgotten
        return 0


def _shared_folder() -> Path:
    return Path(os.environ[MULTIPROC_DIR])


def _pid_file(folder: Path, role: str) -> Path:
    return folder / f"{role}.pid"


def _pids_in(folder: Path) -> dict[str, str]:
    pids = {}
    for path in sorted(folder.glob("*.pid")):
        if _size(path):
            with contextlib.suppress(FileNotFoundError):
                pids[path.stem] = path.read_text(encoding="ascii")
    return pids


def _process_figures(pids: Mapping[str, str]) -> Iterable[Metric]:
    """The standard process metrics (memory, CPU, descriptors) of each process, with its role as a label."""
    families: dict[str, Metric] = {}
    for role, pid in pids.items():
        for family in ProcessCollector(pid=partial(str, pid), registry=None).collect():
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                merged.add_sample(sample.name, {**sample.labels, "process": role}, sample.value)
    return families.values()
