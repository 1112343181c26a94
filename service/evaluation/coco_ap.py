"""COCO's average precision of boxes and masks, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convmlp_client.geometry import ImageSize
from convmlp_client.masks import Mask
from convmlp_client.results import Detections
from model.errors import ConvMLPError
from service.evaluation.dataset import DataInvalid, TrueObject

IOU_50, IOU_75 = 0, 5
"""Positions in COCO's thresholds 0.50, 0.55, …, 0.95."""
ALL_AREAS = 0
MOST_DETECTIONS = 2
"""Position in COCO's limits of 1, 10 and 100 detections a picture."""


class ToolMissing(ConvMLPError):
    """A package of the extra `eval` is not installed."""

    code = "tool-missing"


@dataclass(frozen=True, slots=True)
class DetectedPicture:
    """A picture's detections and its objects, with the class index of each object."""

    found: Detections
    objects: Sequence[tuple[int, TrueObject]]


def require_pycocotools() -> None:
    """Raises ToolMissing if it is not installed."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ModuleNotFoundError as error:
        raise ToolMissing(
            f"the average precision of detections needs {error.name}, which is not installed; install this package's "
            "extra `eval`"
        ) from error


def coco_average_precision(pictures: Sequence[DetectedPicture], labels: Sequence[str]) -> dict[str, float]:
    """box_ap, box_ap50, box_ap75, and box_ap of each class; and mask_ap likewise if there are masks on both sides.

    `ap` is the mean over IoUs from 0.50 to 0.95, with 101 recall points and up to 100 detections a picture. Classes
    without an object are left out of the means.

    Raises:
        DataInvalid: a mask of the data set is malformed.
        ToolMissing: pycocotools is not installed.
    """
    require_pycocotools()
    figures = _figures("box", "bbox", pictures, labels)
    has_masks = any(one.mask is not None for picture in pictures for one in picture.found.detections)
    if has_masks and any(true.mask is not None for picture in pictures for _, true in picture.objects):
        figures |= _figures("mask", "segm", pictures, labels)
    return figures


def _figures(name: str, iou_type: str, pictures: Sequence[DetectedPicture], labels: Sequence[str]) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    try:
        truth.dataset = _dataset(pictures, labels, with_masks=iou_type == "segm")
    except (TypeError, ValueError) as error:
        raise DataInvalid(f"a mask of the data set is not polygons or run lengths of its picture: {error}") from error
    rows = [
        {key: value for key, value in row.items() if iou_type == "bbox" or key != "bbox"}
        for number, picture in enumerate(pictures)
        for row in picture.found.to_coco(number)
        if iou_type == "bbox" or "segmentation" in row
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(rows) if rows else _empty(truth)
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
    # [IoU, recall, class, area, limit]; -1 for classes without an object.
    precision = evaluation.eval["precision"][:, :, :, ALL_AREAS, MOST_DETECTIONS]
    return {
        f"{name}_ap": _mean(precision),
        f"{name}_ap50": _mean(precision[IOU_50]),
        f"{name}_ap75": _mean(precision[IOU_75]),
        **{
            f"{name}_ap_{label}": _mean(precision[:, :, index])
            for index, label in enumerate(labels)
            if (precision[:, :, index] > -1).any()
        },
    }


def _empty(truth: Any) -> Any:  # noqa: ANN401  (pycocotools has no types)
    """No results: `loadRes` does not take an empty list."""
    found = type(truth)()
    found.dataset = {**truth.dataset, "annotations": []}
    found.createIndex()
    return found


def _dataset(pictures: Sequence[DetectedPicture], labels: Sequence[str], *, with_masks: bool) -> Mapping[str, Any]:
    annotations: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures):
        for index, true in picture.objects:
            box = true.box
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,  # 0 would count as no match
                "image_id": number,
                "category_id": index,
                "bbox": [box.xmin, box.ymin, box.xmax - box.xmin, box.ymax - box.ymin],
                "area": true.area,
                "iscrowd": int(true.crowd),
            }
            if with_masks:
                if true.mask is None:
                    continue
                annotation["segmentation"] = _checked_mask(true.mask, picture.found.image)
            annotations.append(annotation)
    images = [
        {"id": number, "width": picture.found.image.width, "height": picture.found.image.height}
        for number, picture in enumerate(pictures)
    ]
    categories = [{"id": index, "name": label} for index, label in enumerate(labels)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _checked_mask(mask: Any, size: ImageSize) -> Any:  # noqa: ANN401  (COCO's JSON)
    """The mask itself: pycocotools, which is C, reads what it is given without a check.

    Raises:
        ValueError: it is neither polygons nor run lengths of the picture.
    """
    match mask:
        case [[*_], *_] if all(
            len(polygon) >= 6 and len(polygon) % 2 == 0 and np.isfinite(np.asarray(polygon, np.float64)).all()
            for polygon in mask
        ):
            return mask
        case {"size": [size.height, size.width], "counts": str(counts)}:
            Mask(size, counts).region()
            return mask
        case {"size": [size.height, size.width], "counts": [*counts]} if (
            all(type(count) is int and count >= 0 for count in counts) and sum(counts) == size.width * size.height
        ):
            return mask
        case _:
            raise ValueError(f"{str(mask)[:80]} in a picture of {size.width} x {size.height}")


def _mean(precision: Any) -> float:  # noqa: ANN401  (pycocotools has no types)
    known = precision[precision > -1]
    return float(np.mean(known)) if known.size else 0.0
