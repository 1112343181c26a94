"""Logits of a picture's windows → the class of each of its pixels: blended where windows overlap.

A window's logits are interpolated as the network's own postprocessing does it: bilinearly to the input's size, then to
the window's (align_corners=False). Their weights fall to 0 towards an edge that another window goes beyond, and sum to
1 at each pixel. Interpolation and weights are separable, so blocks of pixels are products of small matrices. Only the
label map and the confidences are as large as the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model.spec import odds_of_other_class
from model.tiles import TiledInput
from model.types import (
    Float32Array,
    IntArray,
    LabelMapArray,
    LogitsOutput,
    QueryParams,
    SegmentOutput,
)

BLOCK_HEIGHT, BLOCK_WIDTH = 128, 256
"""Pixels of a block: its arrays fit into a core's cache."""
NEGLIGIBLE = 16.0
"""A class whose logit is lower than the highest by this much everywhere in a block has no part in its softmax."""
MAX_UINT8_CLASSES = 256


@dataclass(frozen=True, slots=True)
class _Part:
    """The part of a window along one axis that lies in a block. `weights`, float32 (pixels, cells), takes logits of the
    window's cells `first` to `last` to the block's pixels `start` to `stop`, weighted."""

    window: int
    start: int
    stop: int
    first: int
    last: int
    weights: Float32Array


class _Axis:
    """The windows along one axis.

    Args:
        starts: of each window, in pixels of the picture.
        length: of a window, in pixels of the picture.
        total: of the picture, in pixels.
        content: of a window, resized, in pixels of the input.
        padded: of the input, in pixels.
        cells: of the logits.
    """

    def __init__(self, starts: Sequence[int], length: int, total: int, content: int, padded: int, cells: int) -> None:
        self._starts, self._length = starts, length
        self._content, self._padded, self._cells = content, padded, cells
        self._shares = _shares(starts, length, total)

    def parts(self, start: int, stop: int) -> Iterator[_Part]:
        """Of the windows that lie in the block of pixels from `start` to `stop`."""
        for window, offset in enumerate(self._starts):
            low, high = max(start, offset), min(stop, offset + self._length)
            if low >= high:
                continue
            first_pixel, to_window = _linear(self._content, self._length, low - offset, high - offset)
            pixels = first_pixel, first_pixel + to_window.shape[1]
            first, to_input = _linear(self._cells, self._padded, *pixels)
            weights = (to_window @ to_input) * self._shares[window][low - offset : high - offset, None]
            yield _Part(window, low - start, high - start, first, first + to_input.shape[1], weights)


def blend_segments(
    outputs: Sequence[LogitsOutput],
    tiled: TiledInput,
    num_classes: int,
    params: QueryParams,
    before_each: Callable[[], None] = lambda: None,
    threshold: float | None = None,
) -> SegmentOutput:
    """The class with the highest blended logit at each pixel of the picture, and its probability: the softmax of these.

    Args:
        outputs: of each window, in the order of `tiled`.
        tiled: the windows. All inputs have one size.
        num_classes: of the model.
        params: of the request: which classes to return, and whether each pixel's confidence is asked for.
        before_each: called before each row of blocks; what it raises ends the work.
        threshold: of the model, if it has one. The logits contain that of the request or this one.
    """
    grid, (height, width) = tiled.grid, tiled.inputs[0].pixels.shape[:2]
    _, rows, columns = outputs[0].logits.shape
    content, picture = tiled.inputs[0].geometry.content, grid.picture
    down = _Axis(grid.tops, grid.window.height, picture.height, content.height, height, rows)
    across = _Axis(grid.lefts, grid.window.width, picture.width, content.width, width, columns)
    applied = None if threshold is None else params.threshold or threshold
    pixels = _Pixels(picture.height, picture.width, num_classes, with_levels=params.confidence_map, threshold=applied)
    blocks = range(0, picture.width, BLOCK_WIDTH)
    of_columns = [list(across.parts(left, min(left + BLOCK_WIDTH, picture.width))) for left in blocks]
    for top in range(0, picture.height, BLOCK_HEIGHT):
        before_each()
        high = min(BLOCK_HEIGHT, picture.height - top)
        of_rows = list(down.parts(top, top + high))
        for left, parts in zip(blocks, of_columns, strict=True):
            shape = (high, min(BLOCK_WIDTH, picture.width - left))
            chosen, logits = _blend_block(outputs, of_rows, parts, len(grid.lefts), num_classes, shape)
            pixels.add(top, left, chosen, logits)
    return pixels.output(params)


