"""Bilinear interpolation by axes, for parts of an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Axis:
    """Linear interpolation along an axis, as F.interpolate does it (align_corners=False), for a part of the output:
    output i is (1 - weight_i) x[low_i] + weight_i x[high_i]."""

    low: Tensor
    high: Tensor
    weights: Tensor

    @classmethod
    def of(cls, length: int, out_length: int, start: int, count: int, device: torch.device | None = None) -> Axis:
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
