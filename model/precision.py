"""Precisions that a network can run in, and the choice of the fastest one that is accurate enough."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import median, quantiles

import numpy as np
import torch
from torch import nn

from model.bundle import Bundle, BundleConfig
from model.errors import BundleInvalid, NotFinite
from model.net.cpu.int8 import int8_accelerates
from model.net.cpu.onednn import bf16_products_gain, onednn_accelerates
from model.net.weights import DTYPES, DtypeName
from model.postprocess.results import postprocess, require_finite
from model.predictor import Optimisations, Predictor
from model.reference import mismatch, reference_input, reference_params, summarise
from model.types import Batch, ClassifyResult, ModelInput, Result

TIMED_ROUNDS = 15
MIN_TIMED_ROUNDS = 5
TIMING_S = 2.0
"""After the least number of rounds, none starts after this time."""
GAIN = 0.15
"""A precision is taken for its speed only if it saves this share of the time: less is lost in the noise of a busy
machine, and replicas would choose differently."""

MAX_SPREAD = 0.15
"""Of the comparisons of a trustworthy measurement."""


class Precision(StrEnum):
    """`exact`: float32 in the authors' order of operations, on a CPU picture by picture. The others: that dtype, in the
    fastest order. `int8`: only of bundles with such weights, and on CPUs; layers without them run in bf16 where that is
    known to be faster, else in fp32."""

    EXACT = "exact"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


DTYPE_NAMES: dict[Precision, DtypeName] = {
    Precision.EXACT: "fp32",
    Precision.FP32: "fp32",
    Precision.FP16: "fp16",
    Precision.BF16: "bf16",
    Precision.INT8: "fp32",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """A measured precision: the seconds of one picture in each round, and why it is not accurate enough, or None."""

    precision: Precision
    predictor: Predictor
    rounds: tuple[float, ...]
    mismatch: str | None


@dataclass(frozen=True, slots=True)
class Selection:
    """The predictor to serve with, and all trials."""

    predictor: Predictor
    precision: Precision
    trials: tuple[Trial, ...]

    @property
    def spread(self) -> float:
        """How far the rounds differ: the interquartile range of a precision's time by fp32's, divided by its median; of
        the precision with the largest. 0 where nothing was compared."""
        fit = [trial.rounds for trial in self.trials if trial.mismatch is None]
        return max((_spread(rounds, fit[0]) for rounds in fit[1:]), default=0.0)


def make_predictor(bundle: Bundle, device: torch.device, precision: Precision, network: nn.Module) -> Predictor:
    """A bundle's predictor in a precision. It takes ownership of `network`.

    Raises:
        BundleInvalid: `int8`, and the bundle has no such weights, or the device no instructions for them.
        As `Predictor`.
    """
    dtype = DTYPE_NAMES[precision]
    if precision is Precision.INT8:
        _require_int8(bundle, device)
        if bf16_products_gain():
            dtype = "bf16"
    if precision is Precision.EXACT:
        # cuDNN chooses algorithms by itself, and a GPU needs batches.
        optimisations = Optimisations(by_row=device.type == "cpu")
    else:
        onednn = device.type == "cpu" and onednn_accelerates(DTYPES[dtype])
        int8 = precision is Precision.INT8
        optimisations = Optimisations(channels_last=True, folded=True, onednn=onednn, int8=int8)
    return Predictor(bundle, device, dtype, optimisations, network)


def select_precision(
    bundle: Bundle, device: torch.device, network: nn.Module, before_each: Callable[[], None] = lambda: None
) -> Selection:
    """The fastest precision whose answers stay within the bundle's reference tolerances of the `exact` answers; fp32,
    unless another one of these is faster by `GAIN`.

    Answers are compared on the reference picture, its mirror image, and a copy of half the brightness. A classifier's
    top class must be equal. Precisions without native instructions on the device are not tried. If none is accurate
    enough, `exact` is selected. `before_each` is called before each run of a network, and may raise.

    Raises as `Predictor`, and what `before_each` raises.
    """
    config = bundle.config
    pictures = comparison_pictures(config)
    exact = make_predictor(bundle, device, Precision.EXACT, copy.deepcopy(network))
    try:
        expected = _results(exact, config, pictures, before_each)
    except NotFinite:  # no precision helps; the self-check fails
        return Selection(exact, Precision.EXACT, ())
    trials = _timed(
        list(_trials(bundle, device, network, expected, before_each)), _batch(config, pictures[0]), before_each
    )
    best = choose(trials)
    if best is None:  # rounding alone changes its answers
        return Selection(exact, Precision.EXACT, tuple(trials))
    return Selection(best.predictor, best.precision, tuple(trials))


def compare_precisions(bundle: Bundle, device: torch.device, network: nn.Module) -> dict[Precision, str | None]:
    """Why each precision's answers are not within the tolerances of the `exact` ones; None where they are.

    As `select_precision` compares them. Raises as `Predictor`, and NotFinite if the `exact` answers are not finite.
    """
    exact = make_predictor(bundle, device, Precision.EXACT, copy.deepcopy(network))
    expected = _results(exact, bundle.config, comparison_pictures(bundle.config))
    return {trial.precision: trial.mismatch for trial in _trials(bundle, device, network, expected)}


def _trials(
    bundle: Bundle,
    device: torch.device,
    network: nn.Module,
    expected: Sequence[Result],
    before_each: Callable[[], None] = lambda: None,
) -> Iterator[Trial]:
    """A trial of each candidate, not timed yet; `expected` are the `exact` answers."""
    pictures = comparison_pictures(bundle.config)
    for precision in candidates_of(bundle, device):
        predictor = make_predictor(bundle, device, precision, copy.deepcopy(network))
        try:
            results = _results(predictor, bundle.config, pictures, before_each)
        except NotFinite as error:
            yield Trial(precision, predictor, (), error.detail)
            continue
        mismatches = (disagreement(result, other) for result, other in zip(results, expected, strict=True))
        yield Trial(precision, predictor, (), next(filter(None, mismatches), None))


def choose(trials: Sequence[Trial]) -> Trial | None:
    """The trial to serve with: the first that is accurate enough, unless another one is faster by `GAIN`. None: none
    is accurate enough.

    Times are compared round by round, because load on the machine changes, and the median of the comparisons counts.
    """
    fit = [trial for trial in trials if trial.mismatch is None]
    if not fit:
        return None
    best, least = fit[0], 1 - GAIN
    for trial in fit[1:]:
        share = median(seconds / first for seconds, first in zip(trial.rounds, fit[0].rounds, strict=True))
        if share <= least:
            best, least = trial, share
    return best


def candidates(device: torch.device) -> tuple[Precision, ...]:
    """The precisions besides `exact` that a device has native instructions for; fp32 first."""
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return (Precision.FP32, Precision.FP16, *([Precision.BF16] if bf16 else []))
    return (Precision.FP32, *([Precision.BF16] if onednn_accelerates(torch.bfloat16) else []))


def candidates_of(bundle: Bundle, device: torch.device) -> tuple[Precision, ...]:
    """`candidates`, and `int8` if the bundle has such weights and the device instructions for them."""
    return (*candidates(device), *([Precision.INT8] if _int8_problem(bundle, device) is None else []))


def _require_int8(bundle: Bundle, device: torch.device) -> None:
    if problem := _int8_problem(bundle, device):
        raise BundleInvalid(f"model {bundle.config.name} cannot run in int8: {problem}")


def _int8_problem(bundle: Bundle, device: torch.device) -> str | None:
    if bundle.config.precision != "int8":
        return "its weights are not int8; `convmlp models quantize` makes a model of such weights"
    if device.type != "cpu" or not int8_accelerates():
        return (
            "that needs a CPU with instructions for products of bytes (AVX-512 VNNI or AMX); "
            "its other precisions run everywhere"
        )
    return None


def comparison_pictures(config: BundleConfig) -> Sequence[ModelInput]:
    """The inputs on which answers are compared: the reference picture, its mirror image, and at half the brightness."""
    original = reference_input(config.preprocessing)
    height, width = original.geometry.content.height, original.geometry.content.width
    mirrored = original.pixels.copy()
    # Padding stays to the right and below.
    mirrored[:height, :width] = original.pixels[:height, :width][:, ::-1]
    return (original, ModelInput(mirrored, original.geometry), ModelInput(original.pixels // 2, original.geometry))


def _spread(rounds: Sequence[float], first: Sequence[float]) -> float:
    shares = [seconds / other for seconds, other in zip(rounds, first, strict=True)]
    low, middle, high = quantiles(shares, n=4)
    return (high - low) / middle


def _results(
    predictor: Predictor,
    config: BundleConfig,
    pictures: Sequence[ModelInput],
    before_each: Callable[[], None] = lambda: None,
) -> list[Result]:
    results = []
    for picture in pictures:
        before_each()
        (raw,) = predictor.predict(_batch(config, picture))
        results.append(postprocess(require_finite(raw), config, picture.geometry.original))
    return results


def _batch(config: BundleConfig, picture: ModelInput) -> Batch:
    return Batch(np.stack((picture.pixels,)), (picture.geometry,), (reference_params(config.task),))


def _timed(trials: Sequence[Trial], batch: Batch, before_each: Callable[[], None]) -> list[Trial]:
    """The trials with their times. They alternate within a round, so that a change of load meets all of them."""
    rounds: list[list[float]] = [[] for _ in trials]
    end_s = time.monotonic() + TIMING_S
    for number in range(TIMED_ROUNDS):
        if number >= MIN_TIMED_ROUNDS and time.monotonic() > end_s:
            break
        for trial, seconds in zip(trials, rounds, strict=True):
            before_each()
            started_s = time.perf_counter()
            trial.predictor.predict(batch)
            seconds.append(time.perf_counter() - started_s)
    return [replace(trial, rounds=tuple(seconds)) for trial, seconds in zip(trials, rounds, strict=True)]


def disagreement(found: Result, expected: Result) -> str | None:
    """Why an answer is not within the reference's tolerances of the `exact` one; None if it is."""
    if isinstance(found, ClassifyResult) and isinstance(expected, ClassifyResult):
        first, other = expected.labels[0].index, found.labels[0].index
        if first != other:
            return f"the top class is {other}; in fp32 it is {first}"
    return mismatch(found, summarise(expected))