def _blend_block(
    outputs: Sequence[LogitsOutput],
    rows: Sequence[_Part],
    columns: Sequence[_Part],
    across: int,
    num_classes: int,
    shape: tuple[int, int],
) -> tuple[IntArray, Float32Array]:
    """The classes that matter in a block, rising, and blended logits, float32 (classes or one more, height, width):
    theirs, and that of all other classes together, if windows have not all of them."""
    cells: list[tuple[_Part, _Part, LogitsOutput]] = []
    for row in rows:
        for column in columns:
            output = outputs[row.window * across + column.window]
            cells.append((row, column, output.crop(slice(row.first, row.last), slice(column.first, column.last))))
    present = np.zeros(num_classes, np.bool_)
    for _, _, crop in cells:
        present[crop.classes] = True
    chosen = np.flatnonzero(present)
    crops = [_dense(crop, chosen, num_classes) for _, _, crop in cells]
    highest = np.max([crop.max(axis=(1, 2)) for crop in crops], axis=0)
    lowest = np.min([crop.min(axis=(1, 2)) for crop in crops], axis=0)
    # Weights sum to 1, so no blended logit is outside of these bounds.
    matter = np.flatnonzero(highest >= lowest[: len(chosen)].max() - NEGLIGIBLE)
    blended = np.zeros((len(matter), *shape), np.float32)
    for (row, column, _), logits in zip(cells, crops, strict=True):
        weighted = row.weights @ (logits[matter] @ column.weights.T)
        blended[:, row.start : row.stop, column.start : column.stop] += weighted
    return chosen[matter[matter < len(chosen)]], blended


def _dense(output: LogitsOutput, chosen: IntArray, num_classes: int) -> Float32Array:
    """The logits of the classes `chosen`, rising, in some cells, and of all others together if there are any: float32
    (chosen or one more, rows, columns).

    The classes that are not among a cell's best share equally in what these leave.
    """
    values = output.logits.astype(np.float32)
    if output.rest is None:
        return values
    missing = num_classes - len(values)
    equal = output.rest.astype(np.float32) - np.log(np.float32(missing))
    dense = np.repeat(equal[None], len(chosen) + (len(chosen) < num_classes), axis=0)
    np.put_along_axis(dense, np.searchsorted(chosen, output.classes), values, axis=0)
    if len(chosen) < num_classes:
        dense[-1] += np.log(np.float32(num_classes - len(chosen)))
    return dense


class _Pixels:
    """The label, and the confidence, of each pixel of the picture, from one block after the other."""

    def __init__(self, height: int, width: int, classes: int, *, with_levels: bool, threshold: float | None) -> None:
        size = (height, width)
        self._labels: LabelMapArray = (
            np.zeros(size, np.uint8) if classes <= MAX_UINT8_CLASSES else np.zeros(size, np.uint16)
        )
        self._levels = np.zeros(size, np.uint8) if with_levels else None
        self._counts = np.zeros(classes, np.int64)
        self._sums = np.zeros(classes, np.float64)
        self._odds = None if threshold is None else np.array(odds_of_other_class(threshold), np.float32)

    def add(self, top: int, left: int, chosen: IntArray, logits: Float32Array) -> None:
        """Decide a block from the logits of the classes `chosen`, and of all others, which it changes."""
        best = logits[0].copy()
        labels = np.full(best.shape, chosen[0], self._labels.dtype)
        for index, of_class in zip(chosen[1:], logits[1:], strict=False):
            # Strictly greater, so that of equal logits the lowest class index wins.
            np.copyto(labels, index, where=of_class > best, casting="unsafe")
            np.maximum(best, of_class, out=best)
        np.subtract(logits, best, out=logits)
        total = np.exp(logits, out=logits).sum(axis=0)
        if self._odds is not None:
            total = 1 + (total - 1) * self._odds[labels]
        probabilities = np.reciprocal(total)
        high, wide = best.shape
        self._labels[top : top + high, left : left + wide] = labels
        flat = labels.ravel()
        self._counts += np.bincount(flat, minlength=len(self._counts))
        self._sums += np.bincount(flat, probabilities.ravel(), minlength=len(self._counts))
        if self._levels is not None:
            self._levels[top : top + high, left : left + wide] = np.rint(255 * probabilities)

    def output(self, params: QueryParams) -> SegmentOutput:
        confidences = (self._sums / np.maximum(self._counts, 1)).astype(np.float32)
        areas = np.where(params.segments_of(self._counts), self._counts, 0)
        return SegmentOutput(self._labels, areas, confidences, self._levels)


def _linear(length: int, out_length: int, start: int, stop: int) -> tuple[int, Float32Array]:
    """Linear interpolation (align_corners=False) of `length` values to some of `out_length`, `start` to `stop`.

    Returns:
        The first value that it takes, and the weights of that one and the next ones: float32 (stop - start, values).
    """
    at = ((np.arange(start, stop) + 0.5) * (length / out_length) - 0.5).clip(0, length - 1)
    first, last = int(at[0]), min(int(at[-1]) + 1, length - 1)
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(first, last + 1)), 0)
    return first, weights.astype(np.float32)


def _shares(starts: Sequence[int], length: int, total: int) -> list[Float32Array]:
    """The share that each window has in each of its pixels along an axis; those of a pixel sum to 1.

    Before normalisation a weight is the distance to the window's nearer edge. An edge of the picture does not count.
    """
    weights = []
    sums = np.zeros(total)
    centres = np.arange(length) + 0.5
    for start in starts:
        before = centres if start > 0 else np.full(length, float(length))
        after = length - centres if start + length < total else np.full(length, float(length))
        weights.append(np.minimum(before, after))
        sums[start : start + length] += weights[-1]
    return [
        (of_window / sums[start : start + length]).astype(np.float32)
        for start, of_window in zip(starts, weights, strict=True)
    ]
