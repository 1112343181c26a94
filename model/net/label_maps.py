"""From a segmenter's coarse logits to the class of each pixel of the picture: the procedure at test time of Semantic
FPN (arXiv 1901.02446, section 3.1) and UPerNet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.net.axis import Axis
from model.net.cpu.labels import Labeller, labels_available
from model.net.parts import of_each
from model.spec import Postprocessing, SegmentPostSpec, odds_of_other_class
from model.types import MAX_LOGITS, Batch, Geometry, LogitsArray, LogitsOutput, QueryParams, SegmentOutput, Size

CHUNK_BYTES = 40 << 20
"""Bounds memory: size of the resized float32 logits at a time, at least one class."""
MAX_UINT8_CLASSES = 256
LARGE_PIXELS, LARGE_SIDE = 1 << 24, 1 << 16
"""A picture of so many pixels, or with so long a side, is labelled by parts, and no other array has its size."""
STRIP_PIXELS = 1 << 16
"""Pixels that are compared at a time: their arrays fit in a CPU's cache."""
ROWS_PIXELS = 1 << 18
"""Pixels that `Labeller` labels at a time: few enough for threads to share a picture evenly."""
TILE_BYTES = 2 << 20
"""Of a tile's float32 scores. A CPU is fastest if they fit into its cache; four arrays have about their size."""


