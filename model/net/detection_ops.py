"""The detectors' operators: non-maximum suppression of a batch, and RoIAlign (arXiv 1703.06870, section 3).

torchvision's operators are used where it is installed. It is no dependency: plain torch gives the same results.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from model.net.boxes import iou_matrix


def torchvision_operator(name: str) -> Callable[..., Tensor] | None:
    """`torchvision.ops.<name>`; None if torchvision cannot be imported.

    A torchvision built for another torch raises RuntimeError on import.
    """
    try:
        operator: Callable[..., Tensor] = getattr(importlib.import_module("torchvision.ops"), name)
    except (ImportError, RuntimeError):
        return None
    return operator


BLOCK = 256
"""Boxes processed together. Bounds memory: N · BLOCK · (limit + BLOCK) overlaps at a time."""
TORCHVISION_MAX_BOXES = 16_384
"""torchvision computes the overlaps of all pairs; for more boxes `nms_ordered` needs far less memory."""

_torchvision_nms = torchvision_operator("nms")


def grouped_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_thresholds: Tensor, limit: int
) -> tuple[Tensor, Tensor]:
    """Greedy NMS within each group (class or level) of each picture.

    A box is suppressed if a kept, better box of its group overlaps it by more than the picture's threshold. Groups are
    separated by shifting the boxes of group g by g · (largest coordinate + 1) in float32, as mmdetection does; its
    rounding affects results.

    Args:
        boxes: float32 (N, n, 4), coordinates not negative.
        scores: float32 (N, n).
        groups: int64 (N, n), not negative.
        valid: bool (N, n); other boxes are ignored.
        iou_thresholds: float32 (N,); suppression is strictly above them.
        limit: number of boxes to keep in a picture.

    Returns:
        int64 (N, k), k = min(limit, n): indices along n by falling score; bool (N, k): which entries are kept boxes;
        these come first. Rows do not depend on each other.
    """
    limit = min(limit, boxes.shape[1])
    if limit == 0:
        empty = torch.zeros(len(boxes), 0, dtype=torch.int64, device=boxes.device)
        return empty, empty.bool()
    shifted = separate_groups(boxes, groups, valid)
    ranked = scores.masked_fill(~valid, -torch.inf)
    order = ranked.sort(dim=1, descending=True, stable=True).indices
    ordered = shifted.gather(1, order[..., None].expand(-1, -1, 4))
    alive = valid.gather(1, order)
    if _torchvision_nms is not None and boxes.shape[1] <= TORCHVISION_MAX_BOXES:
        slots, filled = _nms_torchvision(ordered, alive, iou_thresholds, limit)
    else:
        slots, filled = nms_ordered(ordered, alive, iou_thresholds, limit)
    return order.gather(1, slots), filled


def separate_groups(boxes: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """Boxes (N, n, 4) shifted so far that those of different groups do not overlap; arguments as of `grouped_nms`."""
    largest = boxes.masked_fill(~valid[..., None], 0).amax(dim=(1, 2))
    return boxes + (groups * (largest[:, None] + 1))[..., None]


def nms_ordered(boxes: Tensor, valid: Tensor, iou_thresholds: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Greedy NMS of boxes sorted by falling score, in plain torch.

    Blocks of boxes are processed in order: first against the boxes kept before, then among themselves.

    Args:
        boxes: float32 (N, n, 4).
        valid: bool (N, n).
        iou_thresholds: float32 (N,); suppression is strictly above them.
        limit: number of boxes to keep in a picture, 1 to n.

    Returns:
        int64 (N, limit): rising indices along n; bool (N, limit): which entries are kept boxes.
    """
    pictures, n, _ = boxes.shape
    thresholds = iou_thresholds[:, None, None]
    # One extra slot takes the boxes beyond the limit; an empty slot's box overlaps nothing.
    kept = boxes.new_zeros(pictures, limit + 1, 4)
    slots = torch.zeros(pictures, limit + 1, dtype=torch.int64, device=boxes.device)
    count = torch.zeros(pictures, 1, dtype=torch.int64, device=boxes.device)
    for start in range(0, n, BLOCK):
        block = boxes[:, start : start + BLOCK]
        alive = valid[:, start : start + BLOCK]
        alive = alive & ~(iou_matrix(kept[:, :limit], block) > thresholds).any(dim=1)
        keep = _survivors((iou_matrix(block, block) > thresholds).triu_(diagonal=1), alive)
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


def _survivors(overlaps: Tensor, alive: Tensor) -> Tensor:
    """Which boxes of a block survive: bool (N, b), where `overlaps` (N, b, b) marks that box j suppresses later box i.

    The result of greedy suppression is the unique fixed point of: alive, and overlapped by no survivor. After i rounds
    the first i boxes are final, so there are at most b rounds; in real pictures a handful.
    """
    keep = alive
    for _ in range(alive.shape[1]):
        survivors = alive & ~(overlaps & keep[..., None]).any(dim=1)
        if torch.equal(survivors, keep):
            break
        keep = survivors
    return keep


