"""COCO's compressed run lengths: masks as text that pycocotools decodes, without a loop over pixels or runs.

Runs go down the columns and alternate between unset and set, unset first. From the third on a run is written as
the difference to the last one of its kind; numbers are little-endian groups of five bits, as printable text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from model.postprocess.masks import RegionMask
from model.types import IntArray, SegmentResult, Size

GROUP_BITS = 5
GROUP_LIMITS = 1 << np.arange(GROUP_BITS - 1, 64, GROUP_BITS)
CONTINUED = 1 << GROUP_BITS
FIRST_CHARACTER = 48


@dataclass(frozen=True, slots=True)
class RLE:
    """A mask of a picture of `size`; `counts` is COCO's text."""

    size: Size
    counts: str


def encode_rle(mask: RegionMask) -> RLE:
    """Straight from the region, whose columns become runs of the whole picture."""
    height, width = mask.pixels.shape
    # An unset row above and below makes every run begin and end within its column, at a change of value.
    columns = np.zeros((width, height + 2), np.bool_)
    columns[:, 1:-1] = mask.pixels.T
    column, row = np.divmod(np.flatnonzero(columns[:, 1:] != columns[:, :-1]), height + 1)
    edges = (mask.left + column) * mask.size.height + mask.top + row
    # Where a run ends at the picture's bottom and the next begins at its top they are one.
    joined = np.flatnonzero(edges[1:] == edges[:-1])
    return _from_edges(np.delete(edges, np.concatenate((joined, joined + 1))), mask.size)


def encode_segments_rle(result: SegmentResult) -> Iterator[RLE]:
    """One per segment, in their order, from a single pass over the label map."""
    columns = cv2.transpose(result.label_map).ravel()
    changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    starts = np.concatenate(([0], changes))
    stops = np.concatenate((changes, [columns.size]))
    labels = columns[starts]
    by_label = np.argsort(labels, kind="stable")
    sorted_labels = labels[by_label]
    for segment in result.segments:
        first, last = np.searchsorted(sorted_labels, (segment.index, segment.index + 1))
        runs = by_label[first:last]
        yield _from_edges(np.stack((starts[runs], stops[runs]), axis=1).ravel(), result.size)


def _from_edges(edges: IntArray, size: Size) -> RLE:
    """`edges`: where runs of set pixels begin and end, in turn, as rising indices down the columns."""
    total = size.height * size.width
    ends = edges if len(edges) and edges[-1] == total else np.append(edges, total)
    runs = np.diff(ends, prepend=0)
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    return RLE(size, _text(numbers))


def _text(numbers: IntArray) -> str:
    # k groups hold numbers from -2**(5k - 1) to 2**(5k - 1) - 1; of a negative one the complement is compared.
    magnitudes = numbers ^ (numbers >> 63)
    lengths = np.searchsorted(GROUP_LIMITS, magnitudes, side="right") + 1
    positions = np.cumsum(lengths) - lengths
    text = np.empty(lengths.sum(), np.uint8)
    for group in range(lengths.max()):
        written = np.flatnonzero(lengths > group)
        bits = (numbers[written] >> (GROUP_BITS * group)) & (CONTINUED - 1)
        goes_on = lengths[written] > group + 1
        text[positions[written] + group] = FIRST_CHARACTER + bits + CONTINUED * goes_on
    return text.tobytes().decode("ascii")
