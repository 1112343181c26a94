from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.net.roi_align import CHUNK_ELEMENTS, WINDOW_STEP, roi_align, roi_align_windows
from model.net.torchvision_ops import torchvision_operator

ROIS = torch.tensor(
    [
        [8.0, 8.0, 40.0, 36.0],
        [0.0, 0.0, 160.0, 120.0],
        [3.3, 5.7, 5.1, 118.9],
        [100.2, 50.1, 159.9, 52.3],
        [10.0, 10.0, 10.0, 30.0],
        [-30.0, -20.0, 20.0, 20.0],
        [140.0, 100.0, 200.0, 180.0],
        [300.0, 300.0, 310.0, 310.0],
        [21.49, 33.33, 77.77, 88.88],
    ]
)


def slow_roi_align(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """RoIAlign by its definition, one sample after the other, in float64."""
    channels, height, width = features.shape
    features = features.double()
    out = torch.zeros(len(rois), channels, size, size, dtype=torch.float64)
    for number, (x0, y0, x1, y1) in enumerate((rois * scale - 0.5).double().tolist()):
        rows, columns = math.ceil((y1 - y0) / size), math.ceil((x1 - x0) / size)
        for i in range(size):
            for j in range(size):
                total = torch.zeros(channels, dtype=torch.float64)
                for p in range(rows):
                    for q in range(columns):
                        y = y0 + (i + (p + 0.5) / rows) * (y1 - y0) / size
                        x = x0 + (j + (q + 0.5) / columns) * (x1 - x0) / size
                        if -1 <= y <= height and -1 <= x <= width:
                            total += bilinear(features, min(max(y, 0), height - 1), min(max(x, 0), width - 1))
                out[number, :, i, j] = total / max(rows * columns, 1)
    return out


def bilinear(features: Tensor, y: float, x: float) -> Tensor:
    top, left = int(y), int(x)
    bottom, right = min(top + 1, features.shape[1] - 1), min(left + 1, features.shape[2] - 1)
    upper = features[:, top, left] * (left + 1 - x) + features[:, top, right] * (x - left)
    lower = features[:, bottom, left] * (left + 1 - x) + features[:, bottom, right] * (x - left)
    return upper * (top + 1 - y) + lower * (y - top)


@pytest.mark.parametrize("size", [2, 7])
@pytest.mark.parametrize("scale", [0.25, 0.125])
def test_is_the_definition(size: int, scale: float) -> None:
    """Small, large, thin, empty, crossing and missing regions, in windows of several sizes, as by the definition."""
    features = torch.randn(3, int(120 * scale), int(160 * scale), generator=torch.Generator().manual_seed(3))
    expected = slow_roi_align(features, ROIS, size, scale).float()
    torch.testing.assert_close(roi_align_windows(features, ROIS, size, scale), expected, rtol=0, atol=2e-5)


@pytest.mark.skipif(torchvision_operator("roi_align") is None, reason="torchvision is not installed")
def test_torchvision_gives_the_same() -> None:
    """Installing torchvision changes no answer."""
    features = torch.randn(8, 30, 40, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(
        roi_align(features, ROIS, 7, 0.25), roi_align_windows(features, ROIS, 7, 0.25), rtol=0, atol=2e-5
    )


def test_regions_are_independent_of_each_other() -> None:
    """Many regions, cut into chunks, give what each gives alone."""
    random = torch.Generator().manual_seed(5)
    features = torch.randn(256, 64, 64, generator=random)
    low = torch.rand(200, 2, generator=random) * 200
    rois = torch.cat((low, low + torch.rand(200, 2, generator=random) * 250), dim=1)
    assert 2 * CHUNK_ELEMENTS["cpu"] < 200 * WINDOW_STEP**2 * 256
    together = roi_align_windows(features, rois, 7, 0.25)
    alone = torch.cat([roi_align_windows(features, one[None], 7, 0.25) for one in rois[::20]])
    torch.testing.assert_close(together[::20], alone, rtol=0, atol=1e-5)


def test_no_regions() -> None:
    """An empty list of regions is an empty answer."""
    assert roi_align_windows(torch.zeros(4, 8, 8), torch.zeros(0, 4), 7, 0.25).shape == (0, 4, 7, 7)
