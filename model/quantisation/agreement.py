"""How far a model's answers agree with those of another one, as figures of the task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from model.bundle import BundleConfig
from model.metrics import (
    ScoredBox,
    TrueBox,
    confusion_matrix,
    intersection_over_union,
    voc_average_precision,
)
from model.postprocess.results import postprocess, require_finite
from model.predictor import Predictor
from model.reference import reference_params
from model.spec import DetectPostSpec
from model.types import Batch, ClassifyResult, DetectResult, ModelInput, Result, SegmentResult, Task

MIN_SCORE = 0.01
"""Detections below are not compared."""
MAX_DETECTIONS = 100

MAIN_FIGURE = {Task.CLASSIFY: "top1", Task.DETECT: "ap50", Task.SEGMENT: "miou"}
"""The one that is held to a bound."""


def batch_of(config: BundleConfig, model_input: ModelInput) -> Batch:
    """A batch of one input, with the parameters that answers are compared with."""
    params = reference_params(config.task)
    if config.task is Task.DETECT:
        params = msgspec.structs.replace(params, score_threshold=MIN_SCORE, max_detections=MAX_DETECTIONS)
    return Batch(np.stack((model_input.pixels,)), (model_input.geometry,), (params,))


def answers(
    predictor: Predictor,
    config: BundleConfig,
    inputs: Sequence[ModelInput],
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[Result]:
    """The results of inputs, one by one.

    Raises:
        NotFinite: an output has NaN or infinity.
    """
    found = []
    for number, model_input in enumerate(inputs, start=1):
        (raw,) = predictor.predict(batch_of(config, model_input))
        found.append(postprocess(require_finite(raw), config, model_input.geometry.original))
        on_progress(number)
    return found


def agreement(found: Sequence[Result], expected: Sequence[Result], config: BundleConfig) -> dict[str, float]:
    """Shares of 1, to four digits; `expected` are taken for the truth.

    Classification: `top1`, the share of the pictures with the same first label. Detection: `ap50`, the average
    precision at IoU 0.5 where the expected detections above the model's threshold are the objects; 1 where there are
    none. Segmentation: `miou` and `pixels`, the mean IoU and the share of the pixels with the same class.
    """
    match config.task:
        case Task.CLASSIFY:
            figures = {"top1": float(np.mean([_first(one) == _first(other) for one, other in _pairs(found, expected)]))}
        case Task.DETECT:
            figures = {"ap50": _box_agreement(found, expected, config)}
        case Task.SEGMENT:
            figures = _pixel_agreement(found, expected, config)
    return {name: round(value, 4) for name, value in figures.items()}


def _pairs(found: Sequence[Result], expected: Sequence[Result]) -> list[tuple[Result, Result]]:
    return list(zip(found, expected, strict=True))


def _first(result: Result) -> int:
    assert isinstance(result, ClassifyResult)
    return result.labels[0].index


def _box_agreement(found: Sequence[Result], expected: Sequence[Result], config: BundleConfig) -> float:
    assert isinstance(config.postprocessing, DetectPostSpec)
    threshold = config.postprocessing.score_threshold
    boxes, truth = [], []
    for one, other in _pairs(found, expected):
        assert isinstance(one, DetectResult)
        assert isinstance(other, DetectResult)
        boxes.append([ScoredBox(detection.index, detection.score, detection.box) for detection in one.detections])
        truth.append(
            [TrueBox(detection.index, detection.box) for detection in other.detections if detection.score > threshold]
        )
    return voc_average_precision(boxes, truth, config.labels)["ap50"] if any(truth) else 1.0


def _pixel_agreement(found: Sequence[Result], expected: Sequence[Result], config: BundleConfig) -> dict[str, float]:
    classes = len(config.labels)
    confusion = np.zeros((classes, classes), np.int64)
    for one, other in _pairs(found, expected):
        assert isinstance(one, SegmentResult)
        assert isinstance(other, SegmentResult)
        confusion += confusion_matrix(other.label_map.astype(np.int64), one.label_map.astype(np.int64), classes)
    figures = intersection_over_union(confusion, config.labels)
    return {"miou": figures["miou"], "pixels": figures["pixel_accuracy"]}
