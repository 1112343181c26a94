from __future__ import annotations

import json
from io import BytesIO
from typing import Literal

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from pycocotools import mask as coco

from model.postprocess.masks import (
    RLE,
    STRIP_PIXELS,
    MaskFormat,
    RegionMask,
    encode_detection,
    encode_mask,
    encode_polygons,
    encode_rle,
    encode_segments,
    encode_segments_rle,
    paste_mask,
)
from model.types import BoolArray, Box, Detection, Float32Array, Segment, SegmentResult, Size, SoftMask
from tests.goldens import GOLDENS, requires_goldens


def sampled(logits: Float32Array, box: Box, threshold: float, size: Size) -> BoolArray:
    """The definition: at each pixel's centre, bilinear interpolation of the four nearest cells."""
    cells = len(logits)
    probabilities = np.pad(1 / (1 + np.exp(-logits.astype(np.float64))), 2)
    x = (np.arange(size.width) + 0.5 - box.xmin) / (box.xmax - box.xmin) * cells - 0.5
    y = (np.arange(size.height) + 0.5 - box.ymin) / (box.ymax - box.ymin) * cells - 0.5
    x, y = np.clip(x, -1, cells), np.clip(y, -1, cells)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right_share, bottom_share = x - left, (y - top)[:, None]
    upper = probabilities[top + 2][:, left + 2] * (1 - right_share) + probabilities[top + 2][:, left + 3] * right_share
    lower = probabilities[top + 3][:, left + 2] * (1 - right_share) + probabilities[top + 3][:, left + 3] * right_share
    inside: BoolArray = upper * (1 - bottom_share) + lower * bottom_share >= threshold
    return inside


def random_logits(seed: int, cells: int) -> Float32Array:
    return np.random.default_rng(seed).normal(0, 3, (cells, cells)).astype(np.float32)


@given(
    seed=st.integers(0, 1000),
    cells=st.sampled_from([1, 7, 28]),
    size=st.builds(Size, st.integers(1, 120), st.integers(1, 120)),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
    threshold=st.sampled_from([0.5, 0.7]),
)
@settings(max_examples=150, derandomize=True, deadline=None)
def test_pasting_samples_the_mask_at_pixel_centres(
    seed: int, cells: int, size: Size, corners: tuple[float, float, float, float], threshold: float
) -> None:
    """A pasted mask is the bilinear sample of its probabilities at each pixel's centre, thresholded."""
    x0, x1, y0, y1 = corners
    box = Box(
        min(x0, x1) * size.width,
        min(y0, y1) * size.height,
        max(x0, x1) * size.width + 0.01,
        max(y0, y1) * size.height + 0.01,
    )
    logits = random_logits(seed, cells)
    mask = paste_mask(SoftMask(logits, threshold), box, size)
    expected = sampled(logits, box, threshold, size)
    # A value within rounding of the threshold may fall to either side.
    assert (mask.full_mask() != expected).sum() <= 1 + expected.size // 5000


def test_a_mask_of_many_strips_has_no_seams() -> None:
    """A mask larger than a strip equals the definition everywhere."""
    size = Size(700, 900)
    assert size.height * size.width > 2 * STRIP_PIXELS
    logits, box = random_logits(1, 28), Box(3.3, 5.1, 896.2, 690.7)
    mask = paste_mask(SoftMask(logits, 0.5), box, size)
    assert (mask.full_mask() != sampled(logits, box, 0.5, size)).sum() <= 5


def test_a_certain_mask_fills_its_box() -> None:
    """If each cell is certain, the mask is the pixels whose centres are in the box."""
    mask = paste_mask(SoftMask(np.full((28, 28), 50, np.float32), 0.5), Box(2.0, 3.0, 12.0, 8.0), Size(20, 30))
    expected = np.zeros((20, 30), np.bool_)
    expected[3:8, 2:12] = True
    np.testing.assert_array_equal(mask.full_mask(), expected)


def test_the_region_is_the_box_and_a_pixel_more_within_the_picture() -> None:
    """The region is the box plus one pixel on each side, within the picture."""
    soft = SoftMask(random_logits(1, 28), 0.5)
    inner = paste_mask(soft, Box(10.5, 20.5, 30.2, 40.2), Size(100, 200))
    assert (inner.top, inner.left, inner.pixels.shape) == (19, 9, (23, 23))
    at_the_edge = paste_mask(soft, Box(0.0, 90.0, 200.0, 100.0), Size(100, 200))
    assert (at_the_edge.top, at_the_edge.left, at_the_edge.pixels.shape) == (89, 0, (11, 200))


