"""What the processes of a measured service record, and the files in which they leave it."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Literal

import msgspec


class Batch(msgspec.Struct, frozen=True):
    """A batch on the device; times on the clock of `time.monotonic`, which all processes share.

    `cpu_s`, `faults` and `switches`: CPU seconds, page faults without input or output, and involuntary context switches
    of the thread that ran it. A batch on several lanes has more threads, which do not count.
    """

    slot: str
    images: int
    lanes: int
    started_s: float
    ended_s: float
    cpu_s: float
    faults: int
    switches: int

    @property
    def seconds(self) -> float:
        return self.ended_s - self.started_s


class Pause(msgspec.Struct, frozen=True):
    """A run of Python's collector of garbage, during which a process computes nothing else in Python."""

    process: str
    generation: int
    started_s: float
    ended_s: float

    @property
    def seconds(self) -> float:
        return self.ended_s - self.started_s


class Records(msgspec.Struct):
    batches: list[Batch] = []
    pauses: list[Pause] = []


class Collections:
    """Records the pauses of this process in `records` from now on, until it is closed."""

    def __init__(self, process: str, records: Records) -> None:
        self._process = process
        self._records = records
        self._started_s = 0.0
        gc.callbacks.append(self._on_collection)

    def close(self) -> None:
        gc.callbacks.remove(self._on_collection)

    def _on_collection(self, phase: Literal["start", "stop"], info: dict[str, int]) -> None:
        now_s = time.monotonic()
        if phase == "start":
            self._started_s = now_s
        else:
            self._records.pauses.append(Pause(self._process, info["generation"], self._started_s, now_s))


def read_records(file: Path) -> Records:
    return msgspec.json.decode(file.read_bytes(), type=Records)


def write_records(file: Path, records: Records) -> None:
    file.write_bytes(msgspec.json.encode(records))
