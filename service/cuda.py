"""How many CUDA devices there are."""

from __future__ import annotations

import subprocess
import sys

import structlog

PATIENCE_S = 60.0
"""A driver without its persistence daemon wakes up the GPUs one after the other."""

# The driver is quick to ask. Torch, which takes seconds to load, has the last word: it may be built without CUDA.
_COUNT = """
import ctypes
cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
if cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 1:
    import torch
    print(torch.cuda.device_count())
else:
    print(count.value)
"""

log = structlog.get_logger(__name__)


def count_cuda_devices() -> int:
    """CUDA devices that a worker started now can use; 0 without any, or without a driver that works.

    The driver is asked rather than the machine, so that CUDA_VISIBLE_DEVICES, MIG and a container's share of the GPUs
    count as they will for the worker. In a process of its own: a driver takes memory and threads, and may hang.
    """
    try:
        asked = subprocess.run(
            [sys.executable, "-P", "-c", _COUNT], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        log.warning("the CUDA driver does not answer; its devices are not counted")
        return 0
    return int(asked.stdout or 0)
