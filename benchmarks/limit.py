"""The limit of the hardware: the networks alone and decoding alone, on all cores, without any server.

One process measures one after the other and prints one JSON document. A server that decodes and computes on the same
cores cannot answer more than 1 / (1 / network rate + 1 / decode rate) pictures a second.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import cv2
import msgspec
import numpy as np
import torch

from benchmarks.material import Material, network_input
from benchmarks.network import Kind, load, precision_of
from benchmarks.servers import EMBEDDED_MODELS, LARGE_MODELS
from model.bundle import Bundle, find_bundle, read_bundle
from model.precision import Precision
from model.predictor import Predictor
from model.types import Batch, ModelInput, QueryParams
from service.process import keep_freed_memory
from service.settings import usable_cores

BATCHES = {Kind.EAGER: (1, 2, 4), Kind.FP32: (1, 2, 4, 8, 16), Kind.FASTEST: (1, 2, 4, 8, 16, 32)}
"""Images at a time; the rate of slower networks falls earlier."""
EMBEDDED_BATCHES = (1, 2, 4, 8, 16)
"""For detection and segmentation with the embedded models."""
LARGE_S = {"detect": 5.0, "segment": 3.0}
"""How long networks of the paper's size are measured; a core computes one to three images a second."""
LONE_TIMES = 20
LARGE_LONE_TIMES = 2
PAST_BEST = 0.7
"""Larger batches are not tried once the rate is below this share of the best with as many lanes."""


class NetworkAlone(msgspec.Struct):
    """`per_second`: images by lanes and batch; `2 x 4`: two batches of four at once, each on half of the cores.

    `lone_ms`: time of a single image on all cores, median.
    """

    model: str
    network: str
    per_second: dict[str, float]
    lone_ms: float

    @property
    def best(self) -> str:
        return max(self.per_second, key=lambda arrangement: self.per_second[arrangement])

    @property
    def best_per_second(self) -> float:
        return self.per_second[self.best]


class DecodingAlone(msgspec.Struct):
    """Encoded picture to network input: `per_second` with a thread per core, `lone_ms` in one thread, median."""

    model: str
    per_second: float
    lone_ms: float


class Limit(msgspec.Struct):
    networks: list[NetworkAlone]
    decoding: list[DecodingAlone]

    def network(self, model: str, network: str) -> NetworkAlone:
        return next(one for one in self.networks if (one.model, one.network) == (model, network))

    def decoding_of(self, model: str) -> DecodingAlone:
        return next(one for one in self.decoding if one.model == model)

    def per_second(self, model: str, network: str) -> float:
        """The maximum rate of any server with them."""
        return 1 / (1 / self.network(model, network).best_per_second + 1 / self.decoding_of(model).per_second)

    def lone_ms(self, model: str, network: str) -> float:
        """The minimum time of a lone request."""
        return self.network(model, network).lone_ms + self.decoding_of(model).lone_ms


def mean_limit(first: Limit, second: Limit) -> Limit:
    """The mean of two measurements: the limit between them."""
    networks = [_mean_network(one, second.network(one.model, one.network)) for one in first.networks]
    return Limit(networks, [_mean_decoding(one, second.decoding_of(one.model)) for one in first.decoding])


def _mean_network(first: NetworkAlone, second: NetworkAlone) -> NetworkAlone:
    # Either may have stopped earlier, after its best batch.
    both = [name for name in first.per_second if name in second.per_second]
    per_second = {name: (first.per_second[name] + second.per_second[name]) / 2 for name in both}
    return NetworkAlone(first.model, first.network, per_second, (first.lone_ms + second.lone_ms) / 2)


def _mean_decoding(first: DecodingAlone, second: DecodingAlone) -> DecodingAlone:
    per_second, lone_ms = (first.per_second + second.per_second) / 2, (first.lone_ms + second.lone_ms) / 2
    return DecodingAlone(first.model, per_second, lone_ms)


def measure_limit(material: Material, seconds: float) -> Limit:
    """Measure the classifier and the embedded models. Each rate is measured for `seconds`."""
    cv2.setNumThreads(1)
    pictures = material.pictures()
    classifier = material.bundle
    others = [read_bundle(find_bundle(name, None)) for name in EMBEDDED_MODELS.values()]
    networks, decoding = [], []
    for bundle in (classifier, *others):
        inputs = [network_input(data, bundle.config.preprocessing) for data in pictures]
        decoding.append(_decoding(bundle, pictures, seconds))
        for kind in Kind if bundle is classifier else (Kind.FASTEST,):
            sizes = BATCHES[kind] if bundle is classifier else EMBEDDED_BATCHES
            precision = precision_of(kind, material.fastest_precision())
            networks.append(_network(bundle, kind, precision, inputs, sizes, seconds))
    return Limit(networks, decoding)


