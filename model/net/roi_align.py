"""RoIAlign (arXiv 1703.06870, section 3): a region of a feature map, resampled to a fixed grid."""

from __future__ import annotations

import torch
from torch import Tensor

from model.net.torchvision_ops import torchvision_operator

WINDOW_STEP = 16
"""Regions are grouped by the size of the window that holds them: this many cells, or a power of two times it."""
CHUNK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Bounds memory: at most this many numbers are cut out of a map at a time (or one region's, if that is more).

A CPU is fastest while they fit its cache, a GPU when few kernels do much.
"""

_torchvision_roi_align = torchvision_operator("roi_align")


def roi_align(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """Averages of bilinear samples over a size x size grid of each region.

    A grid cell of h x w feature cells takes ceil(h) x ceil(w) samples, evenly spread. Feature cell i has its
    centre at i + 0.5 (the "aligned" variant). A sample farther than one cell outside the map is zero; one nearer
    takes the border's value.

    Args:
        features: float32 (C, H, W).
        rois: float32 (R, 4) as xmin, ymin, xmax, ymax in input pixels.
        size: cells a side of the answer.
        scale: feature cells an input pixel.

    Returns:
        float32 (R, C, size, size).
    """
    if _torchvision_roi_align is not None:
        return _torchvision_roi_align(features[None], [rois], size, spatial_scale=scale, sampling_ratio=0, aligned=True)
    return roi_align_windows(features, rois, size, scale)


def roi_align_windows(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """`roi_align` in plain torch.

    Bilinear sampling and averaging are both separable: a region's answer is W_y · window · W_xᵀ, where W_y and
    W_x hold each row's and column's share in each grid cell. Regions of like size are computed together.
    """
    channels, height, width = features.shape
    edges = rois * scale - 0.5
    start_x, start_y = edges[:, 0], edges[:, 1]
    extent_x, extent_y = edges[:, 2] - start_x, edges[:, 3] - start_y
    pooled = features.new_zeros(len(rois), size, size, channels)
    cells = features.permute(1, 2, 0).contiguous()
    chunk = CHUNK_ELEMENTS[features.device.type]
    kinds, kind_of = torch.stack((_window_kinds(extent_y), _window_kinds(extent_x)), dim=1).unique(
        dim=0, return_inverse=True
    )
    for number, (kind_y, kind_x) in enumerate(kinds.tolist()):
        rows, columns = min(WINDOW_STEP << kind_y, height), min(WINDOW_STEP << kind_x, width)
        members = (kind_of == number).nonzero()[:, 0]
        for chosen in members.split(max(1, chunk // (rows * columns * channels))):
            y, weights_y = _axis_weights(start_y[chosen], extent_y[chosen], size, height, rows)
            x, weights_x = _axis_weights(start_x[chosen], extent_x[chosen], size, width, columns)
            window = cells[y[:, :, None], x[:, None, :]]
            by_row = torch.bmm(weights_y, window.flatten(2)).unflatten(2, (columns, channels))
            pooled[chosen] = weights_x[:, None] @ by_row
    return pooled.permute(0, 3, 1, 2)


def _window_kinds(extents: Tensor) -> Tensor:
    """Which power of two times WINDOW_STEP holds a region of `extents` cells and its bilinear neighbours."""
    cells = extents.clamp(min=0).ceil() + 2
    return (cells / WINDOW_STEP).log2().ceil().clamp(min=0).to(torch.int64)


def _axis_weights(start: Tensor, extent: Tensor, size: int, length: int, window: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the window's cells int64 (R, window), their shares in each grid cell (R, size, window)."""
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
