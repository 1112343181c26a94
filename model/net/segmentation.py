"""Semantic segmentation's test time: from coarse logits to a class for each pixel of the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.types import Geometry, SegmentOutput, Size

CHUNK_BYTES = 40 << 20
"""Bounds memory: so much of resized float32 logits is held at a time, or one class if that is more."""
VECTOR = 16
"""Float32 values that an instruction of a CPU takes at a time."""
MAX_UINT8_CLASSES = 256


def label_maps(
    logits: Tensor, input_size: Size, geometries: Sequence[Geometry], chunk_bytes: int = CHUNK_BYTES
) -> list[SegmentOutput]:
    """Logits (N, classes, h, w) of inputs of `input_size` → the best class of each pixel of each picture.

    Logits are resized bilinearly (between pixel centres), first to the input's size, where padding is cut off,
    then to the picture's. Of equal logits the lowest class wins.

    Logits with channels last in memory stay so while they are resized, several times as fast on a CPU; the others
    are resized in the authors' order of operations.
    """
    return [
        SegmentOutput(_label_map(row, input_size, geometry, chunk_bytes))
        for row, geometry in zip(logits.split(1), geometries, strict=True)
    ]


def _label_map(
    logits: Tensor, input_size: Size, geometry: Geometry, chunk_bytes: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    content, original = geometry.content, geometry.original
    narrow = logits.shape[1] <= MAX_UINT8_CLASSES
    size = (original.height, original.width)
    labels = torch.zeros(size, dtype=torch.uint8 if narrow else torch.int32, device=logits.device)
    best = torch.full(size, -torch.inf, device=logits.device)
    class_bytes = 4 * (input_size.height * input_size.width + original.height * original.width)
    first = 0
    for chunk in logits.split(_chunk_classes(chunk_bytes // class_bytes), dim=1):
        at_input = _resize(_dense(chunk), (input_size.height, input_size.width))
        at_picture = _resize(at_input[..., : content.height, : content.width], size)[0]
        for offset, scores in enumerate(at_picture):
            # Strictly better: a later class of the same score does not take the pixel.
            labels.masked_fill_(scores > best, first + offset)
            torch.maximum(best, scores, out=best)
        first += chunk.shape[1]
    host = labels.cpu().numpy()
    return host if narrow else host.astype(np.uint16)


def _chunk_classes(fitting: int) -> int:
    """Whole vectors of classes, where as many fit."""
    return fitting - fitting % VECTOR if fitting > VECTOR else max(1, fitting)


def _dense(chunk: Tensor) -> Tensor:
    """Some classes (1, c, h, w) as float32 with nothing between them; a vector of classes or more as it lay."""
    if chunk.shape[1] < VECTOR:
        return chunk.float().contiguous()
    return chunk.to(torch.float32, copy=True)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