def label_maps(
    logits: Tensor,
    input_size: Size,
    geometries: Sequence[Geometry],
    params: Sequence[QueryParams],
    chunk_bytes: int = CHUNK_BYTES,
    threshold: float | None = None,
) -> list[SegmentOutput]:
    """Logits (N, classes, h, w) of inputs of `input_size` → the class with the highest logit, at each picture pixel,
    and its probability: the softmax of the pixel's logits.

    `threshold`: of the bundle of a network with one output channel, as `SegmentPostSpec` has it; `params` may have
    others. The logits contain it, the probabilities do not.

    Logits are resized bilinearly (align_corners=False), first to the input's size, where padding is cut off, then to
    the picture's size. Of equal logits the lowest class index wins. An output is finite if the highest logit of each
    pixel is.

    Where logits are channels-last in a CPU's memory, or the picture is large, all classes of some pixels are compared
    at a time, which is 2 to 20 times as fast. Else all pixels of some classes are, in the authors' order of
    operations; the last bits may differ.
    """
    return [
        _segment(row, input_size, geometry, row_params, chunk_bytes, threshold)
        for row, geometry, row_params in zip(logits.split(1), geometries, params, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Measured:
    """Of part of the pixels, for each class: how many have it, and the sum of their probabilities, (classes,)."""

    counts: Tensor
    sums: Tensor
    finite: bool


class _Pixels:
    """The label and confidence of each pixel of a picture, from some classes or some pixels at a time.

    `labels`: the class with the highest logit, (H, W), uint8, int32 beyond 256 classes. `levels`: its probability,
    0 to 255, where it is asked for. `odds`: by class, of `odds_of_other_class`, where there is a threshold.
    """

    def __init__(
        self, size: Size, classes: int, device: torch.device, params: QueryParams, threshold: float | None = None
    ) -> None:
        self._params = params
        self.odds = None if threshold is None else torch.tensor(odds_of_other_class(threshold), device=device)
        shape = (size.height, size.width)
        dtype = torch.uint8 if classes <= MAX_UINT8_CLASSES else torch.int32
        self.labels = torch.zeros(shape, dtype=dtype, device=device)
        self.levels = torch.zeros(shape, dtype=torch.uint8, device=device) if params.confidence_map else None
        self._counts = torch.zeros(classes, dtype=torch.int64, device=device)
        self._sums = torch.zeros(classes, dtype=torch.float64, device=device)
        self._finite = True

    def measure(self, rows: slice, columns: slice, best: Tensor, total: Tensor) -> _Measured:
        """Part of the pixels is decided: their highest logit, and the sum of exp(logit - highest) over all classes."""
        finite = bool(torch.stack(best.aminmax()).isfinite().all())  # NaN is both the least and the largest
        classes = self.labels[rows, columns].flatten().int()
        if self.odds is not None:
            total = (total - 1).mul_(self.odds[classes].view_as(total)).add_(1)
        probabilities = total.reciprocal()
        length = len(self._counts)
        counts = torch.bincount(classes, minlength=length)
        sums = torch.bincount(classes, probabilities.flatten().double(), minlength=length)
        if self.levels is not None:
            self.levels[rows, columns] = probabilities.mul_(255).round_().byte()
        return _Measured(counts, sums, finite)

    def add(self, parts: Iterable[_Measured]) -> None:
        """In the same order each time, because the last bits of a sum depend on it."""
        for one in parts:
            self._counts += one.counts
            self._sums += one.sums
            self._finite &= one.finite

    def output(self) -> SegmentOutput:
        labels, counts = self.labels.cpu().numpy(), self._counts.cpu().numpy()
        return SegmentOutput(
            label_map=labels if self.labels.dtype == torch.uint8 else labels.astype(np.uint16),
            areas=np.where(self._params.segments_of(counts), counts, 0),
            confidences=(self._sums.cpu().numpy() / np.maximum(counts, 1)).astype(np.float32),
            confidence_map=None if self.levels is None else self.levels.cpu().numpy(),
            finite=self._finite,
        )


def logits_output(logits: Tensor) -> LogitsOutput:
    """Logits (1, classes, h, w) on the host: of each cell those of its best classes."""
    finite = bool(torch.stack(logits.aminmax()).isfinite().all())
    values, count, rest = logits[0].float().contiguous(), logits.shape[1], None
    if count > MAX_LOGITS:
        best, classes = values.topk(MAX_LOGITS, dim=0)
        rest = _half(values.scatter_(0, classes, -torch.inf).logsumexp(dim=0))
        values = best
    else:
        classes = torch.arange(count, device=logits.device)[:, None, None].expand_as(values)
    indices = classes.int().cpu().numpy()
    return LogitsOutput(
        _half(values),
        indices.astype(np.uint8) if count <= MAX_UINT8_CLASSES else indices.astype(np.uint16),
        rest,
        finite,
    )


def _half(x: Tensor) -> LogitsArray:
    """Numbers on the host as float16, clipped to its range."""
    largest = torch.finfo(torch.float16).max
    half: LogitsArray = x.clamp(-largest, largest).half().cpu().numpy()
    return half


def _with_threshold(logits: Tensor, params: QueryParams, threshold: float | None) -> tuple[Tensor, float | None]:
    """Logits that contain the bundle's threshold → those that contain the request's, and that one, where it has one."""
    if threshold is None or params.threshold is None:
        return logits, threshold
    moved = logits.to(torch.float32, copy=True)
    moved[:, 0] += _logit(params.threshold) - _logit(threshold)
    return moved, params.threshold


def _segment(
    logits: Tensor,
    input_size: Size,
    geometry: Geometry,
    params: QueryParams,
    chunk_bytes: int,
    threshold: float | None,
) -> SegmentOutput:
    logits, threshold = _with_threshold(logits, params, threshold)
    content, original = geometry.content, geometry.original
    pixels = _Pixels(original, logits.shape[1], logits.device, params, threshold)
    wide = max(original.height, original.width) >= LARGE_SIDE
    large = original.height * original.width >= LARGE_PIXELS or wide
    with_kernel = labels_available(logits) and not wide  # whose axes take 12 bytes for each row and column
    fits = 4 * logits.shape[1] * input_size.height * input_size.width <= chunk_bytes
    if with_kernel and (large or _is_channels_last(logits)):
        _label_rows(pixels, logits, input_size, content, original)
    elif large or (fits and _is_channels_last(logits)):
        _label_tiles(pixels, logits, input_size, content, original)
    else:
        _label_chunks(pixels, logits, input_size, content, original, chunk_bytes)
    return pixels.output()


def _is_channels_last(logits: Tensor) -> bool:
    """Whether logits are in a CPU's memory, and in this layout alone."""
    return (
        logits.device.type == "cpu"
        and logits.is_contiguous(memory_format=torch.channels_last)
        and not logits.is_contiguous()
    )


def _label_rows(pixels: _Pixels, logits: Tensor, input_size: Size, content: Size, original: Size) -> None:
    """Label a picture's pixels, all classes of some rows at a time: besides the labels no array has its size."""
    labeller = Labeller(logits, input_size, content, original, pixels.labels, pixels.levels, pixels.odds)
    high = max(1, ROWS_PIXELS // original.width)
    strips = [slice(top, min(top + high, original.height)) for top in range(0, original.height, high)]
    pixels.add(of_each(strips, lambda rows: _Measured(*labeller.label(rows)), logits.device))


def _label_chunks(
    pixels: _Pixels, logits: Tensor, input_size: Size, content: Size, original: Size, chunk_bytes: int
) -> None:
    """Label a picture's pixels, some classes at a time."""
    size = (original.height, original.width)
    best = torch.full(size, -torch.inf, device=logits.device)
    total = torch.zeros(size, device=logits.device)
    class_bytes = 4 * (input_size.height * input_size.width + original.height * original.width)
    high = max(1, STRIP_PIXELS // original.width)
    strips = [slice(top, top + high) for top in range(0, original.height, high)]
    first = 0
    for chunk in logits.split(max(1, chunk_bytes // class_bytes), dim=1):
        at_input = _resize(chunk.float().contiguous(), (input_size.height, input_size.width))
        at_picture = _resize(at_input[..., : content.height, : content.width], size)[0]
        of_each(strips, partial(_label_strip, pixels.labels, at_picture, best, total, first), logits.device)
        first += chunk.shape[1]
    pixels.add(
        of_each(strips, lambda strip: pixels.measure(strip, slice(None), best[strip], total[strip]), logits.device)
    )


def _label_strip(labels: Tensor, at_picture: Tensor, best: Tensor, total: Tensor, first: int, strip: slice) -> None:
    """Compare the classes from `first` on with those before: `at_picture` (classes, H, W) has their logits."""
    scores, highest = at_picture[:, strip], best[strip]
    before = highest.clone()
    for offset, of_class in enumerate(scores):
        # Strictly greater, so that of equal logits the lowest class index wins.
        labels[strip].masked_fill_(of_class > highest, first + offset)
        torch.maximum(highest, of_class, out=highest)
    if first:  # the sum so far is relative to the highest logit so far
        total[strip].mul_(before.sub_(highest).exp_())
    total[strip].add_(scores.sub_(highest).exp_().sum(dim=0))


def _label_tiles(
    pixels: _Pixels, logits: Tensor, input_size: Size, content: Size, original: Size, tile_bytes: int = TILE_BYTES
) -> None:
    """As `_label_rows`, with torch's operations.

    torch's own resizing would need 24 bytes for each row and column, and 4 for each pixel and class. Its rounding
    may differ in the last bit.
    """
    planes = logits.float().contiguous()  # of channels-last ones `between_columns` is a hundred times as slow
    at_input = _resize(planes, (input_size.height, input_size.width))[0, :, : content.height, : content.width]
    count = max(1, tile_bytes // (4 * len(at_input)))
    wide = min(original.width, count)
    high = max(1, count // wide)
    tiles = [(left, top) for left in range(0, original.width, wide) for top in range(0, original.height, high)]

    def label(tile: tuple[int, int]) -> _Measured:
        left, top = tile
        columns = Axis.of(content.width, original.width, left, wide, logits.device)
        rows = Axis.of(content.height, original.height, top, high, logits.device)
        # First the axis after which less is left: a column of a million rows has few of the input's columns.
        if len(rows.low) * content.width <= content.height * len(columns.low):
            scores = columns.between_columns(rows.between_rows(at_input))
        else:
            scores = rows.between_rows(columns.between_columns(at_input))
        best, classes = scores.max(dim=0)  # of equal ones the first
        place = slice(top, top + high), slice(left, left + wide)
        pixels.labels[place] = classes.to(pixels.labels.dtype)
        return pixels.measure(*place, best, scores.sub_(best).exp_().sum(dim=0))

    pixels.add(of_each(tiles, label, logits.device))


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def predict_segments(
    network: nn.Module, x: Tensor, batch: Batch, spec: Postprocessing
) -> list[SegmentOutput | LogitsOutput]:
    """The outputs of a network from pictures to logits, as `SemanticFPN`; `FamilyNetwork.predict`.

    A row whose params ask for `logits` gets them as they are.
    """
    assert isinstance(spec, SegmentPostSpec)
    size = Size(x.shape[2], x.shape[3])
    outputs: list[SegmentOutput | LogitsOutput] = []
    for logits, geometry, params in zip(network(x).split(1), batch.geometries, batch.params, strict=True):
        if params.logits:
            outputs.append(logits_output(_with_threshold(logits, params, spec.threshold)[0]))
        else:
            outputs += label_maps(logits, size, [geometry], [params], threshold=spec.threshold)
    return outputs
