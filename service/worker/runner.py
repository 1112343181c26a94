"""The device as the worker uses it: the Runner protocol. `torch_runner.py` implements it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from model.bundle import Bundle
from model.errors import NotFinite
from model.types import Batch, Deployment, RawOutput

Outputs = tuple[RawOutput | NotFinite, ...]
"""Of the rows of a batch. An error stands in the place of an output that has NaN or infinity."""


class DeviceMissing(Exception):
    """This machine does not have the configured device."""


class OutOfDeviceMemory(Exception):
    """A batch, or a model, did not fit into the device's memory or the host's. A smaller batch may fit."""


class DeviceLost(Exception):
    """The device does not work any more; only a new process helps."""


class Runner(Protocol):
    """Owns the device. Each model has a slot, whose name the caller chooses.

    `load` is called from any thread, `run` from several at once; every other call is made from one thread, which
    is one of those that call `run`.
    """

    @property
    def device(self) -> str:
        """The device's name in torch: `cpu`, `cuda:0`."""
        ...

    @property
    def lanes(self) -> int:
        """How many batches it runs at once: the computing threads of a CPU, two streams of a GPU."""
        ...

    @property
    def max_lanes_per_batch(self) -> int:
        """How many lanes make a single batch faster: all cores of a CPU, one stream of a GPU."""
        ...

    @property
    def can_overlap(self) -> bool:
        """Whether one more batch on one lane may run beside those that hold all lanes, and is served at once: the
        operating system shares the cores of a CPU among threads."""
        ...

    @property
    def identity(self) -> tuple[str, ...]:
        """What a measurement on this device holds for: device, processor, computing threads, libraries."""
        ...

    @property
    def measuring_s(self) -> float:
        """Seconds that `load` has spent so far on measurements that the next start need not repeat."""
        ...

    def precision(self, slot: str) -> str:
        """The precision of the model in a slot: `fp32`, `fp16` or `bf16`."""
        ...

    def deployment(self, slot: str) -> Deployment:
        """The form of the model's network in a slot."""
        ...

    def load(self, slot: str, bundle: Bundle) -> Callable[[], None]:
        """Read a model into host memory, in any thread, while the device works.

        Returns:
            A function that puts the model into its slot on the device. It raises OutOfDeviceMemory where the model
            does not fit; the runner is unchanged then.

        Raises:
            BundleInvalid: the weights cannot be read, or are not the architecture's.
            OutOfDeviceMemory: the host has no memory for it.
        """
        ...

    def measure_again(self, slot: str, bundle: Bundle, may_go_on: Callable[[], bool]) -> bool | None:
        """Measure the precision of the model in a slot once more where the measurement is not trustworthy, and keep it
        for the next start: the slot stays as it is. Call it in a thread of its own.

        `may_go_on` is asked before each run of the network.

        Returns:
            Whether the measurement is trustworthy now; None: it was not measured, because the machine is busy or
            it may not go on.

        Raises:
            BundleInvalid, OutOfDeviceMemory: as `load`.
        """
        ...

    def remove(self, slot: str) -> None:
        """Empty a slot of which no batch runs, and free its memory. An empty slot stays empty."""
        ...

    def run(self, slot: str, batch: Batch, lanes: int) -> Outputs:
        """Run a batch on some of the lanes. Output i belongs to row i of the batch.

        All batches that run at once have at most `lanes` lanes together, without one that overlaps.

        Raises:
            OutOfDeviceMemory: the batch did not fit; the runner is unchanged.
        """
        ...

    def ping(self) -> None:
        """Compute something small on the device, without allocating memory, and wait for it. Raises what failed."""
        ...

    def close(self) -> None:
        """Release the device."""
        ...


def finite_outputs(outputs: Iterable[RawOutput]) -> Outputs:
    """The outputs, and an error in the place of each that has NaN or infinity."""
    return tuple(output if output.finite else NotFinite() for output in outputs)
