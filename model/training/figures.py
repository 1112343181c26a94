"""Accuracy in numbers: what answers are worth against the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from model.reference import iou
from model.training.data import Record
from model.types import BoolArray, Detection, IntArray

Float64Array = npt.NDArray[np.float64]


def top_k_accuracy(probabilities: Float64Array, truth: IntArray) -> dict[str, float]:
    """Shares of rows (N, C) whose class (N,) is the first, or among the first five."""
    ranked = np.argsort(-probabilities, axis=1, kind="stable")
    return {f"top{k}": float((ranked[:, :k] == truth[:, None]).any(axis=1).mean()) for k in (1, 5)}


def calibration_error(scores: Float64Array, right: BoolArray, bins: int = 15) -> float:
    """Expected calibration error: how far scores lie from the share that is right, over bins of equal width.

    (N,) scores and whether each was right → the bins' absolute differences, weighted by how many fall in each
    (arXiv 1706.04599, equation 3); 0 where there are none.
    """
    place = np.minimum((scores * bins).astype(int), bins - 1)
    gaps = [abs((scores - right)[place == one].sum()) for one in range(bins)]
    return float(sum(gaps) / max(len(scores), 1))


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
