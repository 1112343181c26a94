"""Masks: pasting into the picture, and encoding as COCO RLE, PNG or polygons, one mask at a time.

COCO's compressed RLE is text that pycocotools decodes; it is made without a loop over pixels or runs. Runs go down the
columns and alternate between unset and set, unset first. From the third on, a run is written as the difference from
the previous run of its value. Numbers are little-endian groups of five bits, as printable characters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from model.png import png_bytes
from model.postprocess.polygons import Polygons, trace_polygons
from model.types import (
    BoolArray,
    Box,
    Detection,
    Float32Array,
    IntArray,
    LabelMapArray,
    SegmentResult,
    Size,
    SoftMask,
)

TRANSPOSED_ROWS = 64
STRIP_PIXELS = 1 << 18
"""Probabilities are computed for so many pixels at a time, to fit in a core's cache."""


@dataclass(frozen=True, slots=True)
class RegionMask:
    """A mask that is False outside of a rectangle.

    `pixels`, bool (h, w), lie at rows `top` to `top + h` and columns `left` to `left + w` of a picture of `size`.
    """

    top: int
    left: int
    pixels: BoolArray
    size: Size

    def full_mask(self) -> BoolArray:
        """The mask of the whole picture: bool (H, W)."""
        height, width = self.pixels.shape
        whole = np.zeros((self.size.height, self.size.width), np.bool_)
        whole[self.top : self.top + height, self.left : self.left + width] = self.pixels
        return whole


