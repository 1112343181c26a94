"""Accuracy of a bundle on held-out photographs, through the pipeline that serves requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from model.bundle import BundleConfig
from model.predictor import Predictor, predict_image
from model.reference import iou
from model.spec import DetectPostSpec
from model.training.data import IGNORE, Record, load_label_maps
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

MIN_CURVE_SCORE = 0.01
"""Detections below are left out of the precision-recall curve; low, because calibrated scores are low."""
MIN_CALIBRATION_SCORE = 0.05
"""Detections below are left out of calibration: nobody sees them, and there are many."""


def measure(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> dict[str, float]:
    """The task's metrics, rounded to four digits.

    Classification: top1, top5, species (cat or dog, by the top label). Detection: ap50, also of each class; precision
    and recall at the model's threshold. Segmentation: miou, IoU of each class, pixel accuracy. With scores: ece, the
    expected calibration error.

    Records without a head box are left out of detection; those without a mask, out of segmentation.
    """
    match config.task:
        case Task.CLASSIFY:
            probabilities = class_probabilities(predictor, config, records)
            breeds = np.array([record.breed for record in records])
            best = probabilities.argmax(axis=1)
            kinds = {record.breed: record.species for record in records}
            right_kind = [
                kinds.get(breed) == record.species for breed, record in zip(best.tolist(), records, strict=True)
            ]
            figures = top_k_accuracy(probabilities, breeds)
            figures |= {"species": float(np.mean(right_kind))}
            figures |= {"ece": calibration_error(probabilities.max(axis=1), best == breeds)}
        case Task.DETECT:
            found = detections(predictor, config, records)
            assert isinstance(config.postprocessing, DetectPostSpec)
            figures = average_precision(found, records, config.labels)
            figures |= precision_and_recall(found, records, config.labels, config.postprocessing.score_threshold)
            figures |= {"ece": calibration_error(*scored_matches(found, records, config.labels))}
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


def scored_matches(
    found: Sequence[Sequence[Detection]], records: Sequence[Record], labels: Sequence[str]
) -> tuple[Float64Array, BoolArray]:
    """Scores (K,) of detections; which are true positives, bool (K,): class, IoU of at least 0.5, first on its head.

    Detections below MIN_CALIBRATION_SCORE are left out.
    """
    pairs = [pair for index in range(len(labels)) for pair in match_detections(found, records, index, 0.5)[0]]
    kept = [pair for pair in pairs if pair[0] >= MIN_CALIBRATION_SCORE]
    return np.array([score for score, _ in kept]), np.array([hit for _, hit in kept], np.bool_)


def pixel_confusion(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> IntArray:
    """Confusion matrix of known pixels, [truth, answer]: int64 (classes, classes)."""
    masked = [record for record in records if record.mask is not None]
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
    return (predict_image(predictor, config, record.path.read_bytes(), params) for record in records)


Float64Array = npt.NDArray[np.float64]


def top_k_accuracy(probabilities: Float64Array, truth: IntArray) -> dict[str, float]:
    """top1 and top5: shares of the rows (N, C) whose true class (N,) ranks first, or among the first five."""
    ranked = np.argsort(-probabilities, axis=1, kind="stable")
    return {f"top{k}": float((ranked[:, :k] == truth[:, None]).any(axis=1).mean()) for k in (1, 5)}


def calibration_error(scores: Float64Array, right: BoolArray, bins: int = 15) -> float:
    """Expected calibration error, over bins of equal width (arXiv 1706.04599, equation 3).

    Scores (N,) and correctness, bool (N,) → the mean of the bins' |accuracy - confidence|, weighted by their counts; 0
    if N is 0.
    """
    place = np.minimum((scores * bins).astype(int), bins - 1)
    gaps = [abs((scores - right)[place == number].sum()) for number in range(bins)]
    return float(sum(gaps) / max(len(scores), 1))


def average_precision(
    found: Sequence[Sequence[Detection]], records: Sequence[Record], labels: Sequence[str], min_iou: float = 0.5
) -> dict[str, float]:
    """The area under each class's precision-recall curve over all recall points (VOC 2010), and their mean."""
    figures = {}
    for index, label in enumerate(labels):
        pairs, heads = match_detections(found, records, index, min_iou)
        figures[f"ap50_{label}"] = area_under_curve(np.array([hit for _, hit in pairs], np.bool_), heads)
    return {"ap50": float(np.mean(list(figures.values()))), **figures}


def precision_and_recall(
    found: Sequence[Sequence[Detection]], records: Sequence[Record], labels: Sequence[str], threshold: float
) -> dict[str, float]:
    """Precision and recall of detections scored above `threshold`, over all classes, at IoU 0.5."""
    hits = answers = heads = 0
    for index in range(len(labels)):
        pairs, heads_of_class = match_detections(found, records, index, 0.5)
        above = [hit for score, hit in pairs if score > threshold]
        hits, answers, heads = hits + sum(above), answers + len(above), heads + heads_of_class
    return {"precision_at_threshold": hits / max(answers, 1), "recall_at_threshold": hits / max(heads, 1)}


def match_detections(
    found: Sequence[Sequence[Detection]], records: Sequence[Record], index: int, min_iou: float
) -> tuple[list[tuple[float, bool]], int]:
    """One class's detections by falling score as (score, is a true positive), and the number of heads.

    `found` has each picture's detections by falling score. A second box on a head is a false positive. Pictures without
    an annotated head are left out.
    """
    pairs: list[tuple[float, bool]] = []
    heads = 0
    for detections, record in zip(found, records, strict=True):
        if record.head is None:
            continue
        free = record.species == index
        heads += free
        for detection in detections:
            if detection.index == index:
                hit = free and iou(detection.box, record.head) >= min_iou
                free = free and not hit
                pairs.append((detection.score, hit))
    return sorted(pairs, key=lambda pair: -pair[0]), heads


def area_under_curve(hits: BoolArray, positives: int) -> float:
    """Average precision: `hits` are by falling score; precision is made non-increasing in recall (VOC 2010)."""
    if positives == 0 or len(hits) == 0:
        return 0.0
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / positives)


def intersection_over_union(confusion: IntArray, labels: Sequence[str]) -> dict[str, float]:
    """From a confusion matrix [truth, answer]: IoU of each class, their mean, pixel accuracy."""
    shared = np.diag(confusion)
    ious = shared / np.maximum(confusion.sum(axis=0) + confusion.sum(axis=1) - shared, 1)
    return {
        "miou": float(ious.mean()),
        "pixel_accuracy": float(shared.sum() / confusion.sum()),
        **{f"iou_{label}": float(value) for label, value in zip(labels, ious, strict=True)},
    }