def measure_large_limit(material: Material, seconds: float) -> Limit:
    """Measure the detector and the segmenter of the paper's size. Decoding is measured for `seconds`."""
    cv2.setNumThreads(1)
    pictures, precision = material.pictures(), material.fastest_precision()
    networks, decoding = [], []
    for task, name in LARGE_MODELS.items():
        bundle = read_bundle(find_bundle(name, material.models_dir))
        decoding.append(_decoding(bundle, pictures, seconds))
        one = network_input(pictures[0], bundle.config.preprocessing)
        networks.append(_large_network(bundle, precision, _batch([one], 1), LARGE_S[task]))
    return Limit(networks, decoding)


def _large_network(bundle: Bundle, precision: Precision, batch: Batch, seconds: float) -> NetworkAlone:
    """With a lane per core and one image at a time: no other division was faster by trial, and trials take too long."""
    predictor, cores = load(precision, bundle), usable_cores()
    with _lanes(cores) as threads:
        rate = _rate(threads, cores, predictor, batch, seconds)
    lone_ms = _lone_ms(predictor, batch, LARGE_LONE_TIMES)
    return NetworkAlone(bundle.config.name, Kind.FASTEST, {f"{cores} x 1": rate}, lone_ms)


def _network(
    bundle: Bundle, kind: Kind, precision: Precision, inputs: Sequence[ModelInput], sizes: Sequence[int], seconds: float
) -> NetworkAlone:
    predictor, cores = load(precision, bundle), usable_cores()
    per_second = {}
    for lanes in dict.fromkeys((1, cores)):
        best = 0.0
        with _lanes(lanes) as threads:
            for size in sizes:
                rate = per_second[f"{lanes} x {size}"] = _rate(threads, lanes, predictor, _batch(inputs, size), seconds)
                best = max(best, rate)
                if rate < PAST_BEST * best:
                    break
    return NetworkAlone(bundle.config.name, kind, per_second, _lone_ms(predictor, _batch(inputs, 1)))


@contextmanager
def _lanes(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads, each of which computes on its share of the cores."""
    share = usable_cores() // count
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(share,)) as threads:
        yield threads
    torch.set_num_threads(usable_cores())


def _rate(threads: ThreadPoolExecutor, lanes: int, predictor: Predictor, batch: Batch, seconds: float) -> float:
    """Images a second. Lanes do not wait for each other: a core that is busy for a moment delays only one."""
    batches = [batch] * lanes
    list(threads.map(predictor.predict, batches))
    done = threads.map(lambda one: _repeat(lambda: predictor.predict(one), seconds), batches)
    return sum(calls * len(batch) / took_s for calls, took_s in done)


def _lone_ms(predictor: Predictor, batch: Batch, times: int = LONE_TIMES) -> float:
    predictor.predict(batch)
    return statistics.median(_repeat(lambda: predictor.predict(batch), 0)[1] for _ in range(times)) * 1000


def _decoding(bundle: Bundle, pictures: Sequence[bytes], seconds: float) -> DecodingAlone:
    spec = bundle.config.preprocessing

    def one(data: bytes) -> None:
        network_input(data, spec)

    lone_ms = [_repeat(lambda data=data: one(data), 0)[1] * 1000 for data in islice(cycle(pictures), LONE_TIMES)]  # type: ignore[misc]
    with ThreadPoolExecutor(usable_cores()) as threads:
        rounds, took_s = _repeat(lambda: list(threads.map(one, pictures)), seconds)
    return DecodingAlone(bundle.config.name, rounds * len(pictures) / took_s, statistics.median(lone_ms))


def _batch(inputs: Sequence[ModelInput], size: int) -> Batch:
    """Inputs of the first one's shape; other shapes would not share a batch."""
    fitting = [one for one in inputs if one.pixels.shape == inputs[0].pixels.shape]
    chosen = list(islice(cycle(fitting), size))
    pixels = np.stack([one.pixels for one in chosen])
    return Batch(pixels, tuple(one.geometry for one in chosen), (QueryParams(),) * size)


def _repeat(work: Callable[[], object], seconds: float) -> tuple[int, float]:
    """Repeat for at least `seconds`, at least once. Returns the number of calls and the seconds."""
    started_s, times = time.perf_counter(), 0
    while True:
        work()
        times += 1
        if (took_s := time.perf_counter() - started_s) >= seconds:
            return times, took_s


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limit", description=__doc__)
    parser.add_argument("material", type=Path)
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--large", action="store_true", help="measure the networks of the paper's size")
    arguments = parser.parse_args()
    keep_freed_memory()  # as this service does: allocating pages for each batch costs a tenth
    measure = measure_large_limit if arguments.large else measure_limit
    sys.stdout.buffer.write(msgspec.json.encode(measure(Material(arguments.material), arguments.seconds)) + b"\n")


if __name__ == "__main__":
    main()
