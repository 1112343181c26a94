"""How good a bundle is on held-out photographs, through the very pipeline that serves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from model.bundle import BundleConfig
from model.predictor import Predictor
from model.prove import answer
from model.spec import DetectPostSpec
from model.training.data import IGNORE, Record, load_label_maps
from model.training.figures import (
    Float64Array,
    average_precision,
    calibration_error,
    intersection_over_union,
    judge,
    precision_and_recall,
    top_k_accuracy,
)
from model.types import (
    BoolArray,
    ClassifyResult,
    Detection,
    DetectResult,
    IntArray,
    QueryParams,
    Result,
    SegmentResult,
    Task,
)

CURVE_FROM = 0.01
"""The precision-recall curve is drawn from this score on: low, since calibrated scores are."""
CONFIDENT_FROM = 0.05
"""Detections below are shown to nobody, and do not count for calibration, which their number would flatter."""


def measure(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> dict[str, float]:
    """The task's figures, rounded to four digits.

    They are top1, top5 and species (cat or dog, by the first label); or ap50, also of each class, with precision
    and recall at the model's own threshold; or miou, the IoU of each class and the share of right pixels. Where
    answers have scores, ece is their expected calibration error.

    Records without a head's box are left out of detection, those without a mask out of segmentation.
    """
    match config.task:
        case Task.CLASSIFY:
            probabilities = class_probabilities(predictor, config, records)
            breeds = np.array([one.breed for one in records])
            best = probabilities.argmax(axis=1)
            kinds = {one.breed: one.species for one in records}
            right_kind = [kinds.get(breed) == one.species for breed, one in zip(best.tolist(), records, strict=True)]
            figures = top_k_accuracy(probabilities, breeds)
            figures |= {"species": float(np.mean(right_kind))}
            figures |= {"ece": calibration_error(probabilities.max(axis=1), best == breeds)}
        case Task.DETECT:
            found = detections(predictor, config, records)
            assert isinstance(config.postprocessing, DetectPostSpec)
            figures = average_precision(found, records, config.labels)
            figures |= precision_and_recall(found, records, config.labels, config.postprocessing.score_threshold)
            figures |= {"ece": calibration_error(*judged(found, records, config.labels))}
        case Task.SEGMENT:
            figures = intersection_over_union(pixel_confusion(predictor, config, records), config.labels)
    return {name: round(value, 4) for name, value in figures.items()}


def class_probabilities(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> Float64Array:
    """A classifier's answers: (N, classes)."""
    found = np.zeros((len(records), len(config.labels)))
    for row, result in zip(found, _answers(predictor, config, records, QueryParams(top_k=found.shape[1])), strict=True):
        assert isinstance(result, ClassifyResult)
        for label in result.labels:
            row[label.index] = label.score
    return found


def detections(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> list[tuple[Detection, ...]]:
    """A detector's answers of a score above CURVE_FROM."""
    results = _answers(predictor, config, records, QueryParams(score_threshold=CURVE_FROM))
    return [result.detections for result in results if isinstance(result, DetectResult)]


def judged(
    found: Sequence[Sequence[Detection]], records: Sequence[Record], labels: Sequence[str]
) -> tuple[Float64Array, BoolArray]:
    """Detections' scores (K,), and whether each is right: class, IoU of at least 0.5, first on its head.

    Those below CONFIDENT_FROM are left out.
    """
    pairs = [pair for index in range(len(labels)) for pair in judge(found, records, index, 0.5)[0]]
    kept = [pair for pair in pairs if pair[0] >= CONFIDENT_FROM]
    return np.array([score for score, _ in kept]), np.array([hit for _, hit in kept], np.bool_)


def pixel_confusion(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> IntArray:
    """Known pixels of the records that have a mask, counted by [truth, answer]: (classes, classes)."""
    masked = [one for one in records if one.mask is not None]
    confusion = np.zeros((len(config.labels), len(config.labels)), np.int64)
    results = _answers(predictor, config, masked, QueryParams())
    for true, result in zip(load_label_maps(masked).values(), results, strict=True):
        assert isinstance(result, SegmentResult)
        known = true != IGNORE
        np.add.at(confusion, (true[known], result.label_map[known]), 1)
    return confusion


def _answers(
    predictor: Predictor, config: BundleConfig, records: Sequence[Record], params: QueryParams
) -> Iterator[Result]:
    return (answer(predictor, config, one.path.read_bytes(), params) for one in records)
