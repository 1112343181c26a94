"""Which workers `convmlp serve` starts, on which devices, and the settings of each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from service.settings import Settings, usable_cores

DRIVER_TIMEOUT_S = 60.0
"""A driver without its persistence daemon initialises the GPUs one after the other."""

MAX_PORT = 65535

# The driver answers quickly. Torch takes seconds to load and decides in the end: its build may lack CUDA.
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


class Unplaceable(Exception):
    """The settings contradict each other; the message names them."""


def place_workers(settings: Settings, folder: Path, count_cuda_devices: Callable[[], int]) -> tuple[Settings, ...]:
    """The settings of each worker: one per usable GPU, or as many as the settings ask for, round-robin over the GPUs.

    Each has its own address and metrics port, and an equal share of the cores. They share one file of served models,
    because callers load and unload models on all workers at once. `folder` is for sockets.

    Raises:
        Unplaceable: the settings contradict each other.
    """
    addresses, any_gpu = settings.worker_address, settings.device in ("auto", "cuda")
    if addresses and settings.workers not in (0, len(addresses)):
        raise Unplaceable(
            f"workers is {settings.workers} but worker_address has {len(addresses)} addresses; set only one of the two"
        )
    if any(address.startswith("dns://") for address in addresses):
        raise Unplaceable("worker_address is a name (dns://), which only `rest` and `grpc` take; leave it out")
    wanted = settings.workers or len(addresses)
    gpus = count_cuda_devices() if any_gpu and wanted != 1 else 0
    count = wanted or max(1, gpus)
    if settings.worker_metrics_port and settings.worker_metrics_port + count - 1 > MAX_PORT:
        raise Unplaceable(
            f"{count} workers need {count} metrics ports from {settings.worker_metrics_port} on, and {MAX_PORT} is the "
            f"last; choose a lower worker_metrics_port, or 0 for free ports"
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


def count_cuda_devices() -> int:
    """CUDA devices that a worker can use now; 0 if there are none or the driver does not work.

    The count comes from the driver, so that CUDA_VISIBLE_DEVICES, MIG and a container's GPUs apply as they will for
    the worker. It runs in a process of its own, because a driver allocates memory and threads and may hang.
    """
    try:
        counted = subprocess.run(
            [sys.executable, "-P", "-c", _COUNT], capture_output=True, text=True, timeout=DRIVER_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        log.warning("the CUDA driver does not answer; assuming that there are no GPUs")
        return 0
    return int(counted.stdout or 0)
