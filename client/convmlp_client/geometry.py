"""Sizes, boxes and regions of an image.

All coordinates are in pixels of the upright image (EXIF orientation applied): origin at the top left corner, x to the
right, y down. The pixel (column, row) spans x from column to column + 1 and y from row to row + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Width and height of an upright image, in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in float pixels; xmax and ymax are exclusive, so that the width is xmax - xmin."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True, slots=True)
class Region:
    """The part of an image that holds a mask.

    `pixels` is bool (h, w). Its first row is the image's row `top`, its first column the image's column `left`.
    """

    top: int
    left: int
    pixels: BoolArray
