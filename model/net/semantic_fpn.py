"""Semantic FPN (arXiv 1901.02446, section 3.1): one upsampling branch a pyramid level, summed at stride 4.

`label_maps` is the procedure at test time: coarse logits → the class of each pixel of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.families.semantic_fpn import SemanticFPNSpec
from model.net.fpn import FPN
from model.net.layers import ConvModule
from model.net.network import FamilyNetwork, StateDictShapes, build_backbone, infer_backbone
from model.spec import Postprocessing
from model.types import Batch, Geometry, SegmentOutput, Size


class DoubleSize(nn.Module):
    """Twice the height and width, bilinear, align_corners=False."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class SemanticFPNHead(nn.Module):
    """Pyramid levels (N, C, H/s, W/s), s = 4, 8, 16, 32 → logits (N, classes, H/4, W/4)."""

    def __init__(self, in_channels: int, channels: int, num_classes: int, levels: int = 4) -> None:
        super().__init__()
        self.scale_heads = nn.ModuleList(_scale_head(in_channels, channels, level) for level in range(levels))
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        total: Tensor = self.scale_heads[0](levels[0])
        size = total.shape[-2:]
        for head, level in zip(list(self.scale_heads)[1:], levels[1:], strict=True):
            # Odd sizes round up at each halving, so doubling may overshoot by a pixel or more.
            total = total + F.interpolate(head(level), size=size, mode="bilinear", align_corners=False)
        logits: Tensor = self.conv_seg(self.dropout(total))
        return logits


def _scale_head(in_channels: int, channels: int, level: int) -> nn.Sequential:
    """From stride 4·2^level to 4: pairs of convolution and doubling; level 0 has one convolution alone."""
    head = nn.Sequential()
    for index in range(max(1, level)):
        head.append(ConvModule(in_channels if index == 0 else channels, channels, 3, norm=True, relu=True))
        if level > 0:
            head.append(DoubleSize())
    return head


