"""Times of the parts of a request for the simulation: batches by size, a lone image on all cores.

Batches are timed on one thread for each core, all at once, as they run under load. Times are CPU times of those
threads, so that other programs on the machine do not count; a lone image's is the shortest time by the clock, at most
that on one core.

`python -m benchmarks.tail.curves MODELS_DIR NAME=PRECISION…` prints them as JSON.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import msgspec
import torch

from benchmarks.material import network_input, pictures
from model.bundle import find_bundle, read_bundle
from model.precision import Precision, make_predictor
from model.predictor import Predictor, load_deployed
from model.types import Batch, ModelInput, QueryParams
from service.process import keep_freed_memory
from service.settings import usable_cores

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
MODEL_S = 6.0
"""Time for the sizes of a model, by the clock; larger ones are left out then."""
LONE_TIMES = 30


class Times(msgspec.Struct):
    """`seconds`: of a batch, by its images. `lone_s`: of an image on all cores."""

    seconds: dict[int, float]
    lone_s: float


def measure_times(predictor: Predictor, model_input: ModelInput) -> Times:
    cores, seconds, until_s = usable_cores(), {}, time.monotonic() + MODEL_S
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        for images in SIZES:
            if time.monotonic() > until_s:
                break
            batches = [_batch(model_input, images)] * cores
            times = max(2, 16 // images)
            both = threads.map(lambda batch: _cpu_s(predictor, batch, times), batches)  # noqa: B023
            seconds[images] = median(one for each in both for one in each)
    torch.set_num_threads(cores)
    alone, lone_s = _batch(model_input, 1), float("inf")
    for _ in range(LONE_TIMES):
        started_s = time.perf_counter()
        predictor.predict(alone)
        lone_s = min(lone_s, time.perf_counter() - started_s)
    return Times(seconds, min(lone_s, seconds[1]))  # on a busy machine all cores are seldom free at once


def _cpu_s(predictor: Predictor, batch: Batch, times: int) -> list[float]:
    predictor.predict(batch)
    seconds = []
    for _ in range(times):
        started_s = time.thread_time()
        predictor.predict(batch)
        seconds.append(time.thread_time() - started_s)
    return seconds


def _batch(model_input: ModelInput, images: int) -> Batch:
    pixels = model_input.pixels[None].repeat(images, axis=0)
    return Batch(pixels, (model_input.geometry,) * images, (QueryParams(),) * images)


def _predictor(models_dir: Path, name: str, precision: str) -> tuple[Predictor, ModelInput]:
    bundle = read_bundle(find_bundle(name, models_dir))
    network, _ = load_deployed(bundle)
    picture = network_input(pictures(None)[0], bundle.config.preprocessing)
    return make_predictor(bundle, torch.device("cpu"), Precision(precision), network), picture


def main(arguments: Sequence[str]) -> None:
    keep_freed_memory()
    pairs = (argument.split("=") for argument in arguments[1:])
    times = {name: measure_times(*_predictor(Path(arguments[0]), name, precision)) for name, precision in pairs}
    sys.stdout.buffer.write(msgspec.json.encode(times) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
