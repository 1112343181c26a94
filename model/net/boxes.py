"""Boxes as tensors (..., 4) of xmin, ymin, xmax, ymax: delta coding, IoU, clipping.

All functions broadcast over leading axes, so that a batch needs no loop.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)
"""Largest |dw|, |dh| when decoding: an untrained delta must not overflow the exponential."""


def encode_deltas(anchors: Tensor, boxes: Tensor, stds: tuple[float, float, float, float] = (1, 1, 1, 1)) -> Tensor:
    """What a head must predict at `anchors` to give `boxes` (arXiv 1506.01497, equation 2).

    Args:
        anchors: (..., 4), of positive width and height.
        boxes: (..., 4), of positive width and height.
        stds: what each of dx, dy, dw, dh is divided by.

    Returns:
        (..., 4) as dx, dy, dw, dh.
    """
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre, size = _centre_and_size(boxes)
    deltas = torch.cat(((centre - anchor_centre) / anchor_size, (size / anchor_size).log()), dim=-1)
    return deltas / deltas.new_tensor(stds)


def decode_deltas(anchors: Tensor, deltas: Tensor, stds: tuple[float, float, float, float] = (1, 1, 1, 1)) -> Tensor:
    """The boxes that `deltas` mean at `anchors`: the inverse of `encode_deltas`, |dw| and |dh| limited.

    Args:
        anchors: (..., 4).
        deltas: (..., 4) as dx, dy, dw, dh.
        stds: what each of them is multiplied with.

    Returns:
        (..., 4) boxes, not clipped.
    """
    deltas = deltas * deltas.new_tensor(stds)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre = anchor_centre + anchor_size * deltas[..., :2]
    half = anchor_size * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * 0.5
    return torch.cat((centre - half, centre + half), dim=-1)


def clip_boxes(boxes: Tensor, limits: Tensor) -> Tensor:
    """Boxes within the picture: (..., 4), with `limits` broadcastable to it as width, height, width, height."""
    return torch.minimum(boxes.clamp(min=0), limits)


def box_areas(boxes: Tensor) -> Tensor:
    """(..., 4) → (...): width times height."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def iou_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of each box with each: (..., n, 4), (..., m, 4) → (..., n, m).

    Two boxes without area give NaN, which is above no threshold.
    """
    first, second = first[..., :, None, :], second[..., None, :, :]
    width = torch.minimum(first[..., 2], second[..., 2]) - torch.maximum(first[..., 0], second[..., 0])
    height = torch.minimum(first[..., 3], second[..., 3]) - torch.maximum(first[..., 1], second[..., 1])
    shared = width.clamp_(min=0).mul_(height.clamp_(min=0))
    return shared / (box_areas(first) + box_areas(second) - shared)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) * 0.5, high - low