class SemanticFPN(nn.Module):
    """Normalised float (N, 3, H, W) RGB → logits (N, classes, H/4, W/4), sizes rounded up."""

    def __init__(self, spec: SemanticFPNSpec, num_classes: int) -> None:
        super().__init__()
        self.backbone = build_backbone(spec.backbone)
        self.neck = FPN(spec.backbone.level_channels, spec.fpn_channels)
        self.decode_head = SemanticFPNHead(spec.fpn_channels, spec.head_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.decode_head(self.neck(self.backbone(x)))
        return logits


CLASS_KEY = "decode_head.conv_seg.weight"
CHUNK_BYTES = 40 << 20
"""Bounds memory: size of the resized float32 logits at a time, at least one class."""
VECTOR = 16
"""Float32 values in a CPU's vector."""
MAX_UINT8_CLASSES = 256
LARGE_PIXELS, LARGE_SIDE = 1 << 24, 1 << 16
"""A picture of so many pixels, or with so long a side, is labelled in tiles."""
TILE_BYTES = 2 << 20
"""Of a tile's float32 scores. A CPU is fastest if they fit into its cache; four arrays have about their size."""


def label_maps(
    logits: Tensor, input_size: Size, geometries: Sequence[Geometry], chunk_bytes: int = CHUNK_BYTES
) -> list[SegmentOutput]:
    """Logits (N, classes, h, w) of inputs of `input_size` → the class with the highest logit, at each picture pixel.

    Logits are resized bilinearly (align_corners=False), first to the input's size, where padding is cut off, then to
    the picture's size. Of equal logits the lowest class index wins. An output is finite if the highest logit of each
    pixel is.

    Logits that are channels-last in memory stay so, which is several times as fast on a CPU; others are resized in
    the authors' order of operations.
    """
    return [
        _label_map(row, input_size, geometry, chunk_bytes)
        for row, geometry in zip(logits.split(1), geometries, strict=True)
    ]


def _label_map(logits: Tensor, input_size: Size, geometry: Geometry, chunk_bytes: int) -> SegmentOutput:
    content, original = geometry.content, geometry.original
    large = original.height * original.width >= LARGE_PIXELS or max(original.height, original.width) >= LARGE_SIDE
    if large:
        labels, finite = _label_tiles(logits, input_size, content, original)
    else:
        labels, finite = _label_chunks(logits, input_size, content, original, chunk_bytes)
    host = labels.cpu().numpy()
    return SegmentOutput(host if labels.dtype == torch.uint8 else host.astype(np.uint16), finite)


def _label_chunks(
    logits: Tensor, input_size: Size, content: Size, original: Size, chunk_bytes: int
) -> tuple[Tensor, bool]:
    """The labels of a picture, some classes at a time; and whether the highest logits are finite."""
    size = (original.height, original.width)
    labels = torch.zeros(size, dtype=_label_dtype(logits), device=logits.device)
    best = torch.full(size, -torch.inf, device=logits.device)
    class_bytes = 4 * (input_size.height * input_size.width + original.height * original.width)
    first = 0
    for chunk in logits.split(_chunk_classes(chunk_bytes // class_bytes), dim=1):
        at_input = _resize(_dense(chunk), (input_size.height, input_size.width))
        at_picture = _resize(at_input[..., : content.height, : content.width], size)[0]
        for offset, scores in enumerate(at_picture):
            # Strictly greater, so that of equal logits the lowest class index wins.
            labels.masked_fill_(scores > best, first + offset)
            torch.maximum(best, scores, out=best)
        first += chunk.shape[1]
    return labels, _all_finite(best)


def _label_tiles(
    logits: Tensor, input_size: Size, content: Size, original: Size, tile_bytes: int = TILE_BYTES
) -> tuple[Tensor, bool]:
    """As `_label_chunks`, for a large picture: all classes of some pixels at a time. Besides the labels no array then
    has the picture's size.

    torch's own resizing would need 24 bytes for each row and column, and 4 for each pixel and class. Its rounding
    may differ in the last bit.
    """
    labels = torch.zeros((original.height, original.width), dtype=_label_dtype(logits), device=logits.device)
    at_input = _resize(_dense(logits), (input_size.height, input_size.width))[0, :, : content.height, : content.width]
    pixels = max(1, tile_bytes // (4 * len(at_input)))
    wide = min(original.width, pixels)
    high = max(1, pixels // wide)
    finite = True
    for left in range(0, original.width, wide):
        columns = _Axis.of(content.width, original.width, left, wide, logits.device)
        for top in range(0, original.height, high):
            rows = _Axis.of(content.height, original.height, top, high, logits.device)
            # First the axis after which less is left: a column of a million rows has few of the input's columns.
            if len(rows.low) * content.width <= content.height * len(columns.low):
                scores = columns.between_columns(rows.between_rows(at_input))
            else:
                scores = rows.between_rows(columns.between_columns(at_input))
            best, classes = scores.max(dim=0)  # of equal ones the first
            finite &= _all_finite(best)
            labels[top : top + high, left : left + wide] = classes
    return labels, finite


@dataclass(frozen=True, slots=True)
class _Axis:
    """Linear interpolation along an axis, as F.interpolate does it (align_corners=False), for a part of the output:
    output i is (1 - weight_i) x[low_i] + weight_i x[high_i]."""

    low: Tensor
    high: Tensor
    weights: Tensor

    @classmethod
    def of(cls, length: int, out_length: int, start: int, count: int, device: torch.device) -> _Axis:
        """From `length` values to `count` of `out_length`, beginning with `start`."""
        at = torch.arange(start, min(start + count, out_length), device=device, dtype=torch.float64)
        source = ((at + 0.5) * (length / out_length) - 0.5).clamp_(0, length - 1)
        low = source.long()
        return cls(low, (low + 1).clamp_(max=length - 1), (source - low).float())

    def between_rows(self, x: Tensor) -> Tensor:
        """(C, h, w) → (C, rows of the output, w)."""
        return torch.lerp(x.index_select(1, self.low), x.index_select(1, self.high), self.weights[:, None])

    def between_columns(self, x: Tensor) -> Tensor:
        """(C, h, w) → (C, h, columns of the output)."""
        low, high = (index.expand(*x.shape[:2], -1) for index in (self.low, self.high))
        return torch.lerp(x.gather(2, low), x.gather(2, high), self.weights)  # `index_select` is 17 times slower here


def _all_finite(best: Tensor) -> bool:
    return bool(torch.stack(best.aminmax()).isfinite().all())  # NaN is both the least and the largest


def _label_dtype(logits: Tensor) -> torch.dtype:
    return torch.uint8 if logits.shape[1] <= MAX_UINT8_CLASSES else torch.int32


def _chunk_classes(fitting: int) -> int:
    """Classes in a chunk: a multiple of the vector size, if so many fit."""
    return fitting - fitting % VECTOR if fitting > VECTOR else max(1, fitting)


def _dense(chunk: Tensor) -> Tensor:
    """A chunk of classes (1, c, h, w) as dense float32; a vector of classes or more keeps its memory format."""
    if chunk.shape[1] < VECTOR:
        return chunk.float().contiguous()
    return chunk.to(torch.float32, copy=True)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _predict(network: SemanticFPN, x: Tensor, batch: Batch, _: Postprocessing) -> list[SegmentOutput]:
    return label_maps(network(x), Size(x.shape[2], x.shape[3]), batch.geometries)


def _infer(shapes: StateDictShapes) -> tuple[SemanticFPNSpec, int]:
    spec = SemanticFPNSpec(
        backbone=infer_backbone(shapes),
        fpn_channels=shapes.rows("neck.fpn_convs.0.conv.weight"),
        head_channels=shapes.rows("decode_head.scale_heads.0.0.conv.weight"),
    )
    return spec, shapes.rows(CLASS_KEY)


NETWORK = FamilyNetwork(build=SemanticFPN, predict=_predict, class_key=CLASS_KEY, infer=_infer)
