"""Semantic segmentation's test time: from coarse logits to a class for each pixel of the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.types import Geometry, SegmentOutput, Size

CHUNK_BYTES = 32 << 20
"""Bounds memory: so much of resized float32 logits is held at a time, or one class if that is more."""
MAX_UINT8_CLASSES = 256


def label_maps(
    logits: Tensor, input_size: Size, geometries: Sequence[Geometry], chunk_bytes: int = CHUNK_BYTES
) -> list[SegmentOutput]:
    """Logits (N, classes, h, w) of inputs of `input_size` → the best class of each pixel of each picture.

    Logits are resized bilinearly (between pixel centres), first to the input's size, where padding is cut off,
    then to the picture's. Of equal logits the lowest class wins.
    """
    return [
        SegmentOutput(_label_map(row, input_size, geometry, chunk_bytes))
        for row, geometry in zip(logits, geometries, strict=True)
    ]


def _label_map(
    logits: Tensor, input_size: Size, geometry: Geometry, chunk_bytes: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    content, original = geometry.content, geometry.original
    narrow = len(logits) <= MAX_UINT8_CLASSES
    size = (original.height, original.width)
    labels = torch.zeros(size, dtype=torch.uint8 if narrow else torch.int32, device=logits.device)
    best = torch.full(size, -torch.inf, device=logits.device)
    class_bytes = 4 * (input_size.height * input_size.width + original.height * original.width)
    first = 0
    for chunk in logits.split(max(1, chunk_bytes // class_bytes)):
        at_input = _resize(chunk[None].float(), (input_size.height, input_size.width))
        at_picture = _resize(at_input[..., : content.height, : content.width], size)[0]
        for offset, scores in enumerate(at_picture):
            # Strictly better: a later class of the same score does not take the pixel.
            labels.masked_fill_(scores > best, first + offset)
            torch.maximum(best, scores, out=best)
        first += len(chunk)
    host = labels.cpu().numpy()
    return host if narrow else host.astype(np.uint16)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
