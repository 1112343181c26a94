"""The reference check: a picture, and the answer to it that a model's bundle has.

A worker is ready once each of its models gives that answer through the whole path. The tolerances pass bf16 and other
kernels; they fail a wrong colour order, missing normalisation or damaged weights. Torch-free: front-ends read bundles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from pydantic import Field

from model.decode import DecodeLimits, decode
from model.preprocess import prepare
from model.spec import Preprocessing, Spec
from model.types import (
    Box,
    ClassifyResult,
    DetectResult,
    LabelMapArray,
    ModelInput,
    QueryParams,
    Result,
    SegmentResult,
    Task,
)

REFERENCE_PICTURE = Path(__file__).parent / "bundles" / "reference.jpg"
"""A photograph of a cat, Chelsea, by Stefan van der Walt (CC0): the input of every model's reference check."""

SCORE_TOLERANCE = 0.05
BOX_IOU = 0.8
GRID_AGREEMENT = 0.97
GRID = 32
"""Label maps are compared at the cell centres of a GRID x GRID raster."""

LIMITS = DecodeLimits(max_bytes=1 << 20, max_pixels=1_000_000)
REFERENCE_PARAMS = QueryParams(top_k=5, max_detections=5, masks=False)
_CLASSIFY_PARAMS = msgspec.structs.replace(REFERENCE_PARAMS, score_threshold=-1.0)


def reference_params(task: Task) -> QueryParams:
    """Parameters of the reference check. A classifier's threshold could leave no label to compare."""
    return _CLASSIFY_PARAMS if task is Task.CLASSIFY else REFERENCE_PARAMS


class ScoredIndex(Spec):
    """A class index with its probability, 0 to 1."""

    index: int
    score: float


class ScoredBox(Spec):
    """A detection: class index, score, xmin, ymin, xmax, ymax in pixels of the reference picture."""

    index: int
    score: float
    box: tuple[float, float, float, float]


class ClassifyReference(Spec):
    """The most probable classes, by falling probability."""

    task: Literal["classify"] = "classify"
    labels: tuple[ScoredIndex, ...]


class DetectReference(Spec):
    """The best detections, by falling score, without masks."""

    task: Literal["detect"] = "detect"
    detections: tuple[ScoredBox, ...]


class SegmentReference(Spec):
    """The label map sampled on the raster; each string of `grid` is a row of class indices, separated by spaces."""

    task: Literal["segment"] = "segment"
    grid: tuple[str, ...]


ReferenceAnswer = Annotated[ClassifyReference | DetectReference | SegmentReference, Field(discriminator="task")]


def summarise(result: Result) -> ReferenceAnswer:
    """The reference answer for a bundle's config: scores to 5 digits, boxes to 2."""
    match result:
        case ClassifyResult():
            return ClassifyReference(
                labels=tuple(ScoredIndex(index=label.index, score=round(label.score, 5)) for label in result.labels)
            )
        case DetectResult():
            return DetectReference(
                detections=tuple(
                    ScoredBox(
                        index=detection.index,
                        score=round(detection.score, 5),
                        box=(
                            round(detection.box.xmin, 2),
                            round(detection.box.ymin, 2),
                            round(detection.box.xmax, 2),
                            round(detection.box.ymax, 2),
                        ),
                    )
                    for detection in result.detections
                )
            )
        case SegmentResult():
            return SegmentReference(grid=tuple(" ".join(map(str, row)) for row in _grid(result.label_map)))


def mismatch(result: Result, reference: ReferenceAnswer) -> str | None:
    """Why `result` is not within the tolerances of `reference`; None if it is.

    Comparisons fail closed: a number that is not finite agrees with none.
    """
    if not all(map(math.isfinite, _numbers(result))):
        return "the answer has numbers that are not finite (NaN or infinity)"
    match result, reference:
        case ClassifyResult(), ClassifyReference():
            return _labels_mismatch(result, reference)
        case DetectResult(), DetectReference():
            return _detections_mismatch(result, reference)
        case SegmentResult(), SegmentReference():
            expected = np.array([[int(value) for value in row.split()] for row in reference.grid])
            share = float((expected == _grid(result.label_map)).mean())
            if share >= GRID_AGREEMENT:
                return None
            return f"{share:.1%} of the reference label map's raster agree; {GRID_AGREEMENT:.0%} must"
        case _:
            return f"the answer is a {type(result).__name__}, the reference is for {reference.task}"


def reference_input(preprocessing: Preprocessing) -> ModelInput:
    """The reference picture, decoded and preprocessed for a model."""
    return prepare(decode(REFERENCE_PICTURE.read_bytes(), LIMITS, preprocessing.reader), preprocessing)


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(first.xmax, second.xmax) - max(first.xmin, second.xmin)
    height = min(first.ymax, second.ymax) - max(first.ymin, second.ymin)
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box.xmax - box.xmin) * (box.ymax - box.ymin) for box in (first, second))
    return shared / max(areas - shared, 1e-9)


def _numbers(result: Result) -> Iterator[float]:
    """The scores and coordinates of a result."""
    match result:
        case ClassifyResult():
            yield from (label.score for label in result.labels)
        case DetectResult():
            for detection in result.detections:
                box = detection.box
                yield from (detection.score, box.xmin, box.ymin, box.xmax, box.ymax)


def _labels_mismatch(result: ClassifyResult, reference: ClassifyReference) -> str | None:
    found = {label.index: label.score for label in result.labels}
    floor = min(found.values(), default=0.0)
    for expected in reference.labels:
        # A class that is not in the top k scores at most as much as the last of them.
        score = found.get(expected.index, floor)
        if not abs(score - expected.score) <= SCORE_TOLERANCE:
            return f"class {expected.index} scores {score:.3f}; the reference is {expected.score:.3f}"
    return None


def _detections_mismatch(result: DetectResult, reference: DetectReference) -> str | None:
    # If the answer has as many detections as allowed, those cut off score at most as much as its last one.
    cut = len(result.detections) >= REFERENCE_PARAMS.max_detections
    floor = result.detections[-1].score if cut else -SCORE_TOLERANCE
    for expected in reference.detections:
        if expected.score < floor + SCORE_TOLERANCE:
            continue  # may have been cut off
        near = (
            detection
            for detection in result.detections
            if detection.index == expected.index
            and abs(detection.score - expected.score) <= SCORE_TOLERANCE
            and iou(detection.box, Box(*expected.box)) >= BOX_IOU
        )
        if next(near, None) is None:
            return f"the reference detection of class {expected.index}, score {expected.score:.3f}, is missing"
    return None


def _grid(label_map: LabelMapArray) -> LabelMapArray:
    height, width = label_map.shape
    rows = ((np.arange(GRID) + 0.5) * height / GRID).astype(int)
    columns = ((np.arange(GRID) + 0.5) * width / GRID).astype(int)
    grid: LabelMapArray = label_map[np.ix_(rows, columns)]
    return grid
