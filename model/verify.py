"""Checks of a bundle before it serves: what a worker checks when it starts, and what only a person can judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from torch import nn

from model.bundle import Bundle, BundleConfig, read_bundle
from model.errors import BundleInvalid, NotFinite
from model.precision import compare_precisions
from model.predictor import load_network, reference_result
from model.reference import ClassifyReference, DetectReference, ReferenceAnswer, SegmentReference, mismatch
from model.zoo.pipeline import describe


class Outcome(StrEnum):
    """`NOTE`: the model can serve, and a person should read the detail."""

    OK = "ok"
    NOTE = "note"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was checked, its outcome, and what was found or is wrong."""

    subject: str
    outcome: Outcome
    detail: str


def verify_bundle(folder: Path, device: torch.device) -> Iterator[Check]:
    """Check the bundle in a folder. A check whose precondition failed is left out.

    Raises:
        torch.OutOfMemoryError: the network does not fit on the device.
    """
    try:
        bundle = read_bundle(folder)
    except BundleInvalid as error:
        yield Check("files", Outcome.FAILED, error.detail)
        return
    config = bundle.config
    megabytes = bundle.weights_path.stat().st_size / 1e6
    yield Check(
        "files", Outcome.OK, f"{megabytes:.1f} MB, {config.precision}, sha256 {config.weights_sha256} as expected"
    )
    yield _labels(config)
    yield _pipeline(config)
    try:
        network = load_network(bundle)
    except BundleInvalid as error:
        yield Check("weights", Outcome.FAILED, error.detail)
        return
    finite = _weights(network)
    yield finite
    if finite.outcome is Outcome.OK:
        yield from _answers(bundle, device, network)


def _labels(config: BundleConfig) -> Check:
    labels = config.labels
    listed = f"{len(labels)}: {', '.join(labels[:3])}{', …' if len(labels) > 3 else ''}"
    if blank := [index for index, label in enumerate(labels) if not label.strip()]:
        return Check("labels", Outcome.FAILED, f"the names of classes {', '.join(map(str, blank[:5]))} are blank")
    if labels == tuple(f"class {index}" for index in range(len(labels))):
        return Check("labels", Outcome.NOTE, f"{listed}; the import had no names: --labels FILE gives them")
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        return Check("labels", Outcome.NOTE, f"{listed}; several classes have the name {', '.join(twice[:3])}")
    return Check("labels", Outcome.OK, listed)


def _pipeline(config: BundleConfig) -> Check:
    text = describe(config.preprocessing, config.postprocessing)
    if min(config.preprocessing.normalisation.std) <= 0:
        return Check("pipeline", Outcome.FAILED, f"{text}; a std must be above 0")
    return Check("pipeline", Outcome.OK, text)


def _weights(network: nn.Module) -> Check:
    tensors = network.state_dict()
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            return Check("weights", Outcome.FAILED, f"{name} has values that are not finite (NaN or infinity)")
    return Check("weights", Outcome.OK, f"all values of the {len(tensors)} tensors are finite")


def _answers(bundle: Bundle, device: torch.device, network: nn.Module) -> Iterator[Check]:
    """The answer to the reference picture, and how each precision agrees with it."""
    reference = bundle.config.reference
    try:
        problem = mismatch(reference_result(bundle), reference)
    except NotFinite as error:
        yield Check("reference", Outcome.FAILED, error.detail)
        return
    if problem is not None:
        yield Check("reference", Outcome.FAILED, f"{problem}; import the model again")
    elif _is_empty(reference):
        yield Check("reference", Outcome.NOTE, "as expected, but empty: nothing is found in the picture")
    else:
        yield Check("reference", Outcome.OK, "the answer to the reference picture is as expected")
    for precision, disagreement in compare_precisions(bundle, device, network).items():
        if disagreement is None:
            yield Check(precision.value, Outcome.OK, "agrees with the exact answers")
        else:
            yield Check(precision.value, Outcome.NOTE, f"{disagreement}; it is not selected to serve")


def _is_empty(reference: ReferenceAnswer) -> bool:
    match reference:
        case ClassifyReference():
            return not reference.labels
        case DetectReference():
            return not reference.detections
        case SegmentReference():
            return not reference.grid
