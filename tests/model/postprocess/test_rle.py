from __future__ import annotations

import json
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from pycocotools import mask as coco

from model.postprocess.masks import RegionMask
from model.postprocess.rle import RLE, encode_rle, encode_segments_rle
from model.types import BoolArray, Segment, SegmentResult, Size
from tests.goldens import GOLDENS, requires_goldens

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
    """A rectangle, empty or not, anywhere in a picture up to its edges."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    top, left = draw(st.integers(0, height)), draw(st.integers(0, width))
    shape = (draw(st.integers(0, height - top)), draw(st.integers(0, width - left)))
    return RegionMask(top, left, draw(stn.arrays(np.bool_, shape)), Size(height, width))


@given(mask=regions())
@settings(max_examples=300, derandomize=True, deadline=None)
def test_a_region_is_encoded_as_coco_encodes_the_whole(mask: RegionMask) -> None:
    """A region's text is the one that COCO's own encoder gives for the whole picture, and decodes to it."""
    rle = encode_rle(mask)
    assert rle.size == mask.size
    assert rle.counts == coco_text(mask.in_picture())
    np.testing.assert_array_equal(decoded(rle), mask.in_picture())


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
    """Empty, full, diagonal, striped and single-pixel masks decode to themselves in either memory order."""
    mask = whole_picture(np.asarray(pixels, order=order))
    assert encode_rle(mask).counts == coco_text(pixels)


def test_long_runs_take_as_many_characters_as_they_need() -> None:
    """Runs on both sides of each length that adds a character, up to millions of pixels, are COCO's text."""
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
    """Each segment's text is that of the pixels of its class, in the order of the segments."""
    size = Size(*label_map.shape)
    present = np.unique(label_map)[::-1].tolist()
    segments = tuple(Segment(str(index), index, int((label_map == index).sum())) for index in present)
    encoded = list(encode_segments_rle(SegmentResult(size, label_map, segments)))
    assert encoded == [RLE(size, coco_text(label_map == index)) for index in present]


@requires_goldens
@pytest.mark.parametrize("picture", ["a", "b", "d"])
def test_real_masks_are_encoded_as_the_authors_are(picture: str) -> None:
    """The masks of the authors' own answers, decoded and encoded again, are the same text."""
    answer = json.loads((GOLDENS / "final" / f"maskrcnn_s_{picture}.json").read_text(encoding="utf-8"))
    assert answer["masks"]
    for mask in answer["masks"]:
        pixels = coco.decode(mask).astype(np.bool_)
        assert encode_rle(whole_picture(pixels)).counts == mask["counts"]
