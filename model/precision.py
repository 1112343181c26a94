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

from model.bundle import Bundle, BundleConfig
from model.net.build import Network
from model.net.cpu.onednn import onednn_is_quick_at
from model.net.weights import DTYPES, Precision
from model.postprocess.results import finish
from model.predictor import Optimisations, Predictor
from model.reference import REFERENCE_PARAMS, disagreement, reference_input, summarise
from model.types import Batch, ClassifyResult, ModelInput, Result

TIMED_ROUNDS = 10
TIMING_S = 0.5
"""After this no further round is begun; a large network on a CPU has one."""


class Mode(StrEnum):
    """`exact`: float32 in the authors' own order of operations. The others: that precision in the fastest order."""

    EXACT = "exact"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


PRECISIONS: dict[Mode, Precision] = {Mode.EXACT: "fp32", Mode.FP32: "fp32", Mode.FP16: "fp16", Mode.BF16: "bf16"}


@dataclass(frozen=True, slots=True)
class Trial:
    """What was found of a mode: the fewest seconds for a picture, and why its answers will not do, or None."""

    mode: Mode
    predictor: Predictor
    seconds: float
    objection: str | None


@dataclass(frozen=True, slots=True)
class Choice:
    """The predictor to serve with, and what was tried."""

    predictor: Predictor
    mode: Mode
    trials: tuple[Trial, ...]


def make_predictor(bundle: Bundle, device: torch.device, mode: Mode, network: Network) -> Predictor:
    """A bundle's predictor in a mode. The network is not the caller's any more. Raises as `Predictor`."""
    precision = PRECISIONS[mode]
    if mode is Mode.EXACT:
        optimisations = Optimisations()
    else:
        onednn = device.type == "cpu" and onednn_is_quick_at(DTYPES[precision])
        optimisations = Optimisations(channels_last=True, folded=True, onednn=onednn)
    return Predictor(bundle, device, precision, optimisations, network)


def fastest(bundle: Bundle, device: torch.device, network: Network) -> Choice:
    """The mode that answers soonest of those that answer as float32 does, within what the bundle's reference allows.

    The answers are those on the reference picture, on its mirror image and on one half as bright; a classifier's
    first label must be the same. Modes that the device has no instructions for are not tried.

    Raises:
        as `Predictor`.
    """
    config = bundle.config
    pictures = _pictures(config)
    exact = make_predictor(bundle, device, Mode.EXACT, copy.deepcopy(network))
    expected = _results(exact, config, pictures)
    trials: list[Trial] = []
    for mode in _modes(device):
        predictor = make_predictor(bundle, device, mode, copy.deepcopy(network))
        found = _results(predictor, config, pictures)
        objections = (_objection(one, other) for one, other in zip(found, expected, strict=True))
        trials.append(Trial(mode, predictor, inf, next(filter(None, objections), None)))
    trials = _timed(trials, _batch(pictures[0]))
    fit = [trial for trial in trials if trial.objection is None]
    if not fit:  # rounding alone changes what it answers
        return Choice(exact, Mode.EXACT, tuple(trials))
    best = min(fit, key=lambda trial: trial.seconds)
    return Choice(best.predictor, best.mode, tuple(trials))


def _modes(device: torch.device) -> tuple[Mode, ...]:
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return (Mode.FP32, Mode.FP16, *([Mode.BF16] if bf16 else []))
    return (Mode.FP32, *([Mode.BF16] if onednn_is_quick_at(torch.bfloat16) else []))


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
        results.append(finish(raw, config, picture.geometry.original))
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


def _objection(found: Result, expected: Result) -> str | None:
    if isinstance(found, ClassifyResult) and isinstance(expected, ClassifyResult):
        first, other = expected.labels[0].index, found.labels[0].index
        if first != other:
            return f"class {other} comes first, in fp32 class {first} does"
    return disagreement(found, summarise(expected))
