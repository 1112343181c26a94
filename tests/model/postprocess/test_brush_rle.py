"""Label Studio's brush encoding; `tests/clients/test_labelstudio.py` decodes it with Label Studio's own code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from model.postprocess.brush_rle import MAX_COUNT, encode_brush, encode_segments_brush
from model.postprocess.masks import RegionMask
from model.types import BoolArray, Segment, SegmentResult, Size, UInt8Array


def decoded(rle: bytes) -> UInt8Array:
    """The format's definition, bit by bit: the words of all runs, uint8."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word_bits = read(32), read(5) + 1
    count_bits = [read(4) + 1 for _ in range(4)]
    words: list[int] = []
    while len(words) < total:
        is_run = read(1)
        count = read(count_bits[read(2)]) + 1
        words += [read(word_bits)] * count if is_run else [read(word_bits) for _ in range(count)]
    assert len(bits) - place < 8
    return np.array(words, np.uint8)


def rgba(mask: BoolArray) -> UInt8Array:
    return np.repeat(mask.ravel(), 4).astype(np.uint8) * np.uint8(255)


@given(
    pixels=stn.arrays(np.bool_, stn.array_shapes(min_dims=2, max_dims=2, max_side=24)),
    margins=st.tuples(*[st.integers(0, 3)] * 4),
)
@settings(max_examples=150, derandomize=True, deadline=None)
def test_a_region_of_a_picture(pixels: BoolArray, margins: tuple[int, int, int, int]) -> None:
    """The rows of the whole picture, all four channels of a pixel alike, 255 in the mask."""
    top, bottom, left, right = margins
    whole = np.pad(pixels, ((top, bottom), (left, right)))
    rle = encode_brush(RegionMask(top, left, pixels, Size(*whole.shape)))
    assert np.array_equal(decoded(rle), rgba(whole))


@pytest.mark.parametrize("value", [False, True])
@pytest.mark.parametrize("pixels", [MAX_COUNT // 4, MAX_COUNT // 4 + 1, MAX_COUNT // 2])
def test_runs_that_are_longer_than_a_count(value: bool, pixels: int) -> None:
    """They are written as several."""
    mask = np.full((1, pixels), value)
    assert np.array_equal(decoded(encode_brush(RegionMask(0, 0, mask, Size(1, pixels)))), rgba(mask))


def test_segments() -> None:
    """Each segment's mask is that of its class in the label map."""
    label_map = np.random.default_rng(0).integers(0, 3, (17, 23), np.uint8)
    segments = tuple(Segment(str(index), index, 1, 1.0) for index in (2, 0))
    encoded = list(encode_segments_brush(SegmentResult(Size(17, 23), label_map, segments)))
    assert [decoded(rle).tolist() for rle in encoded] == [rgba(label_map == index).tolist() for index in (2, 0)]