def test_a_value_at_the_threshold_is_in_the_mask() -> None:
    """A probability equal to the threshold counts as set."""
    mask = paste_mask(SoftMask(np.zeros((1, 1), np.float32), 0.5), Box(0.0, 0.0, 1.0, 1.0), Size(1, 1))
    assert mask.full_mask().tolist() == [[True]]


@pytest.mark.parametrize(
    "box",
    [
        Box(5.0, 5.0, 5.0, 9.0),
        Box(5.0, 5.0, 9.0, 5.0),
        Box(0.0, 0.0, 0.0, 0.0),
        Box(20.0, 10.0, 20.0, 10.0),
        Box(30.0, 30.0, 40.0, 40.0),
        Box(-20.0, -20.0, -10.0, -10.0),
    ],
)
def test_a_box_without_area_or_outside_has_no_pixels(box: Box) -> None:
    """Boxes without area, or outside of the picture, give empty masks."""
    mask = paste_mask(SoftMask(np.full((28, 28), 50, np.float32), 0.5), box, Size(10, 20))
    assert mask.full_mask().shape == (10, 20)
    assert not mask.full_mask().any()


def test_extreme_logits_do_not_overflow() -> None:
    """Logits beyond exp's range are certain, not an error."""
    logits = np.array([[-1e30, 1e30], [-500, 500]], np.float32)
    mask = paste_mask(SoftMask(logits, 0.5), Box(0.0, 0.0, 4.0, 4.0), Size(4, 4))
    np.testing.assert_array_equal(mask.full_mask(), [[False, False, True, True]] * 4)


def test_a_region_is_at_its_offset() -> None:
    """In the whole picture the region's pixels are at its rows and columns; the rest is unset."""
    whole = RegionMask(1, 2, np.array([[True, False], [True, True]]), Size(4, 5)).full_mask()
    assert np.argwhere(whole).tolist() == [[1, 2], [2, 2], [2, 3]]


# pycocotools' own, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def decoded(rle: RLE) -> BoolArray:
    pixels: BoolArray = coco.decode({"size": [rle.size.height, rle.size.width], "counts": rle.counts}).astype(np.bool_)
    return pixels


def coco_text(whole: BoolArray) -> str:
    counts: bytes = coco.encode(np.asfortranarray(whole, dtype=np.uint8))["counts"]
    return counts.decode("ascii")


def whole_picture(pixels: BoolArray) -> RegionMask:
    return RegionMask(0, 0, pixels, Size(*pixels.shape))


@st.composite
def regions(draw: st.DrawFn) -> RegionMask:
    """A rectangle, possibly empty, anywhere in a picture, up to its edges."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    top, left = draw(st.integers(0, height)), draw(st.integers(0, width))
    shape = (draw(st.integers(0, height - top)), draw(st.integers(0, width - left)))
    return RegionMask(top, left, draw(stn.arrays(np.bool_, shape)), Size(height, width))


@given(mask=regions())
@settings(max_examples=300, derandomize=True, deadline=None)
def test_a_region_is_encoded_as_coco_encodes_the_whole(mask: RegionMask) -> None:
    """A region's text equals that of COCO's encoder for the whole picture, and decodes to it."""
    rle = encode_rle(mask)
    assert rle.size == mask.size
    assert rle.counts == coco_text(mask.full_mask())
    np.testing.assert_array_equal(decoded(rle), mask.full_mask())


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((5, 7), np.bool_),
        np.ones((5, 7), np.bool_),
        np.eye(6, dtype=np.bool_),
        np.tile([[True], [False]], (3, 4)),
        np.tile([True, False], (3, 4)),
        np.ones((1, 1), np.bool_),
        np.zeros((1, 1), np.bool_),
    ],
)
def test_plain_shapes_survive_the_round_trip(pixels: BoolArray, order: Literal["C", "F"]) -> None:
    """Empty, full, diagonal, striped and single-pixel masks decode to themselves, in either memory order."""
    mask = whole_picture(np.asarray(pixels, order=order))
    assert encode_rle(mask).counts == coco_text(pixels)


def test_long_runs_take_as_many_characters_as_they_need() -> None:
    """Run lengths around each number of characters, up to millions of pixels, equal COCO's text."""
    for length in (15, 16, 17, 511, 512, 513, 16_383, 16_384, 524_287, 524_288, 3_000_000):
        pixels = np.zeros((length + 3, 2), np.bool_)
        pixels[length, 0] = True
        pixels[:length, 1] = True
        assert encode_rle(whole_picture(pixels)).counts == coco_text(pixels)


