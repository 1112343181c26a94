"""What the hardware allows: the networks alone and decoding alone, on all cores, without any server.

One process does it all, in turns; it prints one JSON document. A server that decodes and computes on the same cores
cannot answer more than 1 / (1 / network rate + 1 / decode rate) pictures a second.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import cv2
import msgspec
import numpy as np
import torch

from benchmarks.material import Material, network_input
from benchmarks.network import Kind, load, mode_of
from benchmarks.servers import OTHER_MODELS
from model.bundle import Bundle, find_bundle, read_bundle
from model.mode import Mode
from model.predictor import Predictor
from model.types import Batch, ModelInput, QueryParams
from service.settings import usable_cores

BATCHES = {Kind.EAGER: (1, 2, 4), Kind.FP32: (1, 2, 4, 8, 16), Kind.FASTEST: (1, 2, 4, 8, 16, 32)}
"""Images at a time; the slower networks are past their best before."""
LARGE_BATCHES = (1, 2, 4, 8, 16)
"""Of detection and segmentation."""
LONE_TIMES = 20
PAST_BEST = 0.7
"""Larger batches are not tried once the rate has fallen so far below the best of as many lanes."""


class NetworkAlone(msgspec.Struct):
    """`per_second`: images, by lanes and batch, as in `2 x 4`: so many batches at once, each on its share of the cores.

    `lone_ms`: of a single image on all cores, median.
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
    """Encoded picture to network input: `per_second` in a thread a core, `lone_ms` in one thread, median."""

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
        """The most that any server can answer with them."""
        return 1 / (1 / self.network(model, network).best_per_second + 1 / self.decoding_of(model).per_second)

    def lone_ms(self, model: str, network: str) -> float:
        """The least that a lone request takes."""
        return self.network(model, network).lone_ms + self.decoding_of(model).lone_ms


def mean_limit(first: Limit, second: Limit) -> Limit:
    """Of two measurements of the same: what the machine could do between them."""
    networks = [_mean_network(one, second.network(one.model, one.network)) for one in first.networks]
    return Limit(networks, [_mean_decoding(one, second.decoding_of(one.model)) for one in first.decoding])


def _mean_network(first: NetworkAlone, second: NetworkAlone) -> NetworkAlone:
    # Either may have stopped sooner, where it was past the best.
    both = [name for name in first.per_second if name in second.per_second]
    per_second = {name: (first.per_second[name] + second.per_second[name]) / 2 for name in both}
    return NetworkAlone(first.model, first.network, per_second, (first.lone_ms + second.lone_ms) / 2)


def _mean_decoding(first: DecodingAlone, second: DecodingAlone) -> DecodingAlone:
    per_second, lone_ms = (first.per_second + second.per_second) / 2, (first.lone_ms + second.lone_ms) / 2
    return DecodingAlone(first.model, per_second, lone_ms)


def measure_limit(material: Material, seconds: float) -> Limit:
    """Each rate is measured for `seconds`."""
    cv2.setNumThreads(1)
    pictures = material.pictures()
    classifier = material.bundle
    others = [read_bundle(find_bundle(name, None)) for name in OTHER_MODELS]
    networks, decoding = [], []
    for bundle in (classifier, *others):
        inputs = [network_input(data, bundle.config.preprocessing) for data in pictures]
        decoding.append(_decoding(bundle, pictures, seconds))
        for kind in Kind if bundle is classifier else (Kind.FASTEST,):
            sizes = BATCHES[kind] if bundle is classifier else LARGE_BATCHES
            mode = mode_of(kind, material.fastest_mode())
            networks.append(_network(bundle, kind, mode, inputs, sizes, seconds))
    return Limit(networks, decoding)


def _network(
    bundle: Bundle, kind: Kind, mode: Mode, inputs: Sequence[ModelInput], sizes: Sequence[int], seconds: float
) -> NetworkAlone:
    predictor, cores = load(mode, bundle), usable_cores()
    per_second = {}
    for lanes in dict.fromkeys((1, cores)):
        best = 0.0
        with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(cores // lanes,)) as threads:
            for size in sizes:
                batches = [_batch(inputs, size)] * lanes
                list(threads.map(predictor.predict, batches))
                calls, took_s = _repeat(lambda batches=batches: list(threads.map(predictor.predict, batches)), seconds)  # type: ignore[misc]
                rate = per_second[f"{lanes} x {size}"] = calls * lanes * size / took_s
                best = max(best, rate)
                if rate < PAST_BEST * best:
                    break
    torch.set_num_threads(cores)
    return NetworkAlone(bundle.config.name, kind, per_second, _lone_ms(predictor, _batch(inputs, 1)))


def _lone_ms(predictor: Predictor, batch: Batch) -> float:
    predictor.predict(batch)
    return statistics.median(_repeat(lambda: predictor.predict(batch), 0)[1] for _ in range(LONE_TIMES)) * 1000


def _decoding(bundle: Bundle, pictures: Sequence[bytes], seconds: float) -> DecodingAlone:
    spec = bundle.config.preprocessing

    def one(data: bytes) -> None:
        network_input(data, spec)

    lone_ms = [_repeat(lambda data=data: one(data), 0)[1] * 1000 for data in islice(cycle(pictures), LONE_TIMES)]  # type: ignore[misc]
    with ThreadPoolExecutor(usable_cores()) as threads:
        rounds, took_s = _repeat(lambda: list(threads.map(one, pictures)), seconds)
    return DecodingAlone(bundle.config.name, rounds * len(pictures) / took_s, statistics.median(lone_ms))


def _batch(inputs: Sequence[ModelInput], size: int) -> Batch:
    """Of the first input's shape; pictures of other shapes would not share a batch."""
    fitting = [one for one in inputs if one.pixels.shape == inputs[0].pixels.shape]
    chosen = list(islice(cycle(fitting), size))
    pixels = np.stack([one.pixels for one in chosen])
    return Batch(pixels, tuple(one.geometry for one in chosen), (QueryParams(),) * size)


def _repeat(work: Callable[[], object], seconds: float) -> tuple[int, float]:
    """How often it was done, at least once, in at least so many seconds; and in how many."""
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
    arguments = parser.parse_args()
    sys.stdout.buffer.write(msgspec.json.encode(measure_limit(Material(arguments.material), arguments.seconds)) + b"\n")


if __name__ == "__main__":
    main()
