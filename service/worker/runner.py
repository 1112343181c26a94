"""What the dispatcher needs of a device: the Runner protocol. `torch_runner.py` has the real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from model.bundle import Bundle
from model.types import Batch, RawOutput


class DeviceMissing(Exception):
    """The device that was asked for is not there."""


class OutOfDeviceMemory(Exception):
    """The batch did not fit, and a smaller one may; or a model did not."""


class DeviceLost(Exception):
    """The device does not work any more; only a new process helps."""


class Runner(Protocol):
    """Owns the device. A model lies in a slot, whose name is the caller's choice.

    `prepare` is called from any thread, `run` from several at once; every other call is made from one thread, which
    is one of those that call `run`.
    """

    @property
    def device(self) -> str:
        """What it runs on, by torch's name: `cpu`, `cuda:0`."""
        ...

    @property
    def lanes(self) -> int:
        """Batches that it runs at once, each by itself: the threads of a CPU that compute, two streams of a GPU."""
        ...

    @property
    def max_lanes_per_batch(self) -> int:
        """The most lanes that make a single batch faster: all cores of a CPU; one stream of a GPU has all of it."""
        ...

    def precision(self, slot: str) -> str:
        """What the model in a slot computes in: `fp32`, `fp16` or `bf16`."""
        ...

    def prepare(self, slot: str, bundle: Bundle) -> Callable[[], None]:
        """Read a model into host memory, in any thread, while the device works.

        Returns:
            What puts the model into its slot on the device. Raises OutOfDeviceMemory: it does not fit, and the
            runner is as good as before.

        Raises:
            BundleInvalid: the weights cannot be read, or are not the architecture's.
            OutOfDeviceMemory: the host has no room for it.
        """
        ...

    def remove(self, slot: str) -> None:
        """Empty a slot, of which nothing runs, and give its memory back; nothing happens where it is empty."""
        ...

    def run(self, slot: str, batch: Batch, lanes: int) -> tuple[RawOutput, ...]:
        """Answer a batch on some of the lanes: row i of the output is for row i of the input.

        All batches that run at once have no more lanes together than there are.

        Raises:
            OutOfDeviceMemory: the batch did not fit; the runner is as good as before.
        """
        ...

    def ping(self) -> None:
        """Have the device do a trifle, without a need for memory, and wait until it is done. Raises what went wrong."""
        ...

    def close(self) -> None:
        """Let the device go."""
        ...
