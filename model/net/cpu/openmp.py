"""torch's OpenMP threads, for code outside torch."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

MIN_ROWS = 12
"""Of a thread. With fewer, to wake another one takes as long as it saves."""
_MAPS = Path("/proc/self/maps")


@cache
def parallel_address() -> int:
    """The address of `GOMP_parallel` in the copy of GCC's OpenMP library that torch loaded; 0 if there is none.

    Code that is compiled against another copy would have threads of its own beside those of torch.
    """
    if not _MAPS.exists():
        return 0
    paths = {line.split()[-1] for line in _MAPS.read_text(encoding="utf-8").splitlines() if "libgomp" in line}
    if len(paths) != 1:
        return 0
    function = getattr(ctypes.CDLL(paths.pop()), "GOMP_parallel", None)
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0


def threads_for(rows: int) -> int:
    """How many of the calling thread's OpenMP threads compute so many rows of a layer."""
    return max(1, min(torch.get_num_threads(), rows // MIN_ROWS))