def _nms_torchvision(boxes: Tensor, valid: Tensor, iou_thresholds: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """`nms_ordered` by torchvision's operator, which takes one picture at a time."""
    assert _torchvision_nms is not None
    slots = torch.zeros(len(boxes), limit, dtype=torch.int64, device=boxes.device)
    filled = torch.zeros(len(boxes), limit, dtype=torch.bool, device=boxes.device)
    # On the CPU it compares in float64, on CUDA in float32, as plain torch does.
    for row, threshold in enumerate(iou_thresholds.tolist()):
        present = valid[row].nonzero()[:, 0]
        falling = torch.arange(len(present), 0, -1, device=boxes.device, dtype=torch.float32)
        kept = _torchvision_nms(boxes[row, present], falling, threshold)[:limit]
        slots[row, : len(kept)] = present[kept]
        filled[row, : len(kept)] = True
    return slots, filled


MIN_WINDOW = 16
"""Regions are grouped by the size of their window of feature cells: this many, times a power of two."""
CHUNK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Bounds memory: numbers cut out of a feature map at a time, at least one region's.

A CPU is fastest if they fit in its cache; a GPU, with few large kernels.
"""

_torchvision_roi_align = torchvision_operator("roi_align")


def roi_align(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Averages of bilinear samples in a size x size grid over each region.

    A grid cell of h x w feature cells has ceil(h) x ceil(w) samples, evenly spaced. Feature cell i has its centre at
    i + 0.5 (aligned=True). A sample more than one cell outside the map is zero; a nearer one takes the border's value.

    Args:
        features: float32 (C, H, W).
        rois: float32 (R, 4) as xmin, ymin, xmax, ymax in input pixels.
        size: side of the grid, in cells.
        scale: feature cells per input pixel.

    Returns:
        float32 (R, C, size, size).
    """
    if _torchvision_roi_align is not None:
        return _torchvision_roi_align(features[None], [rois], size, spatial_scale=scale, sampling_ratio=0, aligned=True)
    return roi_align_windows(features, rois, size, scale)


def roi_align_windows(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """`roi_align` in plain torch.

    Bilinear sampling and averaging are both separable: a region's result is W_y · window · W_xᵀ, where W_y and W_x are
    the weights of the window's rows and columns in each grid cell. Regions of similar size are computed together.
    """
    channels, height, width = features.shape
    edges = rois * scale - 0.5
    start_x, start_y = edges[:, 0], edges[:, 1]
    extent_x, extent_y = edges[:, 2] - start_x, edges[:, 3] - start_y
    pooled = features.new_zeros(len(rois), size, size, channels)
    cells = features.permute(1, 2, 0).contiguous()
    chunk = CHUNK_ELEMENTS[features.device.type]
    kinds, kind_of = torch.stack((_window_exponents(extent_y), _window_exponents(extent_x)), dim=1).unique(
        dim=0, return_inverse=True
    )
    for number, (kind_y, kind_x) in enumerate(kinds.tolist()):
        rows, columns = min(MIN_WINDOW << kind_y, height), min(MIN_WINDOW << kind_x, width)
        members = (kind_of == number).nonzero()[:, 0]
        for chosen in members.split(max(1, chunk // (rows * columns * channels))):
            y, weights_y = _axis_weights(start_y[chosen], extent_y[chosen], size, height, rows)
            x, weights_x = _axis_weights(start_x[chosen], extent_x[chosen], size, width, columns)
            window = cells[y[:, :, None], x[:, None, :]]
            by_row = torch.bmm(weights_y, window.flatten(2)).unflatten(2, (columns, channels))
            pooled[chosen] = weights_x[:, None] @ by_row
    return pooled.permute(0, 3, 1, 2)


def _window_exponents(extents: Tensor) -> Tensor:
    """Exponents e: a window of MIN_WINDOW · 2^e cells holds a region of `extents` cells and its neighbours."""
    cells = extents.clamp(min=0).ceil() + 2
    return (cells / MIN_WINDOW).log2().ceil().clamp(min=0).to(torch.int64)


def _axis_weights(start: Tensor, extent: Tensor, size: int, length: int, window: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the window's cell indices int64 (R, window); their weights in grid cells (R, size, window)."""
    samples = (extent / size).ceil().clamp(min=0)
    step = torch.arange(int(samples.max()), device=start.device)
    bins = torch.arange(size, device=start.device)[:, None] * (extent / size)[:, None, None]
    at = start[:, None, None] + bins + (step + 0.5) * (extent / size / samples.clamp(min=1))[:, None, None]
    counted = (step < samples[:, None, None]) & (at >= -1) & (at <= length)
    first = start.floor().clamp(0, length - window).to(torch.int64)
    cells = first[:, None] + torch.arange(window, device=start.device)
    distance = at.clamp(0, length - 1)[..., None] - cells[:, None, None, :]
    share = (1 - distance.abs()).clamp_(min=0) * counted[..., None]
    return cells, share.sum(dim=2) / samples.clamp(min=1)[:, None, None]
