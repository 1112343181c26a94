"""GPU metrics, read through NVML during a scrape.

A value that cannot be read is left out, never exported as 0, and logged once. A driver that hangs delays one scrape by
half a second and later ones not at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Set
from typing import Any

import structlog
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

MAX_AGE_S = 1.0
"""Scrapes within this time get the same values."""
NVML_TIMEOUT_S = 0.5
"""For NVML's answers, which normally take milliseconds."""

UTILIZATION, USED, TOTAL = (
    "convmlp_gpu_utilization_ratio",
    "convmlp_gpu_memory_used_bytes",
    "convmlp_gpu_memory_total_bytes",
)
HELP = {
    UTILIZATION: "Share of the last sample period in which the GPU ran any kernel, of any process",
    USED: "GPU memory in use, by all processes",
    TOTAL: "GPU memory in all",
}

log = structlog.get_logger(__name__)


def load_nvml() -> Any:  # noqa: ANN401  (a module without types)
    """NVIDIA's binding of NVML. Raises ImportError if it is not installed."""
    import pynvml  # installed only with the worker

    return pynvml


class GpuFigures:
    """Reads GPU metrics. `load` returns the binding; `clock` is monotonic, in seconds."""

    def __init__(self, load: Callable[[], Any] = load_nvml, clock: Callable[[], float] = time.monotonic) -> None:
        self._load = load
        self._clock = clock
        self._nvml: Any = None
        self._lock = threading.Lock()
        self._reading: threading.Thread | None = None
        self._figures: dict[tuple[str, str], float] = {}
        self._gpus: Set[str] = frozenset()
        self._read_s = -MAX_AGE_S
        self._logged: set[str] = set()

    def read(self, gpus: Set[str]) -> Iterator[Metric]:
        """The metrics of these GPUs, by NVML UUID, as far as they can be read now."""
        figures = self._fresh(gpus) if gpus else {}
        for name, help_text in HELP.items():
            family = GaugeMetricFamily(name, help_text, labels=["gpu"])
            for gpu in sorted(gpus):
                if (name, gpu) in figures:
                    family.add_metric([gpu], figures[name, gpu])
            if family.samples:
                yield family

    def _fresh(self, gpus: Set[str]) -> dict[tuple[str, str], float]:
        with self._lock:
            if self._reading is not None and self._reading.is_alive():
                return {}
            now_s = self._clock()
            if gpus != self._gpus or now_s - self._read_s >= MAX_AGE_S:
                self._figures, self._gpus, self._read_s = {}, gpus, now_s
                # In a thread of its own, because a faulty driver may never answer.
                self._reading = threading.Thread(target=self._read, args=(gpus,), name="nvml", daemon=True)
                self._reading.start()
                self._reading.join(NVML_TIMEOUT_S)
                if self._reading.is_alive():
                    self._log_once("GPU metrics are left out: NVML does not answer")
                    return {}
            return self._figures

    def _read(self, gpus: Set[str]) -> None:
        figures: dict[tuple[str, str], float] = {}
        if self._initialised():
            for gpu in gpus:
                figures.update(self._figures_of(gpu))
        self._figures = figures

    def _initialised(self) -> bool:
        if self._nvml is None:
            try:
                nvml = self._load()
            except ImportError as error:
                self._log_once("GPU metrics are left out: NVML's Python binding is not installed", error=str(error))
                return False
            try:
                nvml.nvmlInit()
            except nvml.NVMLError as error:  # retried at the next scrape
                self._log_once("GPU metrics are left out: NVML cannot be initialised", error=str(error))
                return False
            self._nvml = nvml
        return True

    def _figures_of(self, gpu: str) -> Iterator[tuple[tuple[str, str], float]]:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(gpu)
        except nvml.NVMLError as error:
            self._log_once("GPU metrics are left out: NVML does not find the GPU", gpu=gpu, error=str(error))
            return
        try:
            yield (UTILIZATION, gpu), nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        except nvml.NVMLError as error:
            self._log_once("GPU utilisation is left out", gpu=gpu, error=str(error))
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            self._log_once("GPU memory is left out", gpu=gpu, error=str(error))
            return
        yield (USED, gpu), memory.used
        yield (TOTAL, gpu), memory.total

    def _log_once(self, event: str, **fields: str) -> None:
        """Log only the first time: scrapes repeat every few seconds."""
        key = event + fields.get("gpu", "")
        if key not in self._logged:
            self._logged.add(key)
            log.warning(event, **fields)
