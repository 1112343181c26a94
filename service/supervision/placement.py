"""How many CUDA devices there are.

Which workers `convmlp serve` starts: the settings of each.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from service.settings import Settings, usable_cores

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


MAX_PORT = 65535


class Unplaceable(Exception):
    """The settings contradict each other; the words say how."""


def place_workers(settings: Settings, folder: Path, count_cuda_devices: Callable[[], int]) -> tuple[Settings, ...]:
    """One for each GPU that may be used, or as many as the settings say, in turn on the GPUs.

    Each has an address and a metrics port of its own, and a share of the cores. What callers change of the served
    models they change on all workers, so that one file tells it to whichever is restarted. `folder` is for sockets.

    Raises:
        Unplaceable: there are no such workers.
    """
    addresses, any_gpu = settings.worker_address, settings.device in ("auto", "cuda")
    if addresses and settings.workers not in (0, len(addresses)):
        raise Unplaceable(
            f"workers is {settings.workers} and worker_address has {len(addresses)}; leave one of the two out"
        )
    wanted = settings.workers or len(addresses)
    gpus = count_cuda_devices() if any_gpu and wanted != 1 else 0
    count = wanted or max(1, gpus)
    if settings.worker_metrics_port and settings.worker_metrics_port + count - 1 > MAX_PORT:
        raise Unplaceable(
            f"{count} workers need as many metrics ports, and {settings.worker_metrics_port} is too near to the last "
            f"one; choose a lower worker_metrics_port, or 0 for free ones"
        )
    return tuple(
        settings.with_changes(
            worker_address=addresses[number] if addresses else f"ipc://{folder}/worker-{number}",
            worker_metrics_port=settings.worker_metrics_port and settings.worker_metrics_port + number,
            served_models_file=settings.served_models_file or folder / "served-models.json",
            device=f"cuda:{number % gpus}" if gpus and count > 1 else settings.device,
            compute_threads=settings.compute_threads or (max(1, usable_cores() // count) if count > 1 else 0),
        )
        for number in range(count)
    )
