"""Anchors: the boxes that a dense head's deltas are relative to (arXiv 1506.01497, section 3.1.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AnchorSpec:
    """At each position of a level one anchor for each ratio (outer) and scale (inner).

    An anchor has the area (scale · stride)² and the height-to-width ratio `ratio`. It is centred at a multiple
    of the stride, the top left corner of the position's cell.
    """

    strides: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    @property
    def per_position(self) -> int:
        return len(self.scales) * len(self.ratios)

    def shapes(self, level: int, device: torch.device) -> Tensor:
        """The anchors of a level about the origin: float32 (A, 4) as xmin, ymin, xmax, ymax."""
        scales = torch.tensor(self.scales, device=device) * self.strides[level]
        roots = torch.tensor(self.ratios, device=device).sqrt()
        widths = (1 / roots[:, None] * scales).flatten() / 2
        heights = (roots[:, None] * scales).flatten() / 2
        return torch.stack((-widths, -heights, widths, heights), dim=1)

    def level_anchors(self, level: int, size: tuple[int, int], device: torch.device) -> Tensor:
        """The anchors of a level of (height, width) cells, row by row: float32 (h·w·A, 4) in input pixels."""
        ys, xs = (torch.arange(cells, device=device, dtype=torch.float32) * self.strides[level] for cells in size)
        grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
        centres = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1)
        return (centres[:, :, None] + self.shapes(level, device)).reshape(-1, 4)


RETINANET_ANCHORS = AnchorSpec(strides=(8, 16, 32, 64, 128), scales=(4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3)))
RPN_ANCHORS = AnchorSpec(strides=(4, 8, 16, 32, 64), scales=(8.0,))
