"""SoftMask → RegionMask: an instance mask pasted into the picture, in the part of it that its box can touch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from model.types import BoolArray, Box, Float32Array, Size, SoftMask

STRIP_PIXELS = 1 << 18
"""Probabilities are held for so many pixels at a time: few enough for a core's cache."""


@dataclass(frozen=True, slots=True)
class RegionMask:
    """A mask that is False outside of one rectangle of its picture.

    `pixels`, bool (h, w), lie at rows `top` to `top + h` and columns `left` to `left + w` of a picture of `size`.
    """

    top: int
    left: int
    pixels: BoolArray
    size: Size

    def in_picture(self) -> BoolArray:
        """The whole picture's mask, bool (H, W)."""
        height, width = self.pixels.shape
        whole = np.zeros((self.size.height, self.size.width), np.bool_)
        whole[self.top : self.top + height, self.left : self.left + width] = self.pixels
        return whole


def paste(mask: SoftMask, box: Box, size: Size) -> RegionMask:
    """The pixels of a picture of `size` at whose centres the mask is at least its threshold.

    The mask's probabilities (sigmoid of its logits) are spread evenly over the box, each at the centre of its
    cell, and read bilinearly with zeros beyond: mmdetection's pasting, `grid_sample` with corners not aligned.
    A box without an area has no pixels.
    """
    top, bottom = _touched(box.ymin, box.ymax, size.height)
    left, right = _touched(box.xmin, box.xmax, size.width)
    if not (box.xmin < box.xmax and box.ymin < box.ymax):
        bottom, right = top, left
    cells_high, cells_wide = mask.logits.shape
    # By tanh, which does not overflow where exp does.
    probabilities = 0.5 + 0.5 * np.tanh(0.5 * mask.logits)
    by_row = _bilinear_weights(top, bottom, box.ymin, box.ymax, cells_high)
    by_column = _bilinear_weights(left, right, box.xmin, box.xmax, cells_wide)
    columns = by_column @ probabilities.T
    # Columns first in memory: the order of COCO's run lengths.
    pixels = np.empty((right - left, bottom - top), np.bool_)
    strip = max(STRIP_PIXELS // max(bottom - top, 1), 1)
    for start in range(0, right - left, strip):
        values = columns[start : start + strip] @ by_row.T
        np.greater_equal(values, mask.threshold, out=pixels[start : start + strip])
    return RegionMask(top, left, pixels.T, size)


def _touched(lower: float, upper: float, length: int) -> tuple[int, int]:
    """The pixels that a box covers and one more to either side, within the picture."""
    start = min(max(math.floor(lower) - 1, 0), length)
    stop = min(max(math.ceil(upper) + 1, start), length)
    return start, stop


def _bilinear_weights(start: int, stop: int, lower: float, upper: float, cells: int) -> Float32Array:
    """What each cell adds to each pixel: float32 (stop - start, cells), at most two of a row other than zero."""
    if start == stop:
        return np.zeros((0, cells), np.float32)
    position = (np.arange(start, stop) + 0.5 - lower) / (upper - lower) * cells - 0.5
    # A triangle of width one cell to either side is bilinear interpolation with zeros beyond the outer cells.
    distance = np.abs(position[:, None] - np.arange(cells))
    weights: Float32Array = np.maximum(1.0 - distance, 0.0).astype(np.float32)
    return weights
