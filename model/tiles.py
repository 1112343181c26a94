"""Tiles of a large picture: overlapping windows of one size, cut from its full-resolution pixels.

Each window is a network input with a geometry of its own. `model/postprocess/tile_detections.py` and `tile_segments.py`
join the outputs again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from model.decode import Picture
from model.errors import ImageTooLarge
from model.pixels import as_array
from model.preprocess import prepare_picture
from model.spec import CenterCropSpec, FixedSizeSpec, Preprocessing
from model.types import ModelInput, Size, Task

DEFAULT_OVERLAP = 0.2
MAX_OVERLAP = 0.8
MIN_SIDE, MAX_SIDE = 32, 65535
"""Of a window, in pixels of the upright picture."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a request wants its picture to be cut.

    `size`: of the windows, in pixels of the upright picture; None: of the model's input, or the smallest multiple of it
    that gives no more windows than are allowed. `overlap`: the least part of a window's side that the next one shares.
    """

    size: Size | None = None
    overlap: float = DEFAULT_OVERLAP


@dataclass(frozen=True, slots=True)
class Window:
    """Pixels of the upright picture: rows `top` to `top + height`, columns `left` to `left + width`."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Windows of one size in rows and columns that cover a picture, evenly spread."""

    picture: Size
    window: Size
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def windows(self) -> Iterator[Window]:
        """Row by row."""
        for top in self.tops:
            for left in self.lefts:
                yield Window(top, left, self.window.height, self.window.width)


@dataclass(frozen=True, slots=True)
class TiledInput:
    """The network inputs of a picture's windows, row by row, and then that of the whole picture if it has one."""

    grid: TileGrid
    inputs: tuple[ModelInput, ...]

    def windows(self) -> list[Window]:
        """Where each input lies in the picture."""
        windows = list(self.grid.windows())
        if len(self.inputs) > len(windows):
            windows.append(Window(0, 0, self.grid.picture.height, self.grid.picture.width))
        return windows


def needs_whole(task: Task) -> bool:
    """Whether the whole picture is an input as well. A detector finds objects in it that are larger than a window."""
    return task is Task.DETECT


def count_windows(picture: Size, tiling: Tiling, spec: Preprocessing, limit: int) -> int:
    """The number of windows of a picture; `limit`: the largest number that is allowed."""
    window = _window_size(picture, tiling, spec, limit)
    return _count(picture, window, tiling.overlap)


def plan_tiles(picture: Size, tiling: Tiling, spec: Preprocessing, limit: int) -> TileGrid:
    """The windows of an upright picture.

    Args:
        picture: its upright size.
        tiling: as requested.
        spec: the model's preprocessing, from which the default size follows.
        limit: the largest number of windows that is allowed, at least 1.

    Raises:
        ImageTooLarge: there would be more.
    """
    window = _window_size(picture, tiling, spec, limit)
    count = _count(picture, window, tiling.overlap)
    if count > limit:
        side = _smallest_side(picture, tiling.overlap, limit)
        raise ImageTooLarge(
            f"tiles={window.width}x{window.height} with tile_overlap={tiling.overlap:g} cuts this image of "
            f"{picture.width} x {picture.height} pixels into {count:,} windows; the limit is {limit}; use tiles={side} "
            "or larger, or tiles=auto"
        )
    return TileGrid(
        picture,
        window,
        _starts(picture.height, window.height, tiling.overlap),
        _starts(picture.width, window.width, tiling.overlap),
    )


def prepare_tiles(
    picture: Picture, spec: Preprocessing, grid: TileGrid, *, whole: bool, before_each: Callable[[], None]
) -> TiledInput:
    """The network inputs of a picture's windows.

    Args:
        picture: decoded at its full size.
        spec: the model's preprocessing; each window is resized as a picture of its own.
        grid: the windows.
        whole: add the input of the whole picture.
        before_each: called before each window; what it raises ends the work.
    """
    pixels = as_array(picture.source)
    inputs = []
    for window in grid.windows():
        before_each()
        part = pixels[window.top : window.top + window.height, window.left : window.left + window.width]
        inputs.append(prepare_picture(Picture(part, grid.window), spec))
    if whole:
        before_each()
        inputs.append(prepare_picture(picture, spec))
    return TiledInput(grid, tuple(inputs))


def input_size(spec: Preprocessing, picture: Size) -> Size:
    """The largest size of a picture of this one's orientation that the model takes without scaling it down."""
    if isinstance(spec, CenterCropSpec):
        return Size(spec.crop, spec.crop)
    if isinstance(spec, FixedSizeSpec):
        return Size(spec.height, spec.width)
    long, short = max(spec.long_side, spec.short_side), min(spec.long_side, spec.short_side)
    return Size(short, long) if picture.width >= picture.height else Size(long, short)


def _window_size(picture: Size, tiling: Tiling, spec: Preprocessing, limit: int) -> Size:
    if tiling.size is not None:
        return _within(tiling.size, picture)
    smallest = input_size(spec, picture)
    multiple = 1
    while _count(picture, window := _scaled(smallest, multiple, picture), tiling.overlap) > limit:
        multiple += 1
    return window


def _scaled(size: Size, multiple: int, picture: Size) -> Size:
    return _within(Size(size.height * multiple, size.width * multiple), picture)


def _within(size: Size, picture: Size) -> Size:
    return Size(min(size.height, picture.height), min(size.width, picture.width))


def _count(picture: Size, window: Size, overlap: float) -> int:
    return _count_along(picture.height, window.height, overlap) * _count_along(picture.width, window.width, overlap)


def _count_along(length: int, window: int, overlap: float) -> int:
    """Along an axis: as many as it takes so that neighbours share at least the overlap."""
    step = max(1, math.floor(window * (1 - overlap) + 1e-6))
    return 1 if window >= length else math.ceil((length - window) / step) + 1


def _starts(length: int, window: int, overlap: float) -> tuple[int, ...]:
    gaps = max(_count_along(length, window, overlap) - 1, 1)
    last = length - min(window, length)
    return tuple(sorted({round(number * last / gaps) for number in range(gaps + 1)}))


def _smallest_side(picture: Size, overlap: float, limit: int) -> int:
    """The smallest square window of which no more than the limit cover a picture."""
    low, high = 1, max(picture.height, picture.width)
    while low < high:
        side = (low + high) // 2
        if _count(picture, _within(Size(side, side), picture), overlap) <= limit:
            high = side
        else:
            low = side + 1
    return low
