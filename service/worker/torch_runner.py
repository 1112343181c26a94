"""The real runner: each model's `Predictor`, on one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from model.bundle import Bundle
from model.net.weights import Precision
from model.predictor import Optimisations, Predictor, default_device, load_network
from model.types import Batch, RawOutput
from service.settings import Settings, usable_cores
from service.worker.runner import DeviceMissing, OutOfDeviceMemory


class TorchRunner:
    """Loads the given bundles on construction, each into the slot of its name.

    Raises:
        BundleInvalid: weights do not fit their architecture.
        OutOfDeviceMemory: there is no room for them.
        DeviceMissing: this machine does not have the device that the settings name.
    """

    def __init__(self, bundles: Sequence[Bundle], settings: Settings) -> None:
        torch.set_num_threads(settings.compute_threads or usable_cores())
        torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
        self._device = default_device() if settings.device == "auto" else torch.device(settings.device)
        if self._device.type == "cuda" and (self._device.index or 0) >= torch.cuda.device_count():
            raise DeviceMissing(
                f"there is no {settings.device!r} here: {torch.cuda.device_count()} CUDA devices are visible; "
                f"say --device cpu or auto"
            )
        self.device = str(self._device)
        self.precision: Precision = settings.precision
        # fp32 on the CPU is the exact mode; whoever chose anything else wants to be fast.
        exact = self._device.type == "cpu" and settings.precision == "fp32"
        self._optimisations = Optimisations(channels_last=not exact)
        self._pulse = torch.zeros(1, device=self._device)
        self._predictors: dict[str, Predictor] = {}
        for bundle in bundles:
            self.prepare(bundle.config.name, bundle)()

    def gpu(self) -> tuple[str, str] | None:
        """The GPU's UUID, as NVML has it, and its name; None on a CPU."""
        if self._device.type != "cuda":
            return None
        found = torch.cuda.get_device_properties(self._device)
        return f"GPU-{found.uuid}", found.name

    def prepare(self, slot: str, bundle: Bundle) -> Callable[[], None]:
        with self._memory_errors():
            network = load_network(bundle)

        def put() -> None:
            with self._memory_errors():
                predictor = Predictor(bundle, self._device, self.precision, self._optimisations, network)
            self._predictors[slot] = predictor

        return put

    def remove(self, slot: str) -> None:
        self._predictors.pop(slot, None)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def run(self, slot: str, batch: Batch) -> tuple[RawOutput, ...]:
        with self._memory_errors():
            return self._predictors[slot].predict(batch)

    def ping(self) -> None:
        self._pulse.logical_not_().item()  # what is copied back was computed there

    def close(self) -> None:
        self._predictors.clear()

    @contextmanager
    def _memory_errors(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfDeviceMemory(str(error)) from error


def _out_of_memory(error: RuntimeError | MemoryError) -> bool:
    # On the CPU torch raises a plain RuntimeError, which only its words tell from others.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
