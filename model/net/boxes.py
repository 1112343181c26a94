"""Boxes as tensors (..., 4) of xmin, ymin, xmax, ymax: delta coding, IoU, clipping; and anchors.

All functions broadcast over leading axes, so that a batch needs no loop. A dense head's deltas are
relative to anchors (arXiv 1506.01497, section 3.1.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)
"""Limit of |dw| and |dh| when decoding, so that an untrained delta does not overflow the exponential."""


def encode_deltas(anchors: Tensor, boxes: Tensor, stds: tuple[float, float, float, float] = (1, 1, 1, 1)) -> Tensor:
    """The deltas from `anchors` to `boxes` (arXiv 1506.01497, equation 2).

    Args:
        anchors: (..., 4), of positive width and height.
        boxes: (..., 4), of positive width and height.
        stds: divisors of dx, dy, dw, dh.

    Returns:
        (..., 4) as dx, dy, dw, dh.
    """
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre, size = _centre_and_size(boxes)
    deltas = torch.cat(((centre - anchor_centre) / anchor_size, (size / anchor_size).log()), dim=-1)
    return deltas / deltas.new_tensor(stds)


def decode_deltas(anchors: Tensor, deltas: Tensor, stds: tuple[float, float, float, float] = (1, 1, 1, 1)) -> Tensor:
    """The boxes at `deltas` from `anchors`: the inverse of `encode_deltas`, with |dw| and |dh| limited.

    Args:
        anchors: (..., 4).
        deltas: (..., 4) as dx, dy, dw, dh.
        stds: factors of dx, dy, dw, dh.

    Returns:
        (..., 4) boxes, not clipped.
    """
    deltas = deltas * deltas.new_tensor(stds)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre = anchor_centre + anchor_size * deltas[..., :2]
    half = anchor_size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
    return torch.cat((centre - half, centre + half), dim=-1)


def clip_boxes(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes (..., 4) clipped to 0 and to `limits`, which broadcasts to them: width, height, width, height."""
    return torch.minimum(boxes.clamp(min=0), limits)


def box_areas(boxes: Tensor) -> Tensor:
    """Areas of boxes: (..., 4) → (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Pairwise intersection over union: (..., n, 4), (..., m, 4) → (..., n, m).

    Two boxes without area give NaN, which no threshold comparison passes.
    """
    first, second = first[..., :, None, :], second[..., None, :, :]
    width = torch.minimum(first[..., 2], second[..., 2]) - torch.maximum(first[..., 0], second[..., 0])
    height = torch.minimum(first[..., 3], second[..., 3]) - torch.maximum(first[..., 1], second[..., 1])
    shared = width.clamp_(min=0).mul_(height.clamp_(min=0))
    return shared / (box_areas(first) + box_areas(second) - shared)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) * 0.5, high - low


@dataclass(frozen=True, slots=True)
class AnchorSpec:
    """Anchors of a pyramid: at each position of a level, one for each ratio (outer) and scale (inner).

    An anchor has area (scale · stride)² and height-to-width ratio `ratio`. Its centre is a multiple of the stride, the
    top left corner of the position's cell.
    """

    strides: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    @property
    def per_position(self) -> int:
        return len(self.scales) * len(self.ratios)

    def shapes(self, level: int, device: torch.device) -> Tensor:
        """A level's anchors around the origin: float32 (A, 4), input pixels."""
        scales = torch.tensor(self.scales, device=device) * self.strides[level]
        roots = torch.tensor(self.ratios, device=device).sqrt()
        widths = (1 / roots[:, None] * scales).flatten() / 2
        heights = (roots[:, None] * scales).flatten() / 2
        return torch.stack((-widths, -heights, widths, heights), dim=1)

    def level_anchors(self, level: int, size: tuple[int, int], device: torch.device) -> Tensor:
        """All anchors of a level of (height, width) cells, row by row: float32 (h·w·A, 4), input pixels."""
        ys, xs = (torch.arange(cells, device=device, dtype=torch.float32) * self.strides[level] for cells in size)
        grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
        centres = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1)
        return (centres[:, :, None] + self.shapes(level, device)).reshape(-1, 4)


RETINANET_ANCHORS = AnchorSpec(strides=(8, 16, 32, 64, 128), scales=(4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3)))
RPN_ANCHORS = AnchorSpec(strides=(4, 8, 16, 32, 64), scales=(8.0,))
