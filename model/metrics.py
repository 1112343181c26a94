"""Metrics of predictions against the truth, in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.reference import iou
from model.types import BoolArray, Box, IntArray, LabelMapArray

Float64Array = npt.NDArray[np.float64]

MIN_IOU = 0.5
CALIBRATION_BINS = 15
MIN_CALIBRATION_SCORE = 0.05
"""Detections below are left out of calibration: nobody sees them, and there are many."""


@dataclass(frozen=True, slots=True)
class ScoredBox:
    """A detection: class index, score, box."""

    index: int
    score: float
    box: Box


@dataclass(frozen=True, slots=True)
class TrueBox:
    """An object: class index, box. What matches a `crowd` is neither right nor wrong."""

    index: int
    box: Box
    crowd: bool = False


HasBox = ScoredBox | TrueBox


def top_k_accuracy(ranked: IntArray, truth: IntArray) -> dict[str, float]:
    """top1 and top5: shares of the pictures whose class, int (N,), ranks first, or among the first five.

    ranked: int (N, K), class indices by falling score; -1 beyond the last one.
    """
    return {f"top{k}": float((ranked[:, :k] == truth[:, None]).any(axis=1).mean()) for k in (1, 5)}


def calibration_error(scores: Float64Array, right: BoolArray, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error, over bins of equal width (arXiv 1706.04599, equation 3).

    Scores (N,) and correctness, bool (N,) → the mean of the bins' |accuracy - confidence|, weighted by their counts; 0
    if N is 0.
    """
    place = np.minimum((scores * bins).astype(int), bins - 1)
    gaps = [abs((scores - right)[place == number].sum()) for number in range(bins)]
    return float(sum(gaps) / max(len(scores), 1))


def confusion_matrix(truth: IntArray | LabelMapArray, answers: IntArray | LabelMapArray, classes: int) -> IntArray:
    """Counts [truth, answer], int64 (classes, classes), of two arrays of class indices with the same shape."""
    pairs = truth.ravel().astype(np.int64) * classes + answers.ravel()
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def intersection_over_union(confusion: IntArray, labels: Sequence[str]) -> dict[str, float]:
    """From a confusion matrix [truth, answer]: the mean IoU, pixel accuracy, and the IoU of each class.

    A class that neither truth nor answers have is left out.
    """
    shared = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - shared
    ious = {label: float(shared[at] / union[at]) for at, label in enumerate(labels) if union[at]}
    return {
        "miou": float(np.mean(list(ious.values()))) if ious else 0.0,
        "pixel_accuracy": float(shared.sum() / max(confusion.sum(), 1)),
        **{f"iou_{label}": value for label, value in ious.items()},
    }


def average_precision(scores: Float64Array, positive: BoolArray) -> float:
    """The area under the precision-recall curve of one class, without interpolation; 0 if nothing is positive.

    Scores (N,); whether each picture has the class, bool (N,). Equal scores are one point of the curve.
    """
    if not positive.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(positive[order])[last_of_score]
    precision = hits / (np.flatnonzero(last_of_score) + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / positive.sum())


def interpolated_precision(hits: BoolArray, positives: int) -> float:
    """The area under a precision-recall curve whose precision is made non-increasing in recall (VOC 2010).

    `hits` are by falling score; `positives` counts the objects, found or not.
    """
    if positives == 0 or len(hits) == 0:
        return 0.0
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / positives)


def voc_average_precision(
    found: Sequence[Sequence[ScoredBox]], truth: Sequence[Sequence[TrueBox]], labels: Sequence[str]
) -> dict[str, float]:
    """ap50: at IoU 0.5, the area under each class's precision-recall curve over all recall points (VOC 2010).

    And the mean over the classes that have objects.
    """
    figures = {}
    for index, label in enumerate(labels):
        pairs, positives = match_boxes(found, truth, index, MIN_IOU)
        if positives:
            hits = np.array([hit for _, hit in pairs], np.bool_)
            figures[f"ap50_{label}"] = interpolated_precision(hits, positives)
    return {"ap50": float(np.mean(list(figures.values()))) if figures else 0.0, **figures}


