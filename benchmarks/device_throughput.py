"""How many pictures a second a device computes, by model and batch: `python -m benchmarks.device_throughput`.

The classifiers of ConvMLP's sizes have random weights, which cost as much as trained ones, and the precision that the
worker would select there. A run is what the worker does with a batch: pixels go to the device as bytes, the top five
labels come back. Decoding is not part of it. One line of JSON for each model and batch, as it is measured.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

from benchmarks.families import random_bundle
from model.families.convmlp import CONVMLP_SIZES
from model.precision import select_precision
from model.predictor import Predictor, default_device, load_network
from model.reference import reference_input, reference_params
from model.types import Batch

BATCHES = "1,2,4,8,16,32,64,128,256"
MIN_RUNS = 3


class Throughput(msgspec.Struct, frozen=True):
    """Pictures a second in the median run, and in the slowest and fastest tenth of the runs. `error`: instead of
    figures, such as a batch that does not fit into the device's memory."""

    model: str
    precision: str
    batch: int
    runs: int = 0
    images_per_s: float = 0.0
    low: float = 0.0
    high: float = 0.0
    memory_mb: float = 0.0
    """The most that torch has had of the device's memory; 0 on a CPU."""
    error: str = ""


def measure(device: torch.device, sizes: Sequence[str], batches: Sequence[int], seconds: float) -> Iterator[Throughput]:
    """A figure for each size and batch, of the runs of so many seconds."""
    for size in sizes:
        with tempfile.TemporaryDirectory() as store:
            bundle = random_bundle(Path(store), CONVMLP_SIZES[size])
            selection = select_precision(bundle, device, load_network(bundle))
        picture = reference_input(bundle.config.preprocessing)
        params = reference_params(bundle.config.task)
        for count in batches:
            name = f"convmlp_{size}"
            batch = Batch(np.stack([picture.pixels] * count), (picture.geometry,) * count, (params,) * count)
            try:
                yield _measured(name, selection.precision, selection.predictor, batch, device, seconds)
            except torch.OutOfMemoryError as error:
                torch.cuda.empty_cache()
                yield Throughput(name, selection.precision, count, error=str(error).splitlines()[0])


def _measured(
    name: str, precision: str, predictor: Predictor, batch: Batch, device: torch.device, seconds: float
) -> Throughput:
    count = len(batch.pixels)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):  # kernels are chosen, and weights packed
        predictor.predict(batch)
    rates: list[float] = []
    end_s = time.perf_counter() + seconds
    while len(rates) < MIN_RUNS or time.perf_counter() < end_s:
        started_s = time.perf_counter()
        predictor.predict(batch)  # its answers are here when it returns
        rates.append(count / (time.perf_counter() - started_s))
    low, *_, high = statistics.quantiles(rates, n=10, method="inclusive")
    memory = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
    middle = statistics.median(rates)
    return Throughput(
        name, precision, count, len(rates), round(middle, 1), round(low, 1), round(high, 1), round(memory, 1)
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device_throughput", description=__doc__)
    parser.add_argument("--device", type=torch.device, default=default_device(), help="default: %(default)s")
    parser.add_argument("--sizes", default=",".join(CONVMLP_SIZES), help="of ConvMLP (default: %(default)s)")
    parser.add_argument("--batches", default=BATCHES, help="pictures in a batch (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: %(default)s)")
    arguments = parser.parse_args()
    batches = [int(batch) for batch in arguments.batches.split(",")]
    torch.backends.cudnn.allow_tf32 = False  # as in the worker
    for found in measure(arguments.device, arguments.sizes.split(","), batches, arguments.seconds):
        print(msgspec.json.encode(found).decode(), flush=True)


if __name__ == "__main__":
    from service.worker.compute_libraries import configure_libraries

    configure_libraries()
    main()
