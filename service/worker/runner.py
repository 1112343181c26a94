"""What the dispatcher needs of a device: the Runner protocol. `torch_runner.py` has the real one."""

from __future__ import annotations

from typing import Protocol

from model.types import Batch, RawOutput


class DeviceMissing(Exception):
    """The device that was asked for is not there."""


class OutOfDeviceMemory(Exception):
    """The batch did not fit; a smaller one may."""


class Runner(Protocol):
    """Owns the device. Every call is made from one thread, never two at a time."""

    @property
    def device(self) -> str:
        """What it runs on, by torch's name: `cpu`, `cuda:0`."""
        ...

    @property
    def precision(self) -> str:
        """What it computes in: `fp32`, `fp16` or `bf16`."""
        ...

    def run(self, model: str, batch: Batch) -> tuple[RawOutput, ...]:
        """Answer a batch: row i of the output is for row i of the input.

        Raises:
            OutOfDeviceMemory: the batch did not fit; the runner is as good as before.
        """
        ...

    def close(self) -> None:
        """Let the device go."""
        ...
