"""COCO's compressed run lengths, read and written without a loop over pixels or runs.

Runs go down the columns and alternate between unset and set, unset first. From the third on a run is written as the
difference to the last one of its kind; numbers are little-endian groups of five bits, each a printable character.
(pycocotools' maskApi.c is the format's reference.)
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from convmlp_client.geometry import BoolArray, ImageSize, Region

IntArray = npt.NDArray[np.int64]

GROUP_BITS: Final = 5
CONTINUED: Final = 1 << GROUP_BITS
SIGN: Final = 1 << (GROUP_BITS - 1)
FIRST_CHARACTER: Final = 48
MAX_GROUPS: Final = 7
"""Of a number: 34 bits and a sign, more than the pixels of any picture that is served."""


def decode_rle(counts: str, size: ImageSize) -> Region:
    """The columns between the first and the last set pixel.

    Raises:
        ValueError: `counts` is not COCO's text, or is of a picture of another size.
    """
    runs = _runs(counts, size)
    # Where runs of set pixels begin and end.
    edges = np.cumsum(runs)
    set_runs = np.flatnonzero(runs[1::2])
    if not len(set_runs):
        return Region(0, 0, np.zeros((0, 0), np.bool_))
    first, last = 2 * set_runs[0], 2 * set_runs[-1] + 1
    left = int(edges[first]) // size.height
    right = -(-int(edges[last]) // size.height)
    inner = np.diff(edges[first : last + 1], prepend=left * size.height, append=right * size.height)
    values = np.arange(len(inner)) % 2 == 1
    columns = np.repeat(values, inner).reshape(right - left, size.height)
    return Region(0, left, columns.T)


def rle_area(counts: str, size: ImageSize) -> int:
    """How many pixels are set. Raises as `decode_rle`."""
    return int(_runs(counts, size)[1::2].sum())


def encode_rle(pixels: BoolArray) -> str:
    """COCO's text of a mask, bool (H, W)."""
    columns = np.asfortranarray(pixels, np.bool_).ravel(order="F")
    changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    starts = np.concatenate(([0], changes)) if columns[:1].any() else changes
    runs = np.diff(starts, prepend=0, append=columns.size)
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    return _text(numbers)


def _runs(counts: str, size: ImageSize) -> IntArray:
    """How long each run is, int64; they add up to the picture's pixels."""
    numbers = _numbers(counts)
    total = size.width * size.height
    # Two sums, since each kind of run was told by its differences; the first run of all stands alone.
    runs = numbers.copy()
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    if (runs < 0).any() or (runs > total).any() or runs.sum() != total:
        raise ValueError(f"the mask's run lengths are not those of a picture of {size.width} x {size.height} pixels")
    return runs


def _numbers(text: str) -> IntArray:
    try:
        groups = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - FIRST_CHARACTER
    except UnicodeEncodeError:
        groups = np.full(1, -1)
    if not len(groups):
        return np.zeros(0, np.int64)
    ends = (groups & CONTINUED) == 0
    stops = np.flatnonzero(ends) + 1
    starts = np.concatenate(([0], stops[:-1]))
    lengths = stops - starts
    if (groups < 0).any() or (groups >= 2 * CONTINUED).any() or not ends[-1] or lengths.max() > MAX_GROUPS:
        raise ValueError("the mask's run lengths are not in COCO's compressed form")
    shifts = GROUP_BITS * (np.arange(len(groups)) - np.repeat(starts, lengths))
    numbers: IntArray = np.add.reduceat((groups & (CONTINUED - 1)) << shifts, starts)
    negative = (groups[stops - 1] & SIGN) != 0
    numbers -= negative << (GROUP_BITS * lengths)
    return numbers


def _text(numbers: IntArray) -> str:
    # k groups hold numbers from -2**(5k - 1) to 2**(5k - 1) - 1; of a negative one the complement is compared.
    magnitudes = numbers ^ (numbers >> 63)
    limits = 1 << np.arange(GROUP_BITS - 1, 64, GROUP_BITS)
    lengths = np.searchsorted(limits, magnitudes, side="right") + 1
    place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    bits = (np.repeat(numbers, lengths) >> (GROUP_BITS * place)) & (CONTINUED - 1)
    goes_on = place < np.repeat(lengths, lengths) - 1
    characters: npt.NDArray[np.uint8] = (FIRST_CHARACTER + bits + CONTINUED * goes_on).astype(np.uint8)
    return characters.tobytes().decode("ascii")
