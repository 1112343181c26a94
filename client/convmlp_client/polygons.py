"""Polygons → pixels: a pixel is set where its centre is inside, so outlines along pixel edges are filled exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from convmlp_client.geometry import BoolArray, ImageSize, Region

FloatArray = npt.NDArray[np.float64]

MAX_COORDINATE: Final = 2.0**31


def fill_polygons(polygons: Sequence[Sequence[float]], size: ImageSize) -> Region:
    """All that is inside of any of them, each by the even-odd rule, as far as it lies in the picture.

    Raises:
        ValueError: one has an odd number of coordinates, fewer than three points, or a coordinate of no picture.
    """
    outlines = [_points(polygon) for polygon in polygons]
    if not outlines:
        return Region(0, 0, np.zeros((0, 0), np.bool_))
    left, top, right, bottom = _bounds(np.concatenate(outlines), size)
    pixels = np.zeros((bottom - top, right - left), np.bool_)
    for outline in outlines:
        xmin, ymin, xmax, ymax = _bounds(outline, size)
        part = pixels[ymin - top : ymax - top, xmin - left : xmax - left]
        part |= _inside(outline - (xmin, ymin), *part.shape)
    return Region(top, left, pixels)


def _points(polygon: Sequence[float]) -> FloatArray:
    values = np.asarray(polygon, np.float64)
    # NaN fails the comparison as well.
    if len(values) % 2 or len(values) < 6 or not (np.abs(values) < MAX_COORDINATE).all():
        raise ValueError("a polygon of the mask is malformed; expected x and y of three points or more")
    return values.reshape(-1, 2)


def _bounds(points: FloatArray, size: ImageSize) -> tuple[int, int, int, int]:
    """The pixels of the picture that the points, float (n, 2), enclose: left, top, right, bottom."""
    limits = (size.width, size.height)
    left, top = (int(value) for value in np.clip(np.floor(points.min(axis=0)), 0, limits))
    right, bottom = (int(value) for value in np.clip(np.ceil(points.max(axis=0)), (left, top), limits))
    return left, top, right, bottom


def _inside(outline: FloatArray, height: int, width: int) -> BoolArray:
    """bool (height, width): where an odd number of the outline's sides lies to the left of a pixel's centre."""
    x0, y0 = outline.T
    x1, y1 = np.roll(outline, -1, axis=0).T
    # The rows whose centres a side crosses, half open, so that a corner counts once.
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
    stop = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
    crossed = stop - first
    side = np.repeat(np.arange(len(outline)), crossed)
    rows = np.arange(len(side)) - np.repeat(np.cumsum(crossed) - crossed, crossed) + first[side]
    x = x0[side] + (rows + 0.5 - y0[side]) * (x1[side] - x0[side]) / (y1[side] - y0[side])
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    odd = np.zeros((height, width + 1), np.bool_)
    np.logical_xor.at(odd, (rows, columns), True)
    inside: BoolArray = np.logical_xor.accumulate(odd, axis=1)[:, :width]
    return inside
