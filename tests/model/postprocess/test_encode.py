from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from pycocotools import mask as coco

from model.postprocess.encode import MaskFormat, encode_detection, encode_mask, encode_polygons, encode_segments
from model.postprocess.masks import RegionMask, paste
from model.postprocess.rle import RLE, encode_rle
from model.types import BoolArray, Box, Detection, Segment, SegmentResult, Size, SoftMask

# pycocotools' own, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

MASK = RegionMask(2, 3, np.array([[True, True, False], [False, True, True]]), Size(9, 11))
SOFT = SoftMask(np.full((28, 28), 5, np.float32), 0.5)
DETECTION = Detection("cat", 0, 0.9, Box(2.0, 3.0, 8.0, 7.0), SOFT)


def read_png(data: object) -> np.ndarray:
    assert isinstance(data, bytes)
    with PIL.Image.open(BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image)


def holes_closed(pixels: BoolArray) -> BoolArray:
    """All that cannot be reached from outside the mask without crossing it, corners being closed."""
    outside = np.pad(pixels, 1).astype(np.uint8)
    cv2.floodFill(outside, None, (0, 0), 2)
    closed: BoolArray = outside[1:-1, 1:-1] != 2
    return closed


def area(polygon: list[int]) -> float:
    """Shoelace formula."""
    x, y = np.array(polygon[::2]), np.array(polygon[1::2])
    return abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2


def test_each_format_gives_its_type() -> None:
    """Run lengths, PNG bytes, polygons or nothing, as asked."""
    assert encode_mask(MASK, MaskFormat.RLE) == encode_rle(MASK)
    assert isinstance(encode_mask(MASK, MaskFormat.PNG), bytes)
    assert encode_mask(MASK, MaskFormat.POLYGON) == encode_polygons(MASK)
    assert encode_mask(MASK, MaskFormat.NONE) is None


def test_a_png_is_the_whole_pictures_mask() -> None:
    """The PNG is 8-bit grey, of the picture's size, 255 where the mask is set and 0 elsewhere."""
    np.testing.assert_array_equal(read_png(encode_mask(MASK, MaskFormat.PNG)), MASK.in_picture() * 255)


@given(
    pixels=stn.arrays(np.bool_, stn.array_shapes(min_dims=2, max_dims=2, max_side=12)),
    top=st.integers(0, 5),
    left=st.integers(0, 5),
)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_polygons_fill_to_the_mask_with_its_holes_closed(pixels: BoolArray, top: int, left: int) -> None:
    """Filled, the polygons cover exactly the mask's pixels and its holes, by area and as pycocotools draws them."""
    height, width = pixels.shape
    mask = RegionMask(top, left, pixels, Size(top + height + 2, left + width + 2))
    polygons = encode_polygons(mask)
    expected = holes_closed(mask.in_picture())
    assert sum(area(polygon) for polygon in polygons) == expected.sum()
    if polygons:
        drawn = coco.decode(coco.merge(coco.frPyObjects(polygons, mask.size.height, mask.size.width)))
        np.testing.assert_array_equal(drawn.astype(np.bool_), expected)


def test_a_single_pixel_is_a_square() -> None:
    """A polygon runs along pixel edges, in the frame of the boxes: the smallest one has four corners."""
    (polygon,) = encode_polygons(RegionMask(2, 3, np.ones((1, 1), np.bool_), Size(9, 9)))
    corners = set(zip(polygon[::2], polygon[1::2], strict=True))
    assert len(polygon) == 8
    assert corners == {(3, 2), (4, 2), (4, 3), (3, 3)}


def test_a_mask_of_the_whole_picture_has_the_pictures_edges() -> None:
    """A full mask's outline is the picture's own, up to its width and height."""
    (polygon,) = encode_polygons(RegionMask(0, 0, np.ones((4, 6), np.bool_), Size(4, 6)))
    assert (min(polygon), max(polygon[::2]), max(polygon[1::2])) == (0, 6, 4)
    assert area(polygon) == 24


def test_an_empty_mask_has_no_polygons() -> None:
    """Where nothing is set there is nothing to outline, and the other formats say so too."""
    empty = RegionMask(3, 3, np.zeros((0, 0), np.bool_), Size(9, 9))
    assert encode_polygons(empty) == []
    assert encode_mask(empty, MaskFormat.RLE) == RLE(Size(9, 9), encode_rle(empty).counts)
    assert not read_png(encode_mask(empty, MaskFormat.PNG)).any()


@pytest.mark.parametrize("mask_format", MaskFormat)
def test_a_detections_mask_is_pasted_where_its_box_is(mask_format: MaskFormat) -> None:
    """A detection is encoded as its pasted mask is."""
    size = Size(20, 30)
    expected = encode_mask(paste(SOFT, DETECTION.box, size), mask_format)
    assert encode_detection(DETECTION, size, mask_format) == expected


@pytest.mark.parametrize("mask_format", MaskFormat)
def test_a_detection_without_a_mask_encodes_to_none(mask_format: MaskFormat) -> None:
    """A box alone has no mask in any format."""
    assert encode_detection(Detection("cat", 0, 0.9, DETECTION.box, None), Size(20, 30), mask_format) is None


@pytest.mark.parametrize("mask_format", MaskFormat)
def test_segments_are_encoded_in_their_order(mask_format: MaskFormat) -> None:
    """Each segment is encoded as the pixels of its class, one answer a segment, in the order of the result."""
    label_map = np.array([[2, 2, 2, 0], [2, 1, 1, 1]], np.uint8)
    segments = (Segment("c", 2, 4), Segment("b", 1, 3), Segment("a", 0, 1))
    result = SegmentResult(Size(2, 4), label_map, segments)
    expected = [
        encode_mask(RegionMask(0, 0, label_map == segment.index, result.size), mask_format) for segment in segments
    ]
    assert list(encode_segments(result, mask_format)) == expected
