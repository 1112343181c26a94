"""Places in a picture, in pixels of the upright one: origin at its top left corner, x to the right, y down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ImageSize:
    """An upright picture's size: EXIF orientation applied."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Box:
    """Pixel (column, row) spans column to column + 1 and row to row + 1; xmax and ymax are where the box ends."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True, slots=True)
class Region:
    """The rectangle of a picture that holds a mask: `pixels`, bool (h, w), and its first row and column."""

    top: int
    left: int
    pixels: BoolArray
