"""Accuracy of a bundle on held-out photographs, through the pipeline that serves requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from model.bundle import BundleConfig
from model.metrics import (
    Float64Array,
    ScoredBox,
    TrueBox,
    calibration_error,
    confusion_matrix,
    intersection_over_union,
    precision_and_recall,
    scored_matches,
    top_k_accuracy,
    voc_average_precision,
)
from model.predictor import Predictor, predict_image
from model.spec import DetectPostSpec
from model.training.data import IGNORE, Record, load_label_maps
from model.types import (
    ClassifyResult,
    Detection,
    DetectResult,
    IntArray,
    QueryParams,
    Result,
    SegmentResult,
    Task,
)

MIN_CURVE_SCORE = 0.01
"""Detections below are left out of the precision-recall curve; low, because calibrated scores are low."""


def measure(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> dict[str, float]:
    """The task's metrics, rounded to four digits.

    Classification: top1, top5; of pets, species (cat or dog, by the top label). Detection: ap50, also of each class;
    precision and recall at the model's threshold. Segmentation: miou, IoU of each class, pixel accuracy. With scores:
    ece, the expected calibration error.

    Records whose objects are not known are left out of detection; those without a mask, out of segmentation.
    """
    match config.task:
        case Task.CLASSIFY:
            probabilities = class_probabilities(predictor, config, records)
            breeds = np.array([record.label for record in records])
            best = probabilities.argmax(axis=1)
            kinds = {record.label: record.species for record in records}
            right_kind = [
                kinds.get(breed) == record.species for breed, record in zip(best.tolist(), records, strict=True)
            ]
            figures = top_k_accuracy(np.argsort(-probabilities, axis=1, kind="stable"), breeds)
            figures |= {"species": float(np.mean(right_kind))} if min(kinds.values()) >= 0 else {}
            figures |= {"ece": calibration_error(probabilities.max(axis=1), best == breeds)}
        case Task.DETECT:
            known = [record for record in records if record.objects is not None]
            found, truth = scored_boxes(detections(predictor, config, known)), true_boxes(known)
            assert isinstance(config.postprocessing, DetectPostSpec)
            classes = len(config.labels)
            figures = voc_average_precision(found, truth, config.labels)
            figures |= precision_and_recall(found, truth, classes, config.postprocessing.score_threshold)
            figures |= {"ece": calibration_error(*scored_matches(found, truth, classes))}
        case Task.SEGMENT:
            figures = intersection_over_union(pixel_confusion(predictor, config, records), config.labels)
    return {name: round(value, 4) for name, value in figures.items()}


def class_probabilities(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> Float64Array:
    """A classifier's probabilities: float64 (N, classes)."""
    found = np.zeros((len(records), len(config.labels)))
    for row, result in zip(found, _answers(predictor, config, records, QueryParams(top_k=found.shape[1])), strict=True):
        assert isinstance(result, ClassifyResult)
        for label in result.labels:
            row[label.index] = label.score
    return found


def detections(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> list[tuple[Detection, ...]]:
    """Each record's detections of a score above MIN_CURVE_SCORE."""
    results = _answers(predictor, config, records, QueryParams(score_threshold=MIN_CURVE_SCORE))
    return [result.detections for result in results if isinstance(result, DetectResult)]


def pixel_confusion(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> IntArray:
    """Confusion matrix of known pixels, [truth, answer]: int64 (classes, classes)."""
    masked = [record for record in records if record.mask is not None]
    confusion = np.zeros((len(config.labels), len(config.labels)), np.int64)
    results = _answers(predictor, config, masked, QueryParams())
    for true, result in zip(load_label_maps(masked).values(), results, strict=True):
        assert isinstance(result, SegmentResult)
        known = true != IGNORE
        confusion += confusion_matrix(true[known], result.label_map[known].astype(np.int64), len(config.labels))
    return confusion


def _answers(
    predictor: Predictor, config: BundleConfig, records: Sequence[Record], params: QueryParams
) -> Iterator[Result]:
    return (predict_image(predictor, config, record.path.read_bytes(), params) for record in records)


def scored_boxes(found: Sequence[Sequence[Detection]]) -> list[list[ScoredBox]]:
    return [[ScoredBox(one.index, one.score, one.box) for one in detections] for detections in found]


def true_boxes(records: Sequence[Record]) -> list[Sequence[TrueBox]]:
    """Each picture's objects, of those in which they are known."""
    return [record.objects for record in records if record.objects is not None]
