"""What a process does with memory that it has freed: it keeps it for the next picture.

By default glibc gives large blocks back to the kernel as soon as they are free and takes them anew for the next batch,
page by page and each of them zeroed: on two cores a fifth of a worker's time. It also gives each thread an arena of its
own, where each grows to what its greatest batch once took. Here one arena serves all threads (those that allocate
much are few, and Python's small objects are not glibc's), and keeps up to `KEPT_BYTES` that are free.
"""

from __future__ import annotations

import ctypes
import os

KEPT_BYTES = 256 << 20
MAPPED_FROM_BYTES = 32 << 20
"""Blocks of this size and more are still taken from the kernel and given back one by one."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_OPTIONS = {
    "MALLOC_ARENA_MAX": (_M_ARENA_MAX, 1),
    "MALLOC_TRIM_THRESHOLD_": (_M_TRIM_THRESHOLD, KEPT_BYTES),
    # Setting the one above fixes this one at its first value, 128 KiB, at which every tensor would be mapped.
    "MALLOC_MMAP_THRESHOLD_": (_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES),
}
"""By the environment variable with which an operator may decide otherwise."""


def keep_freed_memory() -> None:
    """Call before the process starts threads. Without glibc it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for variable, (option, value) in _OPTIONS.items():
        if variable not in os.environ:
            mallopt(option, value)
