"""Masks in the run-length encoding of Label Studio's brush, without a loop over pixels or runs.

It is thi.ng's `rle-pack` of a picture's RGBA bytes, row by row: a stream of bits, the highest first. Its head is the
number of bytes (32 bits), the length of a word (5 bits, less one) and four lengths of counts (4 bits each, less one).
Then follow runs: a set bit, which of the four lengths the count has (2 bits), the count (less one), and the word.
All four channels of a pixel are 255 in the mask and 0 outside.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from model.postprocess.masks import RegionMask, run_edges, segment_edges
from model.types import IntArray, SegmentResult, Size

CHANNELS = 4
WORD_BITS = 8
COUNT_BITS = np.array((3, 4, 8, 16))
"""The lengths of counts that Label Studio itself writes."""
MAX_COUNT = 1 << 16
SET = 255


def encode_brush(mask: RegionMask) -> bytes:
    """The whole picture's mask; `list` of it is the `rle` of a result."""
    return _pack(run_edges(mask.pixels, mask.top, mask.left, mask.size.width), mask.size)


def encode_segments_brush(result: SegmentResult) -> Iterator[bytes]:
    """The mask of each segment, in order, from one pass over the label map."""
    for edges in segment_edges(result.label_map, [segment.index for segment in result.segments]):
        yield _pack(edges, result.size)


def _pack(edges: IntArray, size: Size) -> bytes:
    """`edges`: of row-major runs, as `run_edges` gives them."""
    total = size.height * size.width
    counts = np.diff(edges, prepend=0, append=total) * CHANNELS
    words = np.zeros(len(counts), np.int64)
    words[1::2] = SET
    counts, words = counts[counts > 0], words[counts > 0]
    # A run that is too long for one count is several.
    pieces = -(-counts // MAX_COUNT)
    ends = np.cumsum(pieces) - 1
    rests = counts - (pieces - 1) * MAX_COUNT
    counts = np.full(int(pieces.sum()), MAX_COUNT)
    counts[ends] = rests
    words = np.repeat(words, pieces)
    kinds = np.searchsorted(1 << COUNT_BITS, counts)
    bits = COUNT_BITS[kinds]
    runs = (((0b100 | kinds) << bits | (counts - 1)) << WORD_BITS) | words
    lengths = 3 + bits + WORD_BITS
    head = np.array((total * CHANNELS, WORD_BITS - 1, *(COUNT_BITS - 1)))
    head_lengths = np.array((32, 5, 4, 4, 4, 4))
    return _bits(np.concatenate((head, runs)), np.concatenate((head_lengths, lengths)))


def _bits(numbers: IntArray, lengths: IntArray) -> bytes:
    """The numbers one after the other in as many bits each, filled up with zeros to whole bytes."""
    stops = np.cumsum(lengths)
    written = np.zeros(int(stops[-1]), np.uint8)
    for bit in range(int(lengths.max())):
        has_bit = lengths > bit
        written[stops[has_bit] - 1 - bit] = (numbers[has_bit] >> bit) & 1
    return np.packbits(written).tobytes()
