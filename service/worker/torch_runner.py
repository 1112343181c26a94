"""The real runner: each model's `Predictor`, on one device."""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import msgspec
import structlog
import torch
from torch import nn

from model.bundle import Bundle
from model.precision import MAX_SPREAD, Precision, Selection, candidates_of, make_predictor, select_precision
from model.predictor import Predictor, default_device, load_deployed, load_network
from model.types import AS_TRAINED, Batch, Deployment
from service.settings import Settings, usable_cores
from service.worker.runner import DeviceMissing, OutOfDeviceMemory, Outputs, finite_outputs
from service.worker.state_folder import NOTHING_KEPT, StateFolder

CUDA_LANES = 2
"""One batch is copied and answered while the other is computed."""
MAX_LOAD = 1.0
"""Runnable threads for each core of the machine, over the last minute, beside which times are trustworthy."""
_NO_MEMORY = re.compile(
    "can't allocate memory"  # torch on the CPU
    # oneDNN: it cannot allocate its workspace. (An operation that it does not implement has no "primitive descriptor".)
    "|could not create a primitive(?! descriptor)|could not create a memory object"
    "|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED"
)
"""These errors are plain RuntimeErrors, which only their messages distinguish."""
_WITHOUT_PRIMITIVES = re.compile("could not create a primitive")
"""A thread in which oneDNN found no memory for a primitive's code never makes a new one again: the error of its code
generator stays with the thread. Another thread runs what that thread is given from then on."""
_THREAD_ROOM_BYTES = 256 << 20

log = structlog.get_logger(__name__)


class MeasuredPrecision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A precision that was selected, and how busy the machine was meanwhile: the spread of the times, and the runnable
    threads for each core of the machine (0 where a GPU computes)."""

    precision: Precision
    spread: float
    load: float

    @property
    def is_trustworthy(self) -> bool:
        return self.doubt <= (False, MAX_SPREAD)

    @property
    def doubt(self) -> tuple[bool, float]:
        """The smaller of two is of the better measurement."""
        return (self.load > MAX_LOAD, self.spread)


@dataclass(frozen=True, slots=True)
class _Slot:
    """`measured` is None where the precision is configured."""

    predictor: Predictor
    precision: Precision
    deployment: Deployment
    measured: MeasuredPrecision | None = None


class Interrupted(Exception):
    """There is something more important to do than to measure."""


def machine_load() -> float:
    """Runnable threads for each core of the machine, over the last minute."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


