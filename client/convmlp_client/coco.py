"""Results in COCO's results format (cocodataset.org, "Results format"), as `pycocotools.coco.COCO.loadRes` takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NotRequired, TypedDict

from convmlp_client.masks import RLE, needed

if TYPE_CHECKING:
    from convmlp_client.results import Detection, Segment

CategoryIds = Mapping[int, int] | Sequence[int]
"""The category's id of each class index, such as `COCO.getCatIds()`, or a mapping."""


class CocoDetection(TypedDict):
    """`bbox` is [x, y, width, height]."""

    image_id: int | str
    category_id: int
    bbox: list[float]
    score: float
    segmentation: NotRequired[RLE]


class CocoSegment(TypedDict):
    image_id: int | str
    category_id: int
    segmentation: RLE
    area: int


def coco_detections(
    detections: Sequence[Detection], image_id: int | str, category_ids: CategoryIds | None
) -> list[CocoDetection]:
    rows: list[CocoDetection] = []
    for one in detections:
        box = one.box
        row: CocoDetection = {
            "image_id": image_id,
            "category_id": _category_id(one.index, category_ids),
            "bbox": [box.xmin, box.ymin, box.xmax - box.xmin, box.ymax - box.ymin],
            "score": one.score,
        }
        if one.mask is not None:
            row["segmentation"] = one.mask.rle()
        rows.append(row)
    return rows


def coco_segments(
    segments: Sequence[Segment], image_id: int | str, category_ids: CategoryIds | None
) -> list[CocoSegment]:
    return [
        {
            "image_id": image_id,
            "category_id": _category_id(one.index, category_ids),
            "segmentation": needed(one.mask).rle(),
            "area": one.area,
        }
        for one in segments
    ]


def _category_id(index: int, category_ids: CategoryIds | None) -> int:
    if category_ids is None:
        return index
    try:
        return category_ids[index]
    except LookupError:
        raise ValueError(f"category_ids has no id for class {index}; give one for each of the model's labels") from None
