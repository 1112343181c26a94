"""GPU figures, with a fake NVML, and with the real binding on a machine that may have no GPU."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from service.observability.exposition import exposition, open_metrics
from service.observability.gpu import MAX_AGE_S, GpuFigures, load_nvml
from service.observability.metrics import WorkerMetrics

ONE, OTHER = "GPU-11111111-1111-1111-1111-111111111111", "GPU-22222222-2222-2222-2222-222222222222"
GIB = 2**30


class NVMLError(Exception):
    """As the binding names its errors."""


@dataclass
class FakeNvml:
    """The binding's functions that are used. `utilization` in percent, `memory` (used, total) in bytes, by UUID; a
    function whose name is in `broken` fails, and while `answering` is closed none of them returns."""

    utilization: dict[str, int] = field(default_factory=lambda: {ONE: 73, OTHER: 12})
    memory: dict[str, tuple[int, int]] = field(default_factory=lambda: {ONE: (3 * GIB, 80 * GIB), OTHER: (0, 80 * GIB)})
    broken: set[str] = field(default_factory=set)
    answering: threading.Event = field(default_factory=threading.Event)
    calls: list[str] = field(default_factory=list)
    NVMLError: type[Exception] = NVMLError

    def __post_init__(self) -> None:
        self.answering.set()

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.answering.wait(timeout=60)
        if name in self.broken:
            raise NVMLError(f"{name} is broken")

    def nvmlInit(self) -> None:  # noqa: N802  (NVML's name)
        self._called("init")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self._called("handle")
        if uuid not in self.memory:
            raise NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: ANN401, N802
        self._called("utilization")
        return SimpleNamespace(gpu=self.utilization[handle], memory=99)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: ANN401, N802
        self._called("memory")
        used, total = self.memory[handle]
        return SimpleNamespace(used=used, total=total, free=total - used)


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def nvml() -> FakeNvml:
    return FakeNvml()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def figures(nvml: FakeNvml, clock: Clock) -> GpuFigures:
    return GpuFigures(lambda: nvml, clock)


def samples(figures: GpuFigures, *gpus: str) -> dict[tuple[str, str], float]:
    """Each sample's value, by its metric's name without the prefix, and its GPU."""
    families = figures.read(set(gpus))
    return {
        (sample.name.removeprefix("convmlp_gpu_"), sample.labels["gpu"]): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_gpus_in_use_have_samples(figures: GpuFigures) -> None:
    """Samples are in the contract's units, by UUID; another GPU of the machine has none."""
    assert samples(figures, ONE) == {
        ("utilization_ratio", ONE): 0.73,
        ("memory_used_bytes", ONE): 3 * GIB,
        ("memory_total_bytes", ONE): 80 * GIB,
    }
    assert samples(figures, ONE, OTHER)["memory_used_bytes", OTHER] == 0
    assert samples(figures, OTHER).keys() == {(name, OTHER) for name, _ in samples(figures, OTHER)}


def test_a_scrape_has_the_workers_gpu(figures: GpuFigures, nvml: FakeNvml, clock: Clock) -> None:
    """A scrape has the GPU's figures once the worker has named its GPU, read anew each time."""
    own = CollectorRegistry()
    metrics = WorkerMetrics(own, {})
    with open_metrics(own) as shared:
        registry = shared.of_one(figures)
        assert b"gpu" not in exposition(registry)[0]
        metrics.uses_gpu(OTHER, "NVIDIA H200", "cuda:0")
        for used in (1 * GIB, 2 * GIB):
            nvml.memory[OTHER] = (used, 80 * GIB)
            clock.now_s += 10
            assert registry.get_sample_value("convmlp_gpu_memory_used_bytes", {"gpu": OTHER}) == used
            assert registry.get_sample_value("convmlp_gpu_memory_used_bytes", {"gpu": ONE}) is None


def test_without_a_gpu_nvml_is_not_even_loaded() -> None:
    """A process without a GPU has no GPU samples and does not load the binding."""

    def load() -> Any:  # noqa: ANN401
        raise AssertionError("loaded")

    assert samples(GpuFigures(load)) == {}


def test_where_it_is_not_installed_all_is_left_out() -> None:
    """Without the binding there are no samples, and one log line for all scrapes."""

    def load() -> Any:  # noqa: ANN401
        raise ImportError("No module named 'pynvml'")

    with capture_logs() as logs:
        clock = Clock()
        figures = GpuFigures(load, clock)
        for _ in range(3):
            assert samples(figures, ONE) == {}
            clock.now_s += 10
    assert len(logs) == 1
    assert "pynvml" in logs[0]["error"]


def test_the_real_binding_knows_no_such_gpu() -> None:
    """With the real library, whether or not this machine has a driver, an unknown GPU has no samples."""
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    with capture_logs() as logs:
        assert samples(GpuFigures(load_nvml), ONE) == {}
    assert len(logs) == 1


def test_a_driver_that_comes_later_is_found(figures: GpuFigures, nvml: FakeNvml, clock: Clock) -> None:
    """A failed NVML start is retried at each scrape and logged once; after a successful one there is no other."""
    nvml.broken = {"init"}
    with capture_logs() as logs:
        for _ in range(3):
            assert samples(figures, ONE) == {}
            clock.now_s += 10
    assert len(logs) == 1
    nvml.broken = set()
    for _ in range(3):
        assert len(samples(figures, ONE)) == 3
        clock.now_s += 10
    assert nvml.calls.count("init") == 4


@pytest.mark.parametrize(
    ("broken", "left"),
    [
        ("utilization", {"memory_used_bytes", "memory_total_bytes"}),
        ("memory", {"utilization_ratio"}),
        ("handle", set()),
    ],
)
def test_what_cannot_be_read_is_left_out(
    figures: GpuFigures, nvml: FakeNvml, clock: Clock, broken: str, left: set[str]
) -> None:
    """A figure that cannot be read has no sample, neither 0 nor the last one, and one log line; it returns later."""
    assert len(samples(figures, ONE)) == 3
    nvml.broken = {broken}
    with capture_logs() as logs:
        for _ in range(3):
            clock.now_s += 10
            assert {name for name, _ in samples(figures, ONE)} == left
    assert [log["error"] for log in logs] == [f"{broken} is broken"]
    assert logs[0]["gpu"] == ONE
    nvml.broken = set()
    clock.now_s += 10
    assert len(samples(figures, ONE)) == 3


def test_scrapes_in_quick_succession_read_once(figures: GpuFigures, nvml: FakeNvml, clock: Clock) -> None:
    """Scrapes in quick succession share one reading of the driver a second."""
    for _ in range(50):
        samples(figures, ONE)
    assert nvml.calls.count("memory") == 1
    nvml.utilization[ONE] = 20
    clock.now_s += MAX_AGE_S
    assert samples(figures, ONE)["utilization_ratio", ONE] == 0.2
    assert nvml.calls.count("memory") == 2


def test_a_driver_that_hangs_holds_up_one_scrape(figures: GpuFigures, nvml: FakeNvml, clock: Clock) -> None:
    """While the driver hangs, later scrapes return no samples at once and start no threads; its answer ends that."""
    nvml.answering.clear()
    with capture_logs() as logs:
        assert samples(figures, ONE) == {}
        for _ in range(5):
            clock.now_s += 10
            assert samples(figures, ONE) == {}
    assert nvml.calls == ["init"]
    assert len(logs) == 1
    nvml.answering.set()
    for thread in threading.enumerate():
        if thread.name == "nvml":
            thread.join(timeout=30)
    clock.now_s += 10
    assert len(samples(figures, ONE)) == 3
