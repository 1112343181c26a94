from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.postprocess.masks import STRIP_PIXELS, RegionMask, paste
from model.types import BoolArray, Box, Float32Array, Size, SoftMask


def sampled(logits: Float32Array, box: Box, threshold: float, size: Size) -> BoolArray:
    """The definition: at each pixel's centre, the four nearest cells of the mask weighed bilinearly."""
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
    mask = paste(SoftMask(logits, threshold), box, size)
    expected = sampled(logits, box, threshold, size)
    # A value within rounding of the threshold may fall to either side.
    assert (mask.in_picture() != expected).sum() <= 1 + expected.size // 5000


def test_a_mask_of_many_strips_has_no_seams() -> None:
    """A mask larger than what is computed at a time equals the definition throughout."""
    size = Size(700, 900)
    assert size.height * size.width > 2 * STRIP_PIXELS
    logits, box = random_logits(1, 28), Box(3.3, 5.1, 896.2, 690.7)
    mask = paste(SoftMask(logits, 0.5), box, size)
    assert (mask.in_picture() != sampled(logits, box, 0.5, size)).sum() <= 5


def test_a_certain_mask_fills_its_box() -> None:
    """Where each cell is certain the mask is the pixels whose centres lie in the box, and nothing beyond."""
    mask = paste(SoftMask(np.full((28, 28), 50, np.float32), 0.5), Box(2.0, 3.0, 12.0, 8.0), Size(20, 30))
    expected = np.zeros((20, 30), np.bool_)
    expected[3:8, 2:12] = True
    np.testing.assert_array_equal(mask.in_picture(), expected)


def test_the_region_is_the_box_and_a_pixel_more_within_the_picture() -> None:
    """Only what the box can reach is computed: rows and columns of the box, one more at each side, none outside."""
    soft = SoftMask(random_logits(1, 28), 0.5)
    inner = paste(soft, Box(10.5, 20.5, 30.2, 40.2), Size(100, 200))
    assert (inner.top, inner.left, inner.pixels.shape) == (19, 9, (23, 23))
    at_the_edge = paste(soft, Box(0.0, 90.0, 200.0, 100.0), Size(100, 200))
    assert (at_the_edge.top, at_the_edge.left, at_the_edge.pixels.shape) == (89, 0, (11, 200))


def test_a_value_at_the_threshold_is_in_the_mask() -> None:
    """The threshold itself counts as set."""
    mask = paste(SoftMask(np.zeros((1, 1), np.float32), 0.5), Box(0.0, 0.0, 1.0, 1.0), Size(1, 1))
    assert mask.in_picture().tolist() == [[True]]


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
    """Boxes that cover nothing of the picture give empty masks and no error."""
    mask = paste(SoftMask(np.full((28, 28), 50, np.float32), 0.5), box, Size(10, 20))
    assert mask.in_picture().shape == (10, 20)
    assert not mask.in_picture().any()


def test_extreme_logits_are_no_overflow() -> None:
    """Logits beyond what exp holds are certain, not an error."""
    logits = np.array([[-1e30, 1e30], [-500, 500]], np.float32)
    mask = paste(SoftMask(logits, 0.5), Box(0.0, 0.0, 4.0, 4.0), Size(4, 4))
    np.testing.assert_array_equal(mask.in_picture(), [[False, False, True, True]] * 4)


def test_a_region_lies_where_it_says() -> None:
    """In the whole picture a region's pixels are at its rows and columns and the rest is unset."""
    whole = RegionMask(1, 2, np.array([[True, False], [True, True]]), Size(4, 5)).in_picture()
    assert np.argwhere(whole).tolist() == [[1, 2], [2, 2], [2, 3]]