@given(
    label_map=stn.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        stn.array_shapes(min_dims=2, max_dims=2, max_side=30),
        elements=st.sampled_from([0, 1, 7, 255]),
    )
)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_segments_are_encoded_class_by_class(label_map: np.ndarray) -> None:
    """Each segment's text is that of its class's pixels, in the order of the segments."""
    size = Size(*label_map.shape)
    present = np.unique(label_map)[::-1].tolist()
    segments = tuple(Segment(str(index), index, int((label_map == index).sum()), 0.5) for index in present)
    encoded = list(encode_segments_rle(SegmentResult(size, label_map, segments)))
    assert encoded == [RLE(size, coco_text(label_map == index)) for index in present]


@requires_goldens
@pytest.mark.parametrize("picture", ["a", "b", "d"])
def test_real_masks_are_encoded_as_the_authors_are(picture: str) -> None:
    """The masks of the authors' answers, decoded and encoded again, are the same text."""
    answer = json.loads((GOLDENS / "final" / f"maskrcnn_s_{picture}.json").read_text(encoding="utf-8"))
    assert answer["masks"]
    for mask in answer["masks"]:
        pixels = coco.decode(mask).astype(np.bool_)
        assert encode_rle(whole_picture(pixels)).counts == mask["counts"]


# pycocotools' own, with NumPy 2.

MASK = RegionMask(2, 3, np.array([[True, True, False], [False, True, True]]), Size(9, 11))
SOFT = SoftMask(np.full((28, 28), 5, np.float32), 0.5)
DETECTION = Detection("cat", 0, 0.9, Box(2.0, 3.0, 8.0, 7.0), SOFT)


def read_png(data: object) -> np.ndarray:
    assert isinstance(data, bytes)
    with PIL.Image.open(BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image)


def test_each_format_gives_its_type() -> None:
    """RLE, PNG bytes, polygons or None."""
    assert encode_mask(MASK, MaskFormat.RLE) == encode_rle(MASK)
    assert isinstance(encode_mask(MASK, MaskFormat.PNG), bytes)
    assert encode_mask(MASK, MaskFormat.POLYGON) == encode_polygons(MASK)
    assert encode_mask(MASK, MaskFormat.NONE) is None


def test_a_png_is_the_whole_pictures_mask() -> None:
    """The PNG is 8-bit grey, of the picture's size, 255 where the mask is set and 0 elsewhere."""
    np.testing.assert_array_equal(read_png(encode_mask(MASK, MaskFormat.PNG)), MASK.full_mask() * 255)


def test_polygons_are_at_the_regions_offset() -> None:
    """Polygons are in pixels of the picture, whatever part of it the region is."""
    assert encode_polygons(MASK) == encode_polygons(whole_picture(MASK.full_mask()))


def test_an_empty_mask_has_no_polygons() -> None:
    """An empty mask has no outline; the other formats encode it as empty."""
    empty = RegionMask(3, 3, np.zeros((0, 0), np.bool_), Size(9, 9))
    assert encode_polygons(empty) == []
    assert encode_mask(empty, MaskFormat.RLE) == RLE(Size(9, 9), encode_rle(empty).counts)
    assert not read_png(encode_mask(empty, MaskFormat.PNG)).any()


@pytest.mark.parametrize("mask_format", MaskFormat)
def test_a_detections_mask_is_pasted_where_its_box_is(mask_format: MaskFormat) -> None:
    """A detection is encoded as its pasted mask."""
    size = Size(20, 30)
    expected = encode_mask(paste_mask(SOFT, DETECTION.box, size), mask_format)
    assert encode_detection(DETECTION, size, mask_format) == expected


@pytest.mark.parametrize("mask_format", MaskFormat)
def test_a_detection_without_a_mask_encodes_to_none(mask_format: MaskFormat) -> None:
    """A detection without a mask has none in any format."""
    assert encode_detection(Detection("cat", 0, 0.9, DETECTION.box, None), Size(20, 30), mask_format) is None


@pytest.mark.parametrize("mask_format", MaskFormat)
def test_segments_are_encoded_in_their_order(mask_format: MaskFormat) -> None:
    """Each segment is encoded as its class's pixels, in the order of the result."""
    label_map = np.array([[2, 2, 2, 0], [2, 1, 1, 1]], np.uint8)
    segments = (Segment("c", 2, 4, 0.5), Segment("b", 1, 3, 0.5), Segment("a", 0, 1, 0.5))
    result = SegmentResult(Size(2, 4), label_map, segments)
    expected = [
        encode_mask(RegionMask(0, 0, label_map == segment.index, result.size), mask_format) for segment in segments
    ]
    assert list(encode_segments(result, mask_format)) == expected
