"""Work on parts of a picture, each by one thread of the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

P = TypeVar("P")
R = TypeVar("R")

FEWEST_PARTS = 8
"""Of fewer parts the threads would take longer to start than to work."""


def of_each(parts: Sequence[P], work: Callable[[P], R], device: torch.device) -> list[R]:
    """The results of `work` for each part, in order. On a CPU as many parts at a time as this thread may use cores.

    OpenMP would divide each operation on a part, and its threads wait for each other after it. Where other programs
    take a core, each wait lasts as long as the system lets them run: labels of 12 megapixels took 5 to 47 s, and 5 s
    of CPU time for 0.3 s of work. Here a thread has whole parts, and waits for the others once.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(parts) < FEWEST_PARTS:
        return [work(part) for part in parts]
    inference = torch.is_inference_mode_enabled()

    def in_thread(part: P) -> R:
        with torch.inference_mode(inference):  # each thread has a mode of its own
            return work(part)

    try:
        with ThreadPoolExecutor(threads, "parts", torch.set_num_threads, (1,)) as pool:
            return list(pool.map(in_thread, parts))
    finally:
        torch.set_num_threads(threads)  # threads that begin later have the number that any thread set last
