"""Whether an answer depends on the size of its batch, or on the number of cores that compute it.

    python -m benchmarks.batch_independence

prints, for each embedded model and precision that this machine has, the largest difference between the answers of a
picture alone and in batches of 1 to 32, and between one core and several.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model.bundle import EMBEDDED_DIR, Bundle, bundle_names, find_bundle, read_bundle
from model.net.cpu.onednn import onednn_accelerates
from model.precision import Precision, make_predictor
from model.predictor import Predictor, load_network
from model.reference import reference_input
from model.types import (
    Batch,
    ClassifyOutput,
    DetectOutput,
    Geometry,
    QueryParams,
    RawOutput,
    SegmentOutput,
    Size,
    UInt8Array,
)

MOST = 32
PARAMS = QueryParams(top_k=1000, max_detections=100)
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest difference of answers to one picture: of a score or mask logit, of a coordinate in pixels, and the
    share of pixels with another class. Infinite where another number of objects was found."""

    score: float = 0.0
    px: float = 0.0
    pixels: float = 0.0

    def largest(self, other: Difference) -> Difference:
        return Difference(max(self.score, other.score), max(self.px, other.px), max(self.pixels, other.pixels))


def difference(one: RawOutput, other: RawOutput) -> Difference:
    match one, other:
        case ClassifyOutput(), ClassifyOutput():
            # By class: equal scores may change places.
            return Difference(score=_most(_by_class(one), _by_class(other)))
        case DetectOutput(), DetectOutput():
            if len(one.scores) != len(other.scores):
                return Difference(np.inf, np.inf)
            logits = 0.0
            if one.mask_logits is not None and other.mask_logits is not None:
                logits = _most(one.mask_logits, other.mask_logits)
            return Difference(max(_most(one.scores, other.scores), logits), _most(one.boxes, other.boxes))
        case SegmentOutput(), SegmentOutput():
            return Difference(pixels=float((one.label_map != other.label_map).mean()))
        case _:
            raise TypeError(f"{type(one).__name__} and {type(other).__name__} are of different tasks")


def batch_difference(predictor: Predictor, pixels: UInt8Array, sizes: Iterable[int]) -> Difference:
    """Of pictures (n, h, w, 3) alone, and the first of them in batches of these sizes."""
    alone = [predictor.predict(_batch(pixels[row : row + 1]))[0] for row in range(len(pixels))]
    largest = Difference()
    for size in sizes:
        for one, other in zip(predictor.predict(_batch(pixels[:size])), alone, strict=False):
            largest = largest.largest(difference(one, other))
    return largest


def thread_difference(predictor: Predictor, pixels: UInt8Array, threads: Sequence[int]) -> Difference:
    """Of pictures (n, h, w, 3), one by one, on these numbers of threads."""
    before, found = torch.get_num_threads(), []
    try:
        for number in threads:
            torch.set_num_threads(number)
            found.append([predictor.predict(_batch(pixels[row : row + 1]))[0] for row in range(len(pixels))])
    finally:
        torch.set_num_threads(before)
    largest = Difference()
    for outputs in found[1:]:
        for one, other in zip(outputs, found[0], strict=True):
            largest = largest.largest(difference(one, other))
    return largest


def pictures(bundle: Bundle, count: int, size: Size | None = None) -> UInt8Array:
    """Different pictures of the network's input, or of the top left part of it: uint8 (count, h, w, 3)."""
    whole = reference_input(bundle.config.preprocessing).pixels
    shifted = [np.roll(whole, 11 * number, axis=1) for number in range(count)]
    height, width = whole.shape[:2] if size is None else (size.height, size.width)
    return np.ascontiguousarray(np.stack(shifted)[:, :height, :width])


def precisions() -> tuple[Precision, ...]:
    """Those that a CPU has instructions for."""
    return (
        Precision.EXACT,
        Precision.FP32,
        *([Precision.BF16] if onednn_accelerates(torch.bfloat16) else []),
    )


def _batch(pixels: UInt8Array) -> Batch:
    height, width = pixels.shape[1:3]
    size = Size(height, width)
    return Batch(pixels, (Geometry(size, size),) * len(pixels), (PARAMS,) * len(pixels))


def _by_class(output: ClassifyOutput) -> npt.NDArray[np.float32]:
    scores: npt.NDArray[np.float32] = output.scores[np.argsort(output.indices)]
    return scores


def _most(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max(initial=0.0))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--threads", type=int, default=2, help="the largest number of threads (default: 2)")
    threads = range(1, options.parse_args().threads + 1)
    print("| model | precision | alone or in a batch of 2 to 32 | on another number of cores |")
    print("|---|---|---|---|")
    for name in bundle_names(None):
        bundle = read_bundle(find_bundle(name, EMBEDDED_DIR))
        for precision in precisions():
            predictor = make_predictor(bundle, CPU, precision, load_network(bundle))
            pixels = pictures(bundle, MOST)
            torch.set_num_threads(1)
            by_batch = batch_difference(predictor, pixels, range(1, MOST + 1))
            by_threads = thread_difference(predictor, pixels[:4], threads)
            print(f"| `{name}` | {precision} | {_text(by_batch)} | {_text(by_threads)} |", flush=True)


def _text(found: Difference) -> str:
    parts = {"": found.score, " px": found.px, " of the pixels": found.pixels}
    return ", ".join(f"{value:.0e}{unit}" for unit, value in parts.items() if value) or "equal"


if __name__ == "__main__":
    from service.worker.compute_libraries import configure_libraries

    configure_libraries()
    main()
