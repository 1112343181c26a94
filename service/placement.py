"""Which workers `convmlp serve` starts: the settings of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from service.settings import Settings, usable_cores

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
