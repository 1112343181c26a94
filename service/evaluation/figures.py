"""The figures of a run: a model's predictions against the truth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from convmlp_client.results import Classification, Detections, Result, Segmentation
from model.metrics import (
    ScoredBox,
    TrueBox,
    average_precision,
    calibration_error,
    confusion_matrix,
    intersection_over_union,
    precision_and_recall,
    scored_matches,
    top_k_accuracy,
    voc_average_precision,
)
from model.types import Box, IntArray, Size, Task
from service.evaluation.coco_ap import DetectedPicture, coco_average_precision
from service.evaluation.dataset import ClassTruth, DataInvalid, Dataset, MaskTruth, ObjectsTruth, Sample
from service.evaluation.mask_datasets import class_map, mask_values
from service.evaluation.predictions import ModelIdentity, PredictionError

MAX_RANK = 5

ClassIndices = Mapping[str, int | None]
"""The model's class index of each label of the data set; None: left out."""


@dataclass(frozen=True, slots=True)
class Figures:
    """`metrics` are fractions of 1. `measured` counts the pictures in them, `left_out` those without a class of the
    model; `errors` has the others' by name. `confusion`: [truth, answer] of pictures, or of pixels.
    """

    metrics: dict[str, float]
    measured: int
    left_out: int
    errors: dict[str, str] = field(default_factory=dict)
    confusion: IntArray | None = None


def compute_figures(
    dataset: Dataset,
    model: ModelIdentity,
    results: Iterable[tuple[str, Result | PredictionError]],
    indices: ClassIndices,
    *,
    all_scores: bool = True,
) -> Figures:
    """The task's figures, rounded to four digits.

    Classifiers: top1, top5, ece. Multi-label data: with the model's threshold, f1 and its precision and recall above
    it; with `all_scores`, map: the mean over the classes in the data. Detectors: COCO's figures and VOC's ap50; with
    the model's threshold, precision and recall above it; ece. Segmenters: miou, pixel_accuracy, IoU of each class.

    Args:
        dataset: whose truth counts.
        model: that predicted.
        results: of pictures by name.
        indices: as from `match_labels`.
        all_scores: whether the results of a multi-label classifier have every class.

    Raises:
        DataInvalid: a mask cannot be read, or does not fit its picture.
        ToolMissing: pycocotools is not installed.
    """
    samples = {sample.name: sample for sample in dataset.samples}
    errors: dict[str, str] = {}

    def predicted() -> Iterable[tuple[Sample, Result]]:
        for name, result in results:
            if isinstance(result, PredictionError):
                errors[name] = result.detail
            else:
                yield samples[name], result

    match model.task:
        case Task.CLASSIFY if dataset.multi_label:
            found = _multi_label(predicted(), model, indices, all_scores=all_scores)
        case Task.CLASSIFY:
            found = _classified(predicted(), model, indices)
        case Task.DETECT:
            found = _detected(predicted(), model, indices)
        case Task.SEGMENT:
            found = _segmented(predicted(), model, indices)
    rounded = {name: round(value, 4) for name, value in found.metrics.items()}
    return Figures(rounded, found.measured, found.left_out, errors, found.confusion)


def _classified(pairs: Iterable[tuple[Sample, Result]], model: ModelIdentity, indices: ClassIndices) -> Figures:
    truth, ranked, scores = [], [], []
    left_out = 0
    for sample, result in pairs:
        assert isinstance(result, Classification)
        assert isinstance(sample.truth, ClassTruth)
        index = indices[sample.truth.labels[0]]
        if index is None:
            left_out += 1
            continue
        best = [label.index for label in result.labels[:MAX_RANK]]
        truth.append(index)
        ranked.append(best + [-1] * (MAX_RANK - len(best)))
        scores.append(result.labels[0].score if result.labels else 0.0)
    if not truth:
        return Figures({}, 0, left_out)
    true, best_of = np.array(truth), np.array(ranked)
    metrics = top_k_accuracy(best_of, true)
    metrics["ece"] = calibration_error(np.array(scores), best_of[:, 0] == true)
    answered = best_of[:, 0] >= 0
    confusion = confusion_matrix(true[answered], best_of[answered, 0], len(model.labels))
    return Figures(metrics, len(truth), left_out, confusion=confusion)


