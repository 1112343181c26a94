"""How far two lists of answers to the same pictures agree, the first taken as the truth."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.net.boxes import iou_matrix
from model.postprocess.masks import encode_rle, paste_mask
from model.types import (
    Box,
    ClassifyOutput,
    DetectOutput,
    EmbedOutput,
    Float32Array,
    LogitsOutput,
    RawOutput,
    SegmentOutput,
    Size,
    SoftMask,
)

MATCHED_IOU = 0.5

Output = TypeVar("Output", ClassifyOutput, DetectOutput, SegmentOutput)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Shares between 0 and 1, and largest differences; None where there is nothing to compare.

    `top1`: pictures with the same best class. `probability_difference`: the largest of any class.
    `box_ap`, `mask_ap`: COCO's AP@[.5:.95] with the first answers as ground truth.
    `matched`: detections of both lists that have a partner of their class at IoU 0.5 or more; over such pairs
    `box_iou` is the mean, `score_difference` the largest. `pixels`: pixels of the same class.
    """

    top1: float | None = None
    probability_difference: float | None = None
    box_ap: float | None = None
    mask_ap: float | None = None
    matched: float | None = None
    box_iou: float | None = None
    score_difference: float | None = None
    pixels: float | None = None


def agreement(
    expected: Sequence[RawOutput], found: Sequence[RawOutput], sizes: Sequence[Size], mask_threshold: float = 0.5
) -> Agreement:
    """Compare the answers of one model.

    Args:
        expected: the truth, at least one answer; classifications hold all classes.
        found: as many, of the same kind.
        sizes: of the upright pictures.
        mask_threshold: from this probability on a pixel belongs to an instance.

    Raises:
        TypeError: the answers are not all of one kind.
    """
    match expected[0]:
        case ClassifyOutput():
            return _labels(_all(ClassifyOutput, expected), _all(ClassifyOutput, found))
        case DetectOutput():
            return _detections(_all(DetectOutput, expected), _all(DetectOutput, found), sizes, mask_threshold)
        case SegmentOutput():
            return _label_maps(_all(SegmentOutput, expected), _all(SegmentOutput, found))
        case EmbedOutput() | LogitsOutput():
            raise TypeError(f"outputs of {type(expected[0]).__name__} are not compared here")


def _all(kind: type[Output], outputs: Sequence[RawOutput]) -> list[Output]:
    chosen = [one for one in outputs if isinstance(one, kind)]
    if len(chosen) != len(outputs):
        raise TypeError(f"the answers are not all {kind.__name__}")
    return chosen


def _labels(expected: Sequence[ClassifyOutput], found: Sequence[ClassifyOutput]) -> Agreement:
    pairs = list(zip(expected, found, strict=True))
    return Agreement(
        top1=float(np.mean([one.indices[0] == other.indices[0] for one, other in pairs])),
        probability_difference=max(
            float(np.abs(_probabilities(one) - _probabilities(other)).max()) for one, other in pairs
        ),
    )


def _probabilities(output: ClassifyOutput) -> Float32Array:
    """By class instead of by rank."""
    scores = np.empty_like(output.scores)
    scores[output.indices] = output.scores
    return scores


def _label_maps(expected: Sequence[SegmentOutput], found: Sequence[SegmentOutput]) -> Agreement:
    pairs = list(zip(expected, found, strict=True))
    same = sum(int((one.label_map == other.label_map).sum()) for one, other in pairs)
    return Agreement(pixels=same / sum(one.label_map.size for one in expected))


def _detections(
    expected: Sequence[DetectOutput], found: Sequence[DetectOutput], sizes: Sequence[Size], mask_threshold: float
) -> Agreement:
    matched = [
        (iou, abs(float(one.scores[first]) - float(other.scores[second])))
        for one, other in zip(expected, found, strict=True)
        for first, second, iou in match(one, other)
    ]
    total = sum(len(one.scores) for one in (*expected, *found))
    masks = all(one.mask_logits is not None for one in (*expected, *found))
    return Agreement(
        box_ap=_average_precision("bbox", expected, found, sizes, mask_threshold),
        mask_ap=_average_precision("segm", expected, found, sizes, mask_threshold) if masks else None,
        matched=2 * len(matched) / total if total else None,
        box_iou=float(np.mean([iou for iou, _ in matched])) if matched else None,
        score_difference=max((difference for _, difference in matched), default=None),
    )


def match(expected: DetectOutput, found: DetectOutput) -> list[tuple[int, int, float]]:
    """Pairs of one class: positions in both answers, and IoU. Each expected detection takes the best one left."""
    overlaps = iou_matrix(torch.from_numpy(expected.boxes), torch.from_numpy(found.boxes)).nan_to_num().numpy()
    overlaps[expected.classes[:, None] != found.classes] = 0
    pairs: list[tuple[int, int, float]] = []
    if overlaps.size:
        for row, overlap in enumerate(overlaps):
            best = int(overlap.argmax())
            if overlap[best] >= MATCHED_IOU:
                pairs.append((row, best, float(overlap[best])))
                overlaps[:, best] = 0
    return pairs


def _average_precision(
    kind: Literal["bbox", "segm"],
    expected: Sequence[DetectOutput],
    found: Sequence[DetectOutput],
    sizes: Sequence[Size],
    mask_threshold: float,
) -> float | None:
    """AP@[.5:.95], the mean over classes, by pycocotools; None where nothing was expected."""
    truth = _annotations(kind, expected, sizes, mask_threshold)
    results = _annotations(kind, found, sizes, mask_threshold)
    if not truth:
        return None
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints each step
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [{"id": number, "height": size.height, "width": size.width} for number, size in enumerate(sizes)],
            "categories": [{"id": index} for index in sorted({one["category_id"] for one in truth})],
            "annotations": truth,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
    # (thresholds, recalls, classes, areas, limits): of all areas, at the largest limit.
    return float(evaluation.eval["precision"][:, :, :, 0, -1].mean())


def _annotations(
    kind: Literal["bbox", "segm"], outputs: Sequence[DetectOutput], sizes: Sequence[Size], mask_threshold: float
) -> list[dict[str, Any]]:
    """As COCO's JSON; ids count from 1, since pycocotools treats 0 as none."""
    annotations: list[dict[str, Any]] = []
    for number, (output, size) in enumerate(zip(outputs, sizes, strict=True)):
        for row, box in enumerate(output.boxes.tolist()):
            width, height = box[2] - box[0], box[3] - box[1]
            one: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": int(output.classes[row]),
                "score": float(output.scores[row]),
                "iscrowd": 0,
                "area": width * height,
            }
            if kind == "bbox":
                one["bbox"] = [box[0], box[1], width, height]
            else:
                assert output.mask_logits is not None
                pasted = paste_mask(SoftMask(output.mask_logits[row], mask_threshold), Box(*box), size)
                if not pasted.pixels.any():
                    continue  # an empty mask overlaps nothing, not even itself
                one["segmentation"] = {
                    "size": [size.height, size.width],
                    "counts": encode_rle(pasted).counts.encode("ascii"),
                }
            annotations.append(one)
    return annotations