def paste_mask(mask: SoftMask, box: Box, size: Size) -> RegionMask:
    """The pixels of a picture of `size` at whose centres the mask's probability is at least its threshold.

    Probabilities (sigmoid of the logits) lie at the centres of an even grid over the box and are interpolated
    bilinearly, with zeros outside: mmdetection's pasting, `grid_sample` with align_corners=False. A box without area
    gives an empty mask.
    """
    top, bottom = _pixel_range(box.ymin, box.ymax, size.height)
    left, right = _pixel_range(box.xmin, box.xmax, size.width)
    if not (box.xmin < box.xmax and box.ymin < box.ymax):
        bottom, right = top, left
    cells_high, cells_wide = mask.logits.shape
    # The sigmoid by tanh, which does not overflow as exp does.
    probabilities = 0.5 + 0.5 * np.tanh(0.5 * mask.logits)
    by_row = _bilinear_weights(top, bottom, box.ymin, box.ymax, cells_high)
    by_column = _bilinear_weights(left, right, box.xmin, box.xmax, cells_wide)
    columns = by_column @ probabilities.T
    # Column-major, the order of COCO's RLE.
    pixels = np.empty((right - left, bottom - top), np.bool_)
    strip = max(STRIP_PIXELS // max(bottom - top, 1), 1)
    for start in range(0, right - left, strip):
        values = columns[start : start + strip] @ by_row.T
        np.greater_equal(values, mask.threshold, out=pixels[start : start + strip])
    return RegionMask(top, left, pixels.T, size)


def _pixel_range(lower: float, upper: float, length: int) -> tuple[int, int]:
    """The range of pixels that a box covers, and one more to either side, within the picture."""
    start = min(max(math.floor(lower) - 1, 0), length)
    stop = min(max(math.ceil(upper) + 1, start), length)
    return start, stop


def _bilinear_weights(start: int, stop: int, lower: float, upper: float, cells: int) -> Float32Array:
    """Interpolation weights of pixels from cells: float32 (stop - start, cells), at most two non-zero in a row."""
    if start == stop:
        return np.zeros((0, cells), np.float32)
    position = (np.arange(start, stop) + 0.5 - lower) / (upper - lower) * cells - 0.5
    # A triangle kernel of radius one cell is linear interpolation with zeros beyond the outer cells.
    distance = np.abs(position[:, None] - np.arange(cells))
    weights: Float32Array = np.maximum(1.0 - distance, 0.0).astype(np.float32)
    return weights


GROUP_BITS = 5
GROUP_LIMITS = 1 << np.arange(GROUP_BITS - 1, 64, GROUP_BITS)
CONTINUED = 1 << GROUP_BITS
FIRST_CHARACTER = 48


@dataclass(frozen=True, slots=True)
class RLE:
    """COCO's compressed RLE: a mask of a picture of `size`; `counts` is the text."""

    size: Size
    counts: str


def encode_rle(mask: RegionMask) -> RLE:
    """The RLE of the whole picture's mask."""
    return _from_edges(run_edges(mask.pixels.T, mask.left, mask.top, mask.size.height), mask.size)


def encode_segments_rle(result: SegmentResult) -> Iterator[RLE]:
    """The RLE of each segment, in order, from one pass over the label map."""
    columns = _transposed(result.label_map)
    for edges in segment_edges(columns, [segment.index for segment in result.segments]):
        yield _from_edges(edges, result.size)


def _transposed(label_map: LabelMapArray) -> LabelMapArray:
    """Contiguous, and by strips: faster than NumPy, whose reads leave out most of each line of the caches."""
    columns = np.empty(label_map.shape[::-1], label_map.dtype)
    for top in range(0, len(label_map), TRANSPOSED_ROWS):
        columns[:, top : top + TRANSPOSED_ROWS] = label_map[top : top + TRANSPOSED_ROWS].T
    return columns


def run_edges(lines: BoolArray, first_line: int, first_cell: int, length: int) -> IntArray:
    """The runs of set pixels of a region's mask, in the whole picture.

    Args:
        lines: the region's pixels, (rows, columns), or transposed for runs down the columns.
        first_line, first_cell: where the region begins in the picture, in the order of the axes of `lines`.
        length: of a line of the picture.

    Returns alternating starts and ends of runs, int64, as rising indices of the picture's pixels, line by line.
    """
    count, width = lines.shape
    # With an unset pixel before and behind it, every run begins and ends within its line, at a change of value.
    padded = np.zeros((count, width + 2), np.bool_)
    padded[:, 1:-1] = lines
    line, cell = np.divmod(np.flatnonzero(padded[:, 1:] != padded[:, :-1]), width + 1)
    edges = (first_line + line) * length + first_cell + cell
    # A run to the end of the picture's line and one from the beginning of the next line are one run.
    joined = np.flatnonzero(edges[1:] == edges[:-1])
    return np.delete(edges, np.concatenate((joined, joined + 1)))


def segment_edges(label_map: LabelMapArray, indices: Sequence[int]) -> Iterator[IntArray]:
    """For each class index the runs of its pixels, as `run_edges` gives them, from one pass over the label map."""
    flat = label_map.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate(([0], changes))
    stops = np.concatenate((changes, [flat.size]))
    labels = flat[starts]
    by_label = np.argsort(labels, kind="stable")
    sorted_labels = labels[by_label]
    for index in indices:
        first, last = np.searchsorted(sorted_labels, (index, index + 1))
        runs = by_label[first:last]
        yield np.stack((starts[runs], stops[runs]), axis=1).ravel()


def _from_edges(edges: IntArray, size: Size) -> RLE:
    """`edges`: of column-major runs, as `run_edges` gives them."""
    total = size.height * size.width
    ends = edges if len(edges) and edges[-1] == total else np.append(edges, total)
    runs = np.diff(ends, prepend=0)
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    return RLE(size, _text(numbers))


def _text(numbers: IntArray) -> str:
    # k groups represent -2**(5k - 1) to 2**(5k - 1) - 1; a negative number is compared by its complement.
    magnitudes = numbers ^ (numbers >> 63)
    lengths = np.searchsorted(GROUP_LIMITS, magnitudes, side="right") + 1
    positions = np.cumsum(lengths) - lengths
    text = np.empty(lengths.sum(), np.uint8)
    for group in range(lengths.max()):
        written = np.flatnonzero(lengths > group)
        bits = (numbers[written] >> (GROUP_BITS * group)) & (CONTINUED - 1)
        continued = lengths[written] > group + 1
        text[positions[written] + group] = FIRST_CHARACTER + bits + CONTINUED * continued
    return text.tobytes().decode("ascii")


class MaskFormat(StrEnum):
    """`rle`: COCO's compressed RLE; `png`: 8-bit grey, 0 or 255; `polygon`: outlines; `none`: no mask."""

    RLE = "rle"
    PNG = "png"
    POLYGON = "polygon"
    NONE = "none"


EncodedMask = RLE | bytes | Polygons | None


def encode_mask(mask: RegionMask, mask_format: MaskFormat) -> EncodedMask:
    """The whole picture's mask in a format."""
    match mask_format:
        case MaskFormat.RLE:
            return encode_rle(mask)
        case MaskFormat.PNG:
            return encode_png(mask)
        case MaskFormat.POLYGON:
            return encode_polygons(mask)
        case MaskFormat.NONE:
            return None


def encode_detection(detection: Detection, size: Size, mask_format: MaskFormat) -> EncodedMask:
    """A detection's mask in a picture of `size`; None if it has no mask or the format is `none`."""
    if detection.mask is None or mask_format is MaskFormat.NONE:
        return None
    return encode_mask(paste_mask(detection.mask, detection.box, size), mask_format)


def encode_segments(result: SegmentResult, mask_format: MaskFormat) -> Iterator[EncodedMask]:
    """The segments' masks, in order."""
    match mask_format:
        case MaskFormat.RLE:
            yield from encode_segments_rle(result)
        case MaskFormat.NONE:
            yield from [None] * len(result.segments)
        case MaskFormat.PNG:
            for segment in result.segments:
                yield _png(result.label_map == segment.index)
        case MaskFormat.POLYGON:
            yield from trace_polygons(result.label_map, [segment.index for segment in result.segments])


def encode_png(mask: RegionMask) -> bytes:
    """An 8-bit grey PNG of the whole picture: 255 where the mask is set, else 0."""
    return _png(mask.full_mask())


def _png(mask: BoolArray) -> bytes:
    return png_bytes(mask.view(np.uint8) * np.uint8(255))


def encode_polygons(mask: RegionMask) -> Polygons:
    """The mask's connected parts as polygons, in pixels of the picture: `model.postprocess.polygons`."""
    (polygons,) = trace_polygons(np.ascontiguousarray(mask.pixels), [True], mask.left, mask.top)
    return polygons


def rounded_score(score: float) -> float:
    """A score with six significant digits, as JSON carries it."""
    return float(f"{score:.6g}")
