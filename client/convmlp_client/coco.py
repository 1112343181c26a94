"""Rows of COCO's results format (cocodataset.org, "Results format"), as `pycocotools.coco.COCO.loadRes` takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

from convmlp_client.masks import RLE

CategoryIds = Mapping[int, int] | Sequence[int]
"""The data set's category id of each class index: a mapping, or a sequence such as `COCO.getCatIds()` gives."""


class CocoDetection(TypedDict):
    """An object. `bbox` is [x, y, width, height] in pixels; `segmentation` is there where the detection has a mask."""

    image_id: int | str
    category_id: int
    bbox: list[float]
    score: float
    segmentation: NotRequired[RLE]


class CocoSegment(TypedDict):
    """All pixels of one class. `area` is their number."""

    image_id: int | str
    category_id: int
    segmentation: RLE
    area: int


def category_id(index: int, category_ids: CategoryIds | None) -> int:
    """The category id of a class index; the index itself where there are no `category_ids`.

    Raises:
        ValueError: `category_ids` has no id for this class.
    """
    if category_ids is None:
        return index
    try:
        return category_ids[index]
    except LookupError:
        raise ValueError(f"category_ids has no id for class {index}; give one for each of the model's labels") from None
