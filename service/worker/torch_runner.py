"""The real runner: each model's `Predictor`, on one device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model.bundle import Bundle
from model.predictor import Optimisations, Predictor, default_device
from model.types import Batch, RawOutput
from service.settings import Settings, usable_cores
from service.worker.runner import DeviceMissing, OutOfDeviceMemory


class TorchRunner:
    """Loads all bundles on construction.

    Raises:
        BundleInvalid: weights do not fit their architecture.
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
        self.precision = settings.precision
        # fp32 on the CPU is the exact mode; whoever chose anything else wants to be fast.
        exact = self._device.type == "cpu" and settings.precision == "fp32"
        optimisations = Optimisations(channels_last=not exact)
        self._predictors = {
            bundle.config.name: Predictor(bundle, self._device, settings.precision, optimisations) for bundle in bundles
        }

    def run(self, model: str, batch: Batch) -> tuple[RawOutput, ...]:
        try:
            return self._predictors[model].predict(batch)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfDeviceMemory(str(error)) from error

    def close(self) -> None:
        self._predictors.clear()


def _out_of_memory(error: RuntimeError | MemoryError) -> bool:
    # On the CPU torch raises a plain RuntimeError, which only its words tell from others.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
