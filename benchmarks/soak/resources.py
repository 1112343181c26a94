"""Memory, descriptors and threads of the service's processes over time, and whether they grow."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil

INTERVAL_S = 2.0
STARTING_S = 10.0
"""A process younger than this still starts and is not sampled."""
FEWEST_SAMPLES = 40
"""Of a role, for a statement about its growth."""
MEMORY_GROWTH, MEMORY_SLACK_BYTES = 1.25, 48 << 20
DESCRIPTORS_SLACK, THREADS_SLACK = 24, 8


@dataclass(frozen=True, slots=True)
class Sample:
    memory_bytes: int
    descriptors: int
    threads: int


@dataclass(slots=True)
class Resources:
    """Samples by role. A restarted process continues its role's samples."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)

    async def watch(self, processes: Callable[[], Mapping[str, psutil.Process]]) -> None:
        """Take samples until cancelled."""
        while True:
            for role, process in processes().items():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied), process.oneshot():
                    if time.time() - process.create_time() < STARTING_S:
                        continue
                    sample = Sample(process.memory_info().rss, process.num_fds(), process.num_threads())
                    self.samples.setdefault(role, []).append(sample)
            await asyncio.sleep(INTERVAL_S)

    def growth(self) -> list[str]:
        """What grew from the second quarter of the run to the last, beyond the bounds. The first quarter warms up."""
        grown = []
        for role, samples in self.samples.items():
            if len(samples) < FEWEST_SAMPLES:
                continue
            quarter = len(samples) // 4
            before, after = samples[quarter : 2 * quarter], samples[-quarter:]
            memory = [statistics.median(one.memory_bytes for one in some) for some in (before, after)]
            if memory[1] > MEMORY_GROWTH * memory[0] + MEMORY_SLACK_BYTES:
                grown.append(f"{role}: memory grew from {memory[0] / 1e6:.0f} to {memory[1] / 1e6:.0f} MB")
            descriptors = [_lowest_tenth([one.descriptors for one in some]) for some in (before, after)]
            if descriptors[1] > descriptors[0] + DESCRIPTORS_SLACK:
                grown.append(f"{role}: descriptors grew from {descriptors[0]} to {descriptors[1]}")
            threads = [_lowest_tenth([one.threads for one in some]) for some in (before, after)]
            if threads[1] > threads[0] + THREADS_SLACK:
                grown.append(f"{role}: threads grew from {threads[0]} to {threads[1]}")
        return grown


def _lowest_tenth(counts: Sequence[int]) -> int:
    """What a tenth of the counts do not exceed.

    Connections come and go with the callers: low counts show what stays. The lowest may be those of a process that
    still starts, which takes longer than `STARTING_S` on a busy machine.
    """
    return sorted(counts)[len(counts) // 10]