def _multi_label(
    pairs: Iterable[tuple[Sample, Result]], model: ModelIdentity, indices: ClassIndices, *, all_scores: bool
) -> Figures:
    rows, truths = [], []
    for sample, result in pairs:
        assert isinstance(result, Classification)
        assert isinstance(sample.truth, ClassTruth)
        row = np.zeros(len(model.labels))
        for label in result.labels:
            row[label.index] = label.score
        true = np.zeros(len(model.labels), np.bool_)
        true[[index for name in sample.truth.labels if (index := indices[name]) is not None]] = True
        rows.append(row)
        truths.append(true)
    if not rows:
        return Figures({}, 0, 0)
    scores, positive = np.stack(rows), np.stack(truths)
    metrics = {}
    if model.score_threshold is not None:
        above = scores > model.score_threshold
        hits = int((above & positive).sum())
        metrics = {
            "f1": 2 * hits / max(int(above.sum() + positive.sum()), 1),
            "precision_at_threshold": hits / max(int(above.sum()), 1),
            "recall_at_threshold": hits / max(int(positive.sum()), 1),
        }
    if all_scores:
        present = np.flatnonzero(positive.any(axis=0)).tolist()
        of_class = {model.labels[at]: average_precision(scores[:, at], positive[:, at]) for at in present}
        mean = float(np.mean(list(of_class.values()))) if of_class else 0.0
        metrics = {"map": mean, **metrics, **{f"ap_{label}": value for label, value in of_class.items()}}
    return Figures(metrics, len(rows), 0)


def _detected(pairs: Iterable[tuple[Sample, Result]], model: ModelIdentity, indices: ClassIndices) -> Figures:
    pictures = []
    for sample, result in pairs:
        assert isinstance(result, Detections)
        assert isinstance(sample.truth, ObjectsTruth)
        if sample.truth.size not in (None, (result.image.width, result.image.height)):
            raise DataInvalid(
                f"{sample.path} is {result.image.width} x {result.image.height} when upright, the annotations are for "
                f"{' x '.join(map(str, sample.truth.size))}; rotate the picture, or correct its size in them"
            )
        objects = [(index, one) for one in sample.truth.objects if (index := indices[one.label]) is not None]
        pictures.append(DetectedPicture(result, objects))
    if not pictures:
        return Figures({}, 0, 0)
    metrics = coco_average_precision(pictures, model.labels)
    found = [scored_boxes(picture.found) for picture in pictures]
    truth = [[TrueBox(index, one.box, one.crowd) for index, one in picture.objects] for picture in pictures]
    classes = len(model.labels)
    metrics |= voc_average_precision(found, truth, model.labels)
    if model.score_threshold is not None:
        metrics |= precision_and_recall(found, truth, classes, model.score_threshold)
    metrics["ece"] = calibration_error(*scored_matches(found, truth, classes))
    return Figures(metrics, len(pictures), 0)


def scored_boxes(result: Detections) -> Sequence[ScoredBox]:
    """The detections of a result as metrics take them."""
    return [
        ScoredBox(one.index, one.score, Box(one.box.xmin, one.box.ymin, one.box.xmax, one.box.ymax))
        for one in result.detections
    ]


def _segmented(pairs: Iterable[tuple[Sample, Result]], model: ModelIdentity, indices: ClassIndices) -> Figures:
    confusion = np.zeros((len(model.labels), len(model.labels)), np.int64)
    measured = 0
    for sample, result in pairs:
        assert isinstance(result, Segmentation)
        assert isinstance(sample.truth, MaskTruth)
        size = Size(result.image.height, result.image.width)
        true = class_map(mask_values(sample.truth, size), sample.truth, indices)
        known = true >= 0
        confusion += confusion_matrix(true[known], result.label_map()[known].astype(np.int64), len(model.labels))
        measured += 1
    if not measured:
        return Figures({}, 0, 0)
    return Figures(intersection_over_union(confusion, model.labels), measured, 0, confusion=confusion)
