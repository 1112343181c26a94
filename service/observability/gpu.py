"""A GPU's own figures, through NVML, read while a scrape waits.

What cannot be read is left out, never told as 0, and said once in the log. A driver that hangs costs a scrape half
a second, and no further one anything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Set
from typing import Any

import structlog
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

MAX_AGE_S = 1.0
"""Scrapes that follow each other faster are told the same."""
PATIENCE_S = 0.5
"""For NVML's answers, which normally take milliseconds."""

UTILIZATION, USED, TOTAL = (
    "convmlp_gpu_utilization_ratio",
    "convmlp_gpu_memory_used_bytes",
    "convmlp_gpu_memory_total_bytes",
)
WORDS = {
    UTILIZATION: "Share of the last moment in which the GPU ran anything, whoever's",
    USED: "Memory of the GPU that is taken, by whomever",
    TOTAL: "Memory of the GPU",
}

log = structlog.get_logger(__name__)


def load_nvml() -> Any:  # noqa: ANN401  (a module without types)
    """NVIDIA's own binding. Raises ImportError where it is not installed."""
    import pynvml  # installed only where a worker is

    return pynvml


class GpuFigures:
    """`load` gives the binding, `clock` seconds that never go back."""

    def __init__(self, load: Callable[[], Any] = load_nvml, clock: Callable[[], float] = time.monotonic) -> None:
        self._load = load
        self._clock = clock
        self._nvml: Any = None
        self._lock = threading.Lock()
        self._reading: threading.Thread | None = None
        self._figures: dict[tuple[str, str], float] = {}
        self._of: Set[str] = frozenset()
        self._read_s = -MAX_AGE_S
        self._said: set[str] = set()

    def read(self, gpus: Set[str]) -> Iterator[Metric]:
        """The figures of these GPUs, by NVML's UUIDs, as far as they can be had now."""
        figures = self._fresh(gpus) if gpus else {}
        for name, words in WORDS.items():
            family = GaugeMetricFamily(name, words, labels=["gpu"])
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
            if gpus != self._of or now_s - self._read_s >= MAX_AGE_S:
                self._figures, self._of, self._read_s = {}, gpus, now_s
                # In a thread of its own: a driver in trouble may never answer.
                self._reading = threading.Thread(target=self._read, args=(gpus,), name="nvml", daemon=True)
                self._reading.start()
                self._reading.join(PATIENCE_S)
                if self._reading.is_alive():
                    self._say("the GPU's figures are left out: NVML does not answer")
                    return {}
            return self._figures

    def _read(self, gpus: Set[str]) -> None:
        figures: dict[tuple[str, str], float] = {}
        if self._begun():
            for gpu in gpus:
                figures.update(self._figures_of(gpu))
        self._figures = figures

    def _begun(self) -> bool:
        if self._nvml is None:
            try:
                nvml = self._load()
            except ImportError as error:
                self._say("the GPU's figures are left out: NVML's binding is not installed", error=str(error))
                return False
            try:
                nvml.nvmlInit()
            except nvml.NVMLError as error:  # tried again at the next scrape
                self._say("the GPU's figures are left out: NVML cannot be used", error=str(error))
                return False
            self._nvml = nvml
        return True

    def _figures_of(self, gpu: str) -> Iterator[tuple[tuple[str, str], float]]:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(gpu)
        except nvml.NVMLError as error:
            self._say("the GPU's figures are left out: NVML does not know it", gpu=gpu, error=str(error))
            return
        try:
            yield (UTILIZATION, gpu), nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        except nvml.NVMLError as error:
            self._say("the GPU's utilization is left out", gpu=gpu, error=str(error))
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            self._say("the GPU's memory is left out", gpu=gpu, error=str(error))
            return
        yield (USED, gpu), memory.used
        yield (TOTAL, gpu), memory.total

    def _say(self, words: str, **about: str) -> None:
        """Once: a scrape comes every few seconds."""
        what = words + about.get("gpu", "")
        if what not in self._said:
            self._said.add(what)
            log.warning(words, **about)
