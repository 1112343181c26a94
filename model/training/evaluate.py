"""How good a bundle is on held-out photographs, through the very pipeline that serves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from model.bundle import BundleConfig
from model.predictor import Predictor
from model.prove import answer
from model.spec import DetectPostSpec
from model.training.data import Record, load_masks
from model.training.segment import IGNORE, label_map
from model.types import (
    BoolArray,
    Box,
    ClassifyResult,
    Detection,
    DetectResult,
    IntArray,
    QueryParams,
    Result,
    SegmentResult,
    Task,
)

CURVE_FROM = 0.05
"""The precision-recall curve is drawn from this score on, as the detectors' papers do."""


def measure(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> dict[str, float]:
    """The task's figures, rounded to four digits.

    They are top1 and top5; or ap50, also of each class, with precision and recall at the model's own threshold;
    or miou, the IoU of each class and the share of right pixels.

    Records without a head's box are left out of detection, those without a mask out of segmentation.
    """
    match config.task:
        case Task.CLASSIFY:
            ranked = [
                [label.index for label in result.labels]
                for result in _answers(predictor, config, records, QueryParams(top_k=5))
                if isinstance(result, ClassifyResult)
            ]
            figures = top_k_accuracy(ranked, [one.breed for one in records])
        case Task.DETECT:
            found = [
                result.detections
                for result in _answers(predictor, config, records, QueryParams(score_threshold=CURVE_FROM))
                if isinstance(result, DetectResult)
            ]
            assert isinstance(config.postprocessing, DetectPostSpec)
            figures = average_precision(found, records, config.labels)
            figures |= precision_and_recall(found, records, config.labels, config.postprocessing.score_threshold)
        case Task.SEGMENT:
            masked = [one for one in records if one.mask is not None]
            confusion = np.zeros((len(config.labels), len(config.labels)), np.int64)
            results = _answers(predictor, config, masked, QueryParams())
            for record, mask, result in zip(masked, load_masks(masked), results, strict=True):
                assert isinstance(result, SegmentResult)
                true = label_map(mask, record.species)
                known = true != IGNORE
                np.add.at(confusion, (true[known], result.label_map[known]), 1)
            figures = intersection_over_union(confusion, config.labels)
    return {name: round(value, 4) for name, value in figures.items()}


def _answers(
    predictor: Predictor, config: BundleConfig, records: Sequence[Record], params: QueryParams
) -> Iterator[Result]:
    return (answer(predictor, config, one.path.read_bytes(), params) for one in records)


def top_k_accuracy(ranked: Sequence[Sequence[int]], truth: Sequence[int]) -> dict[str, float]:
    """Shares of pictures whose class is the first, or among the first five, of `ranked`."""
    pairs = list(zip(ranked, truth, strict=True))
    return {f"top{k}": sum(true in best[:k] for best, true in pairs) / len(pairs) for k in (1, 5)}


def average_precision(
    found: Sequence[Sequence[Detection]], records: Sequence[Record], labels: Sequence[str], min_iou: float = 0.5
) -> dict[str, float]:
    """The area under each class's precision-recall curve over all recall points (VOC 2010), and their mean."""
    figures = {}
    for index, label in enumerate(labels):
        pairs, heads = judge(found, records, index, min_iou)
        figures[f"ap50_{label}"] = area_under_curve(np.array([hit for _, hit in pairs], np.bool_), heads)
    return {"ap50": float(np.mean(list(figures.values()))), **figures}


def precision_and_recall(
    found: Sequence[Sequence[Detection]], records: Sequence[Record], labels: Sequence[str], threshold: float
) -> dict[str, float]:
    """Of the detections above a score, all classes together, at IoU 0.5: what a caller sees by default."""
    hits = answers = heads = 0
    for index in range(len(labels)):
        pairs, heads_of_class = judge(found, records, index, 0.5)
        above = [hit for score, hit in pairs if score > threshold]
        hits, answers, heads = hits + sum(above), answers + len(above), heads + heads_of_class
    return {"precision_at_threshold": hits / max(answers, 1), "recall_at_threshold": hits / max(heads, 1)}


def judge(
    found: Sequence[Sequence[Detection]], records: Sequence[Record], index: int, min_iou: float
) -> tuple[list[tuple[float, bool]], int]:
    """The detections of one class by falling score, each with whether it is right, and the number of heads.

    Each picture's detections come by falling score. A head is found once: a second box on it is wrong.
    Pictures without an annotated head are left out.
    """
    pairs: list[tuple[float, bool]] = []
    heads = 0
    for detections, record in zip(found, records, strict=True):
        if record.head is None:
            continue
        free = record.species == index
        heads += free
        for one in detections:
            if one.index == index:
                hit = free and iou(one.box, record.head) >= min_iou
                free = free and not hit
                pairs.append((one.score, hit))
    return sorted(pairs, key=lambda pair: -pair[0]), heads


def area_under_curve(hits: BoolArray, positives: int) -> float:
    """Average precision of detections in order of falling score; precision is made to fall with recall first."""
    if positives == 0 or len(hits) == 0:
        return 0.0
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / positives)


def intersection_over_union(confusion: IntArray, labels: Sequence[str]) -> dict[str, float]:
    """Of pixel counts [truth, answer]: IoU of each class, their mean, and the share of pixels that are right."""
    shared = np.diag(confusion)
    ious = shared / np.maximum(confusion.sum(axis=0) + confusion.sum(axis=1) - shared, 1)
    return {
        "miou": float(ious.mean()),
        "pixel_accuracy": float(shared.sum() / confusion.sum()),
        **{f"iou_{label}": float(value) for label, value in zip(labels, ious, strict=True)},
    }


def iou(first: Box, second: Box) -> float:
    width = min(first.xmax, second.xmax) - max(first.xmin, second.xmin)
    height = min(first.ymax, second.ymax) - max(first.ymin, second.ymin)
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((one.xmax - one.xmin) * (one.ymax - one.ymin) for one in (first, second))
    return shared / max(areas - shared, 1e-9)
