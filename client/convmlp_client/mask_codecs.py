"""Decoders and encoders of masks: COCO run lengths, PNG, polygons.

Run lengths are COCO's compressed RLE (reference: pycocotools' maskApi.c). Runs go down the columns and alternate
between background and mask, background first. From the fourth on, a run is stored as the difference from the run two
before. Numbers are little-endian groups of five bits, each a printable character. Nothing here loops over pixels or
runs in Python.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import PIL.Image

from convmlp_client.geometry import BoolArray, ImageSize, Region

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

GROUP_BITS: Final = 5
CONTINUATION: Final = 1 << GROUP_BITS
SIGN: Final = 1 << (GROUP_BITS - 1)
FIRST_CHARACTER: Final = 48
MAX_GROUPS: Final = 7
"""Groups of a number: 34 bits and a sign hold the pixel count of every image that is served."""
MAX_COORDINATE: Final = 2.0**31


def decode_rle(counts: str, size: ImageSize) -> Region:
    """The columns from the first to the last mask pixel.

    Raises:
        ValueError: `counts` is malformed, or belongs to an image of another size.
    """
    runs = _decode_runs(counts, size)
    # Even edges are the starts of mask runs, odd ones their ends.
    edges = np.cumsum(runs)
    mask_runs = np.flatnonzero(runs[1::2])
    if not len(mask_runs):
        return Region(0, 0, np.zeros((0, 0), np.bool_))
    first, last = 2 * mask_runs[0], 2 * mask_runs[-1] + 1
    left = int(edges[first]) // size.height
    right = -(-int(edges[last]) // size.height)
    inner = np.diff(edges[first : last + 1], prepend=left * size.height, append=right * size.height)
    values = np.arange(len(inner)) % 2 == 1
    columns = np.repeat(values, inner).reshape(right - left, size.height)
    return Region(0, left, columns.T)


def rle_area(counts: str, size: ImageSize) -> int:
    """Number of mask pixels, without decoding them. Raises as `decode_rle`."""
    return int(_decode_runs(counts, size)[1::2].sum())


def encode_rle(pixels: BoolArray) -> str:
    """The `counts` of a mask, bool (H, W)."""
    columns = np.asfortranarray(pixels, np.bool_).ravel(order="F")
    changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    starts = np.concatenate(([0], changes)) if columns[:1].any() else changes
    runs = np.diff(starts, prepend=0, append=columns.size)
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    return _encode_numbers(numbers)


def decode_png(data: bytes, size: ImageSize, name: str = "mask") -> npt.NDArray[np.uint8]:
    """The values of an 8-bit grey PNG, which errors call `name`: uint8 (H, W).

    Raises:
        ValueError: `data` is not a complete PNG, or has another size.
    """
    try:
        with PIL.Image.open(io.BytesIO(data), formats=("PNG",)) as png:
            if png.size != (size.width, size.height):  # checked before the pixels are decoded
                raise ValueError(f"the {name} is {png.width} x {png.height}, its image {size.width} x {size.height}")
            return np.array(png.convert("L"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the {name} is not a complete PNG") from error


def fill_polygons(polygons: Sequence[Sequence[float]], size: ImageSize) -> Region:
    """The union of polygons, each filled by the even-odd rule and clipped to the image.

    A pixel belongs to a polygon if its centre lies inside. So outlines along pixel edges are filled exactly.

    Raises:
        ValueError: a polygon has an odd number of coordinates, fewer than three points, or a coordinate that is not
            finite or beyond 2**31.
    """
    outlines = [_outline(polygon) for polygon in polygons]
    if not outlines:
        return Region(0, 0, np.zeros((0, 0), np.bool_))
    left, top, right, bottom = _bounds(np.concatenate(outlines), size)
    pixels = np.zeros((bottom - top, right - left), np.bool_)
    for outline in outlines:
        xmin, ymin, xmax, ymax = _bounds(outline, size)
        part = pixels[ymin - top : ymax - top, xmin - left : xmax - left]
        part |= _fill(outline - (xmin, ymin), *part.shape)
    return Region(top, left, pixels)


def _decode_runs(counts: str, size: ImageSize) -> IntArray:
    """The run lengths, int64; their sum is the number of the image's pixels."""
    numbers = _decode_numbers(counts)
    total = size.width * size.height
    # Each run is stored as the difference from the last run of its kind, so one cumulative sum per kind undoes it.
    # The first run is stored as it is, and so is the next one of its kind.
    runs = numbers.copy()
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    if (runs < 0).any() or (runs > total).any() or runs.sum() != total:
        raise ValueError(f"the mask's run lengths do not fit an image of {size.width} x {size.height} pixels")
    return runs


def _decode_numbers(text: str) -> IntArray:
    try:
        groups = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - FIRST_CHARACTER
    except UnicodeEncodeError:
        groups = np.full(1, -1)
    if not len(groups):
        return np.zeros(0, np.int64)
    ends = (groups & CONTINUATION) == 0
    stops = np.flatnonzero(ends) + 1
    starts = np.concatenate(([0], stops[:-1]))
    lengths = stops - starts
    if (groups < 0).any() or (groups >= 2 * CONTINUATION).any() or not ends[-1] or lengths.max() > MAX_GROUPS:
        raise ValueError("the mask's run lengths are not in COCO's compressed form")
    shifts = GROUP_BITS * (np.arange(len(groups)) - np.repeat(starts, lengths))
    numbers: IntArray = np.add.reduceat((groups & (CONTINUATION - 1)) << shifts, starts)
    negative = (groups[stops - 1] & SIGN) != 0
    numbers -= negative << (GROUP_BITS * lengths)
    return numbers


def _encode_numbers(numbers: IntArray) -> str:
    # k groups hold numbers from -2**(5k - 1) to 2**(5k - 1) - 1. For a negative number the complement is compared.
    magnitudes = numbers ^ (numbers >> 63)
    limits = 1 << np.arange(GROUP_BITS - 1, 64, GROUP_BITS)
    lengths = np.searchsorted(limits, magnitudes, side="right") + 1
    place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    bits = (np.repeat(numbers, lengths) >> (GROUP_BITS * place)) & (CONTINUATION - 1)
    continued = place < np.repeat(lengths, lengths) - 1
    characters: npt.NDArray[np.uint8] = (FIRST_CHARACTER + bits + CONTINUATION * continued).astype(np.uint8)
    return characters.tobytes().decode("ascii")


def _outline(polygon: Sequence[float]) -> FloatArray:
    """The points of a polygon, float (n, 2)."""
    values = np.asarray(polygon, np.float64)
    # The comparison is false for NaN too.
    if len(values) % 2 or len(values) < 6 or not (np.abs(values) < MAX_COORDINATE).all():
        raise ValueError("a polygon of the mask is malformed; expected x and y of three points or more")
    return values.reshape(-1, 2)


def _bounds(points: FloatArray, size: ImageSize) -> tuple[int, int, int, int]:
    """The bounding box of points, float (n, 2), in whole pixels of the image: left, top, right, bottom."""
    limits = (size.width, size.height)
    left, top = (int(value) for value in np.clip(np.floor(points.min(axis=0)), 0, limits))
    right, bottom = (int(value) for value in np.clip(np.ceil(points.max(axis=0)), (left, top), limits))
    return left, top, right, bottom


def _fill(outline: FloatArray, height: int, width: int) -> BoolArray:
    """bool (height, width): True if an odd number of the outline's sides lies to the left of the pixel's centre."""
    x0, y0 = outline.T
    x1, y1 = np.roll(outline, -1, axis=0).T
    # The rows whose centres a side crosses. The interval is half open, so that a corner counts once.
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
