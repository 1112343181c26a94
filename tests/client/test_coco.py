from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from convmlp_client.geometry import Box, ImageSize
from convmlp_client.masks import Mask
from convmlp_client.results import Classification, Detection, Detections, Meta, Segment, Segmentation, Task

# A warning of pycocotools itself with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SIZE = ImageSize(8, 6)
CATEGORY_IDS = [1, 3, 90]
LEFT = np.arange(8) < np.full((6, 1), 4)


def detections(*masks: Mask | None) -> Detections:
    found = [Detection("cat", 2, 0.9 - 0.1 * at, Box(0.5, 1, 4.25, 6), mask) for at, mask in enumerate(masks)]
    return Detections(SIZE, tuple(found), Meta("m", Task.DETECT))


def segmentation(*masks: Mask | None) -> Segmentation:
    segments = [Segment("cat", index, 24, 0.5, mask) for index, mask in enumerate(masks)]
    return Segmentation(SIZE, tuple(segments), Meta("m", Task.SEGMENT))


def loaded(rows: Sequence[Any], image_id: int) -> Any:  # noqa: ANN401  (pycocotools has no types)
    """The results as pycocotools loads them for a data set of one image."""
    truth = COCO()
    categories = [{"id": one, "name": str(one)} for one in CATEGORY_IDS]
    truth.dataset = {"images": [{"id": image_id, "width": 8, "height": 6}], "annotations": [], "categories": categories}
    truth.createIndex()
    return truth.loadRes(rows)


@pytest.mark.parametrize("mask", [None, Mask.from_array(LEFT), Mask(SIZE, ((0, 0, 4, 0, 4, 6, 0, 6),))])
def test_pycocotools_loads_detections(mask: Mask | None) -> None:
    """pycocotools reads boxes as x, y, width, height, masks of any format, and the given category ids."""
    rows = detections(mask, None).to_coco(17, CATEGORY_IDS)
    first, second = loaded(rows, 17).loadAnns([1, 2])
    assert [first["bbox"], first["score"], first["category_id"], first["image_id"]] == [[0.5, 1, 3.75, 5], 0.9, 90, 17]
    assert second["score"] == pytest.approx(0.8)
    if mask is not None:
        np.testing.assert_array_equal(coco_mask.decode(first["segmentation"]), LEFT)


def test_without_bbox_the_area_is_the_masks() -> None:
    """For rows without `bbox`, pycocotools computes the area from the mask."""
    rows = [
        {name: value for name, value in row.items() if name != "bbox"}
        for row in detections(Mask.from_array(LEFT)).to_coco(1, CATEGORY_IDS)
    ]
    assert loaded(rows, 1).loadAnns([1])[0]["area"] == 24


def test_pycocotools_loads_segments() -> None:
    """pycocotools reads one row per class, with its pixels and without a score."""
    result = segmentation(Mask.from_array(LEFT), Mask.from_array(~LEFT))
    rows = result.to_coco(5, {0: 1, 1: 3})
    assert [set(row) for row in rows] == [{"image_id", "category_id", "segmentation", "area"}] * 2
    found = loaded(rows, 5).loadAnns([1, 2])
    assert [(one["category_id"], one["area"]) for one in found] == [(1, 24), (3, 24)]
    np.testing.assert_array_equal(sum(coco_mask.decode(one["segmentation"]) for one in found), np.ones((6, 8)))


def test_the_default_category_id_is_the_class_index() -> None:
    """Without `category_ids` the category id is the class index."""
    assert detections(None).to_coco("a name")[0]["category_id"] == 2
    assert detections(None).to_coco("a name")[0]["image_id"] == "a name"


@pytest.mark.parametrize("category_ids", [{0: 1}, [1, 2]])
def test_a_missing_category_id_is_an_error(category_ids: Any) -> None:  # noqa: ANN401  (either kind)
    """A class that `category_ids` does not have raises ValueError."""
    with pytest.raises(ValueError, match="no id for class 2; give one for each"):
        detections(None).to_coco(1, category_ids)


def test_segments_without_masks_are_an_error() -> None:
    """Segments without masks raise ValueError, because COCO's rows need masks."""
    with pytest.raises(ValueError, match="the result has no masks; request them"):
        segmentation(None).to_coco(1)


def test_classifications_have_no_coco_format() -> None:
    """COCO has no results format for classifications, so they have no `to_coco`."""
    assert not hasattr(Classification, "to_coco")
