"""How a network is run: exactly, or as fast as its answers allow, which is measured."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf

import numpy as np
import torch
from torch import nn

from model.bundle import Bundle, BundleConfig
from model.net.cpu.onednn import onednn_accelerates
from model.net.weights import DTYPES, DtypeName
from model.postprocess.results import postprocess
from model.predictor import Optimisations, Predictor
from model.reference import REFERENCE_PARAMS, mismatch, reference_input, summarise
from model.types import Batch, ClassifyResult, ModelInput, Result

TIMED_ROUNDS = 10
TIMING_S = 0.5
"""After this no further round is begun; a large network on a CPU has one."""


class Precision(StrEnum):
    """`exact`: float32 in the authors' own order of operations. The others: that precision in the fastest order."""

    EXACT = "exact"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


DTYPE_NAMES: dict[Precision, DtypeName] = {
    Precision.EXACT: "fp32",
    Precision.FP32: "fp32",
    Precision.FP16: "fp16",
    Precision.BF16: "bf16",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """What was found of a precision: the fewest seconds for a picture, and why its answers will not do, or None."""

    precision: Precision
    predictor: Predictor
    seconds: float
    mismatch: str | None


@dataclass(frozen=True, slots=True)
class Selection:
    """The predictor to serve with, and what was tried."""

    predictor: Predictor
    precision: Precision
    trials: tuple[Trial, ...]


def make_predictor(bundle: Bundle, device: torch.device, precision: Precision, network: nn.Module) -> Predictor:
    """A bundle's predictor in a precision. The network is not the caller's any more. Raises as `Predictor`."""
    dtype = DTYPE_NAMES[precision]
    if precision is Precision.EXACT:
        optimisations = Optimisations()
    else:
        onednn = device.type == "cpu" and onednn_accelerates(DTYPES[dtype])
        optimisations = Optimisations(channels_last=True, folded=True, onednn=onednn)
    return Predictor(bundle, device, dtype, optimisations, network)


def select_precision(bundle: Bundle, device: torch.device, network: nn.Module) -> Selection:
    """The fastest precision whose answers stay within the bundle's reference tolerances of the `exact` answers.

    The answers are those on the reference picture, on its mirror image and on one half as bright; a classifier's
    first label must be the same. Precisions that the device has no instructions for are not tried.

    Raises:
        as `Predictor`.
    """
    config = bundle.config
    pictures = _pictures(config)
    exact = make_predictor(bundle, device, Precision.EXACT, copy.deepcopy(network))
    expected = _results(exact, config, pictures)
    trials: list[Trial] = []
    for precision in _candidates(device):
        predictor = make_predictor(bundle, device, precision, copy.deepcopy(network))
        found = _results(predictor, config, pictures)
        mismatches = (_mismatch(one, other) for one, other in zip(found, expected, strict=True))
        trials.append(Trial(precision, predictor, inf, next(filter(None, mismatches), None)))
    trials = _timed(trials, _batch(pictures[0]))
    fit = [trial for trial in trials if trial.mismatch is None]
    if not fit:  # rounding alone changes what it answers
        return Selection(exact, Precision.EXACT, tuple(trials))
    best = min(fit, key=lambda trial: trial.seconds)
    return Selection(best.predictor, best.precision, tuple(trials))


def _candidates(device: torch.device) -> tuple[Precision, ...]:
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return (Precision.FP32, Precision.FP16, *([Precision.BF16] if bf16 else []))
    return (Precision.FP32, *([Precision.BF16] if onednn_accelerates(torch.bfloat16) else []))


def _pictures(config: BundleConfig) -> Sequence[ModelInput]:
    plain = reference_input(config.preprocessing)
    height, width = plain.geometry.content.height, plain.geometry.content.width
    mirrored = plain.pixels.copy()
    # What is padding stays where it is.
    mirrored[:height, :width] = plain.pixels[:height, :width][:, ::-1]
    return (plain, ModelInput(mirrored, plain.geometry), ModelInput(plain.pixels // 2, plain.geometry))


def _results(predictor: Predictor, config: BundleConfig, pictures: Sequence[ModelInput]) -> list[Result]:
    results = []
    for picture in pictures:
        (raw,) = predictor.predict(_batch(picture))
        results.append(postprocess(raw, config, picture.geometry.original))
    return results


def _batch(picture: ModelInput) -> Batch:
    return Batch(np.stack((picture.pixels,)), (picture.geometry,), (REFERENCE_PARAMS,))


def _timed(trials: Sequence[Trial], batch: Batch) -> list[Trial]:
    """The fewest seconds of each, taken in turn: whatever else the machine does only makes a run slower."""
    fewest = [inf] * len(trials)
    until_s = time.monotonic() + TIMING_S
    for number in range(TIMED_ROUNDS):
        if number and time.monotonic() > until_s:
            break
        for at, trial in enumerate(trials):
            started_s = time.perf_counter()
            trial.predictor.predict(batch)
            fewest[at] = min(fewest[at], time.perf_counter() - started_s)
    return [replace(trial, seconds=seconds) for trial, seconds in zip(trials, fewest, strict=True)]


def _mismatch(found: Result, expected: Result) -> str | None:
    if isinstance(found, ClassifyResult) and isinstance(expected, ClassifyResult):
        first, other = expected.labels[0].index, found.labels[0].index
        if first != other:
            return f"class {other} comes first, in fp32 class {first} does"
    return mismatch(found, summarise(expected))
