"""Non-maximum suppression, a batch of pictures at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from model.net.boxes import iou_matrix
from model.net.torchvision_ops import torchvision_operator

BLOCK = 256
"""Boxes that are decided together. Bounds memory: N · BLOCK · (limit + BLOCK) overlaps at a time."""
TORCHVISION_MAX_BOXES = 16_384
"""torchvision compares all pairs before it keeps one; beyond this the blocks below need far less."""

_torchvision_nms = torchvision_operator("nms")


def grouped_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Greedy NMS within each group (class or level) of each picture.

    A box goes where a better one of its group overlaps it by more than `iou_threshold`. Groups are kept apart
    by shifting the boxes of group g by g · (largest coordinate + 1) in float32, as the toolboxes do: its
    rounding is part of their answers.

    Args:
        boxes: float32 (N, n, 4), coordinates not negative.
        scores: float32 (N, n).
        groups: int64 (N, n), not negative.
        valid: bool (N, n); the others take no part.
        iou_threshold: suppression is strictly above it.
        limit: how many of the best to keep a picture.

    Returns:
        int64 (N, k), k = min(limit, n): positions along n by falling score; bool (N, k): which of them are
        filled. The filled come first. A picture's row depends on nothing in the others.
    """
    limit = min(limit, boxes.shape[1])
    if limit == 0:
        empty = torch.zeros(len(boxes), 0, dtype=torch.int64, device=boxes.device)
        return empty, empty.bool()
    largest = boxes.masked_fill(~valid[..., None], 0).amax(dim=(1, 2))
    shifted = boxes + (groups * (largest[:, None] + 1))[..., None]
    ranked = scores.masked_fill(~valid, -torch.inf)
    order = ranked.sort(dim=1, descending=True, stable=True).indices
    ordered = shifted.gather(1, order[..., None].expand(-1, -1, 4))
    alive = valid.gather(1, order)
    if _torchvision_nms is not None and boxes.shape[1] <= TORCHVISION_MAX_BOXES:
        slots, filled = _nms_torchvision(ordered, alive, iou_threshold, limit)
    else:
        slots, filled = nms_ordered(ordered, alive, iou_threshold, limit)
    return order.gather(1, slots), filled


def nms_ordered(boxes: Tensor, valid: Tensor, iou_threshold: float, limit: int) -> tuple[Tensor, Tensor]:
    """Greedy NMS over boxes that come by falling score, in plain torch.

    Blocks of boxes are decided one after the other: first against what was kept before, then among themselves.

    Args:
        boxes: float32 (N, n, 4).
        valid: bool (N, n).
        iou_threshold: suppression is strictly above it.
        limit: how many to keep a picture, 1 to n.

    Returns:
        int64 (N, limit) positions along n, rising; bool (N, limit): which are filled.
    """
    pictures, n, _ = boxes.shape
    # One more slot than asked for takes what comes after the limit; an empty slot's box overlaps nothing.
    kept = boxes.new_zeros(pictures, limit + 1, 4)
    slots = torch.zeros(pictures, limit + 1, dtype=torch.int64, device=boxes.device)
    count = torch.zeros(pictures, 1, dtype=torch.int64, device=boxes.device)
    for start in range(0, n, BLOCK):
        block = boxes[:, start : start + BLOCK]
        alive = valid[:, start : start + BLOCK]
        alive = alive & ~(iou_matrix(kept[:, :limit], block) > iou_threshold).any(dim=1)
        keep = _undominated((iou_matrix(block, block) > iou_threshold).triu_(diagonal=1), alive)
        slot = torch.where(keep, (count + keep.cumsum(dim=1) - 1).clamp_(max=limit), limit)
        position = torch.arange(start, start + block.shape[1], device=boxes.device).expand_as(slot)
        slots.scatter_(1, slot, position)
        kept.scatter_(1, slot[..., None].expand(-1, -1, 4), block)
        count += keep.sum(dim=1, keepdim=True)
        rest = valid[:, start + BLOCK :].any(dim=1)
        if not bool(((count[:, 0] < limit) & rest).any()):
            break
    filled = torch.arange(limit, device=boxes.device) < count
    return slots[:, :limit].masked_fill(~filled, 0), filled


def _undominated(overlaps: Tensor, alive: Tensor) -> Tensor:
    """Which boxes of each block survive, given that row j of `overlaps` (N, b, b) suppresses later column i.

    Greedy suppression is the one fixed point of: alive, and overlapped by no survivor. The first i boxes are
    right after i rounds, so that it takes at most b; in pictures it takes a handful.
    """
    keep = alive
    for _ in range(alive.shape[1]):
        survivors = alive & ~(overlaps & keep[..., None]).any(dim=1)
        if torch.equal(survivors, keep):
            break
        keep = survivors
    return keep


def _nms_torchvision(boxes: Tensor, valid: Tensor, iou_threshold: float, limit: int) -> tuple[Tensor, Tensor]:
    """The same as `nms_ordered` by torchvision's operator, which knows one picture at a time."""
    assert _torchvision_nms is not None
    slots = torch.zeros(len(boxes), limit, dtype=torch.int64, device=boxes.device)
    filled = torch.zeros(len(boxes), limit, dtype=torch.bool, device=boxes.device)
    # On the CPU it compares in float64, on CUDA in float32, as plain torch does.
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    for row in range(len(boxes)):
        present = valid[row].nonzero()[:, 0]
        falling = torch.arange(len(present), 0, -1, device=boxes.device, dtype=torch.float32)
        kept = _torchvision_nms(boxes[row, present], falling, threshold)[:limit]
        slots[row, : len(kept)] = present[kept]
        filled[row, : len(kept)] = True
    return slots, filled
