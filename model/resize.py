"""OpenCV's bilinear resize, and copies of pixels that mirror and turn: by resample.c, or by NumPy without it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from model.types import IntArray, UInt8Array

try:
    from model import _resample

    COMPILED = True
except ImportError:
    COMPILED = False
"""Whether resample.c is compiled. Without it NumPy and Pillow make the same pixels, slower."""

WEIGHT_ONE = 2048
"""OpenCV's weights have 11 bits."""
STRIP_ROWS = 32
"""Of the result, resized at a time by NumPy."""


def resize_bilinear(pixels: UInt8Array, out: UInt8Array) -> None:
    """Resize a picture to the size of `out`, equal to the bit to OpenCV 5's INTER_LINEAR. Rows are contiguous.

    Args:
        pixels: uint8 (H, W, 3 or 4), the fourth channel is ignored.
        out: uint8 (h, w, 3), written. It may be a part of a larger array.

    Raises:
        ValueError: another shape or layout, or a side without pixels.
        MemoryError: no memory for two rows of intermediate values.
    """
    if COMPILED:
        _resample.bilinear(pixels, out)
    else:
        _resize_bilinear(pixels, out)


def copy_pixels(source: UInt8Array, out: UInt8Array) -> None:
    """Copy the first three channels: uint8 (H, W, 3 or 4) with contiguous rows → uint8 (H, W, 3).

    `out` is any view: reversed or transposed, it mirrors or turns the picture. The two do not overlap.

    Raises:
        ValueError: another shape or layout, or a side without pixels.
    """
    if COMPILED:
        _resample.copy(source, out)
    else:
        out[:] = source[:, :, :3]


def _resize_bilinear(pixels: UInt8Array, out: UInt8Array) -> None:
    """Means of two neighbours in each row lose 4 bits; their products with the weight of a row lose 16."""
    (height, width), (rows, columns) = pixels.shape[:2], out.shape[:2]
    if (height, width) == (2 * rows, 2 * columns):
        for top in range(0, rows, STRIP_ROWS):
            part = out[top : top + STRIP_ROWS]
            squares = pixels[2 * top : 2 * (top + len(part)), :, :3].reshape(len(part), 2, columns, 2, 3)
            part[:] = (squares.sum(axis=(1, 3), dtype=np.uint16) + 2) >> 2
        return
    upper, first_row, second_row = _neighbours(height, rows)
    left, first, second = _neighbours(width, columns)
    outside = (left < 0) | (left >= width - 1)
    first[outside], second[outside] = WEIGHT_ONE, 0
    places, next_places = left.clip(0, width - 1), (left + 1).clip(0, width - 1)

    def means(ys: IntArray) -> npt.NDArray[np.int32]:
        taken = pixels[ys.clip(0, height - 1), :, :3]
        sums = taken[:, places] * first[:, None] + taken[:, next_places] * second[:, None]
        return np.asarray(sums >> 4, np.int32)

    for top in range(0, rows, STRIP_ROWS):
        strip = slice(top, top + STRIP_ROWS)
        above, below = means(upper[strip]), means(upper[strip] + 1)
        sums = (above * first_row[strip, None, None] >> 16) + (below * second_row[strip, None, None] >> 16)
        out[strip] = (sums + 2 >> 2).clip(0, 255)


def _neighbours(length: int, number: int) -> tuple[IntArray, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """For each of `number` results the first of its two sources, from -1 on, and both weights, rounded as in OpenCV."""
    place = ((np.arange(number) + 0.5) * (1.0 / (number / length)) - 0.5).astype(np.float32)
    first = np.floor(place)
    part = place - first
    weights = (np.rint((np.float32(1) - part) * WEIGHT_ONE), np.rint(part * WEIGHT_ONE))
    return first.astype(np.int64), weights[0].astype(np.int32), weights[1].astype(np.int32)