def matched_boxes(
    found: Sequence[HasBox], others: Sequence[HasBox], min_iou: float = MIN_IOU
) -> list[tuple[int, int, float]]:
    """Pairs of boxes of one picture and one class, as positions in both and their IoU, of at least `min_iou`.

    In the order of `found`, each takes the other that overlaps it most and is not taken yet.
    """
    pairs: list[tuple[int, int, float]] = []
    taken: set[int] = set()
    for at, one in enumerate(found):
        overlaps = {
            to: iou(one.box, other.box)
            for to, other in enumerate(others)
            if to not in taken and other.index == one.index
        }
        best = max(overlaps, key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] >= min_iou:
            taken.add(best)
            pairs.append((at, best, overlaps[best]))
    return pairs


def match_boxes(
    found: Sequence[Sequence[ScoredBox]], truth: Sequence[Sequence[TrueBox]], index: int, min_iou: float
) -> tuple[list[tuple[float, bool]], int]:
    """One class's detections by falling score as (score, is a true positive), and the number of its objects.

    `found` has each picture's detections by falling score; each takes the object of its class that it overlaps most,
    with an IoU of at least `min_iou`, and that none before it has taken. Detections on a crowd are left out.
    """
    pairs: list[tuple[float, bool]] = []
    positives = 0
    for detections, objects in zip(found, truth, strict=True):
        of_class = [one for one in detections if one.index == index]
        wanted = [one for one in objects if one.index == index and not one.crowd]
        crowds = [one.box for one in objects if one.index == index and one.crowd]
        positives += len(wanted)
        hits = {at for at, _, _ in matched_boxes(of_class, wanted, min_iou)}
        for at, detection in enumerate(of_class):
            if at in hits or not any(_covered(detection.box, crowd) >= min_iou for crowd in crowds):
                pairs.append((detection.score, at in hits))
    return sorted(pairs, key=lambda pair: -pair[0]), positives


def precision_and_recall(
    found: Sequence[Sequence[ScoredBox]], truth: Sequence[Sequence[TrueBox]], classes: int, threshold: float
) -> dict[str, float]:
    """Precision and recall of detections scored above `threshold`, over all classes, at IoU 0.5."""
    hits = answers = objects = 0
    for index in range(classes):
        pairs, positives = match_boxes(found, truth, index, MIN_IOU)
        above = [hit for score, hit in pairs if score > threshold]
        hits, answers, objects = hits + sum(above), answers + len(above), objects + positives
    return {"precision_at_threshold": hits / max(answers, 1), "recall_at_threshold": hits / max(objects, 1)}


def scored_matches(
    found: Sequence[Sequence[ScoredBox]], truth: Sequence[Sequence[TrueBox]], classes: int
) -> tuple[Float64Array, BoolArray]:
    """Scores (K,) of detections of at least MIN_CALIBRATION_SCORE; which are true positives at IoU 0.5, bool (K,)."""
    pairs = [pair for index in range(classes) for pair in match_boxes(found, truth, index, MIN_IOU)[0]]
    kept = [pair for pair in pairs if pair[0] >= MIN_CALIBRATION_SCORE]
    return np.array([score for score, _ in kept]), np.array([hit for _, hit in kept], np.bool_)


def _covered(box: Box, crowd: Box) -> float:
    """The share of a box that lies in a crowd: COCO's overlap with crowds."""
    width = min(box.xmax, crowd.xmax) - max(box.xmin, crowd.xmin)
    height = min(box.ymax, crowd.ymax) - max(box.ymin, crowd.ymin)
    area = (box.xmax - box.xmin) * (box.ymax - box.ymin)
    return max(width, 0.0) * max(height, 0.0) / area if area > 0 else 0.0