class TorchRunner:
    """Loads the given bundles on construction, each into the slot of its name.

    A lane is a core of the CPU or a stream of the GPU. `state` keeps which precision was selected for a model;
    `machine_load` are the runnable threads for each core of the machine meanwhile.

    Raises:
        BundleInvalid: weights do not fit their architecture.
        OutOfDeviceMemory: there is no memory for them.
        DeviceMissing: this machine does not have the device of the settings.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        settings: Settings,
        state: StateFolder = NOTHING_KEPT,
        machine_load: Callable[[], float] = machine_load,
    ) -> None:
        torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
        self._device = default_device() if settings.device == "auto" else torch.device(settings.device)
        if self._device.type == "cuda" and (self._device.index or 0) >= torch.cuda.device_count():
            raise DeviceMissing(
                f"there is no {settings.device!r} here: {torch.cuda.device_count()} CUDA devices are visible; "
                f"use --device cpu or auto"
            )
        self.device = str(self._device)
        self._cores = settings.compute_threads or usable_cores()
        self.lanes, self.max_lanes_per_batch = (
            (self._cores, self._cores) if self._device.type == "cpu" else (CUDA_LANES, 1)
        )
        self.can_overlap = self._device.type == "cpu"
        self._precision_of = settings.precision_of
        self._state = state
        self._machine_load = machine_load
        self.measuring_s = 0.0
        self.identity = (*_processor(self._device), f"{self._cores} threads", _libraries())
        self._streams = threading.local()
        self._substitutes = threading.local()
        self._ping_tensor = torch.zeros(1, device=self._device)
        self._slots: dict[str, _Slot] = {}
        for bundle in bundles:
            self.load(bundle.config.name, bundle)()

    def gpu(self) -> tuple[str, str] | None:
        """The GPU's UUID, as NVML has it, and its name; None on a CPU."""
        if self._device.type != "cuda":
            return None
        found = torch.cuda.get_device_properties(self._device)
        return f"GPU-{found.uuid}", found.name

    def precision(self, slot: str) -> str:
        served = self._slots.get(slot)
        return served.precision.value if served else ""

    def deployment(self, slot: str) -> Deployment:
        served = self._slots.get(slot)
        return served.deployment if served else AS_TRAINED

    def load(self, slot: str, bundle: Bundle) -> Callable[[], None]:
        # In a thread that ends: OpenMP keeps a team of threads for each thread that ever computed on several cores, and
        # once these are more than the cores, all of them sleep after each layer.
        with ThreadPoolExecutor(1, thread_name_prefix="load") as thread:
            served = thread.submit(self._read, bundle).result()

        def put() -> None:
            self._slots[slot] = served

        return put

    def measure_again(self, slot: str, bundle: Bundle, may_go_on: Callable[[], bool]) -> bool | None:
        served = self._slots.get(slot)
        if served is None or served.measured is None or served.measured.is_trustworthy:
            return True
        if self._load() > MAX_LOAD:
            return None

        def before_each() -> None:
            if not may_go_on():
                raise Interrupted

        try:
            with self._memory_errors(), self._lane(self._cores):
                _, measured = self._measure(bundle, load_network(bundle), before_each)
        except Interrupted:
            return None
        if slot in self._slots and measured.doubt < served.measured.doubt:
            self._slots[slot] = replace(served, measured=measured)
            self._state.write("precision", self._key(bundle), measured)
        return measured.is_trustworthy

    def remove(self, slot: str) -> None:
        self._slots.pop(slot, None)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def run(self, slot: str, batch: Batch, lanes: int) -> Outputs:
        substitute: ThreadPoolExecutor | None = getattr(self._substitutes, "thread", None)
        try:
            if substitute is None:
                return self._run(slot, batch, lanes)
            _require_room()
            return substitute.submit(self._run, slot, batch, lanes).result()
        except OutOfDeviceMemory as error:
            if _WITHOUT_PRIMITIVES.search(str(error)):
                if substitute is not None:
                    substitute.shutdown(wait=False)
                self._substitutes.thread = ThreadPoolExecutor(1, thread_name_prefix="substitute")
            raise

    def _run(self, slot: str, batch: Batch, lanes: int) -> Outputs:
        with self._memory_errors(), self._lane(lanes):
            return finite_outputs(self._slots[slot].predictor.predict(batch))

    def ping(self) -> None:
        self._ping_tensor.logical_not_().item()  # what is copied back was computed there

    def close(self) -> None:
        self._slots.clear()

    def _read(self, bundle: Bundle) -> _Slot:
        with self._memory_errors(), self._lane(self._cores):
            return self._make_slot(bundle)

    def _make_slot(self, bundle: Bundle) -> _Slot:
        (network, deployment), name = load_deployed(bundle), bundle.config.name
        if deployment.largest_difference is not None:
            log.info("form", model=name, form=deployment.form, largest_difference=deployment.largest_difference)
        configured = self._precision_of(name)
        if configured != "auto":
            log.info("precision", model=name, chosen=configured, source="setting")
            chosen = Precision(configured)
            return _Slot(make_predictor(bundle, self._device, chosen, network), chosen, deployment)
        known = self.known_precision(bundle)
        if known is not None and known.precision in (Precision.EXACT, *candidates_of(bundle, self._device)):
            log.info("precision", model=name, chosen=known.precision.value, source="measured before")
            predictor = make_predictor(bundle, self._device, known.precision, network)
            return _Slot(predictor, known.precision, deployment, known)
        started_s = time.monotonic()
        selection, measured = self._measure(bundle, network)
        self._state.write("precision", self._key(bundle), measured)
        self.measuring_s += time.monotonic() - started_s
        return _Slot(selection.predictor, selection.precision, deployment, measured)

    def known_precision(self, bundle: Bundle) -> MeasuredPrecision | None:
        """What was measured for a bundle before, on this device and with these libraries; None if nothing was kept."""
        return self._state.read("precision", self._key(bundle), MeasuredPrecision)

    def _key(self, bundle: Bundle) -> tuple[str, ...]:
        """What a measurement of a bundle's precision holds for."""
        return (bundle.config.version, *self.identity)

    def _load(self) -> float:
        """See MeasuredPrecision."""
        return self._machine_load() if self._device.type == "cpu" else 0.0

    def _measure(
        self, bundle: Bundle, network: nn.Module, before_each: Callable[[], None] = lambda: None
    ) -> tuple[Selection, MeasuredPrecision]:
        """It takes ownership of `network`. Raises as `select_precision`."""
        load = self._load()
        selection = select_precision(bundle, self._device, network, before_each)
        measured = MeasuredPrecision(selection.precision, round(selection.spread, 3), round(load, 2))
        tried = {
            trial.precision.value: trial.mismatch or f"{median(trial.rounds) * 1000:.1f} ms"
            for trial in selection.trials
        }
        log.info(
            "precision",
            model=bundle.config.name,
            chosen=measured.precision.value,
            source="measured",
            tried=tried,
            spread=measured.spread,
            load=measured.load,
            trustworthy=measured.is_trustworthy,
        )
        return selection, measured

    @contextmanager
    def _lane(self, cores: int) -> Iterator[None]:
        """The resources of this thread: so many threads of the CPU, or a stream of its own on the GPU."""
        if self._device.type == "cpu":
            torch.set_num_threads(cores)  # OpenMP keeps the number for each calling thread
            yield
            return
        if not hasattr(self._streams, "stream"):
            self._streams.stream = torch.cuda.Stream(self._device)
        with torch.cuda.stream(self._streams.stream):
            yield
            # Other streams may use, or free, what was computed here.
            self._streams.stream.synchronize()

    @contextmanager
    def _memory_errors(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfDeviceMemory(str(error)) from error


def _require_room() -> None:
    """Raises OutOfDeviceMemory where a new thread, and its first code, may find no room: C++ would end the process."""
    try:
        mmap.mmap(-1, _THREAD_ROOM_BYTES).close()
    except OSError as error:
        raise OutOfDeviceMemory(f"a new thread needs {_THREAD_ROOM_BYTES} bytes: {error.strerror}") from error


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether an error of torch means that the device, or the host, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or _NO_MEMORY.search(str(error)) is not None


def _processor(device: torch.device) -> tuple[str, ...]:
    """The device's processor: a GPU's name and architecture; a CPU's model and a hash of its features."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return ("cuda", found.name, f"sm_{found.major}{found.minor}")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:  # not Linux
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    features = hashlib.sha256(fields.get("flags", fields.get("Features", "")).encode()).hexdigest()[:16]
    return ("cpu", fields.get("model name", platform.processor()), platform.machine(), features)


def _libraries() -> str:
    """torch's version and build, with those of oneDNN, MKL and CUDA, as a hash."""
    return hashlib.sha256(f"{torch.__version__} {torch.__config__.show()}".encode()).hexdigest()[:16]
