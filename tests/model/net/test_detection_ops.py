from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from model.net.detection_ops import (
    BLOCK,
    CHUNK_ELEMENTS,
    MIN_WINDOW,
    grouped_nms,
    nms_ordered,
    roi_align,
    roi_align_windows,
    torchvision_operator,
)


def greedy(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, threshold: float, limit: int) -> list[int]:
    """Greedy NMS by its definition, one box after the other, of one picture."""
    largest = boxes[valid].max() if bool(valid.any()) else torch.tensor(0.0)
    shifted = (boxes + (groups * (largest + 1))[:, None]).numpy()
    kept: list[int] = []
    for index in np.argsort(-scores.numpy(), kind="stable").tolist():
        if not valid[index] or len(kept) == limit:
            continue
        x0, y0, x1, y1 = shifted[index]
        overlaps = []
        for other in kept:
            u0, v0, u1, v1 = shifted[other]
            shared = max(min(x1, u1) - max(x0, u0), np.float32(0)) * max(min(y1, v1) - max(y0, v0), np.float32(0))
            union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - shared
            overlaps.append(union > 0 and shared / union > np.float32(threshold))
        if not any(overlaps):
            kept.append(index)
    return kept


def crowd(seed: int, pictures: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes on a coarse raster: IoU equals the threshold exactly, scores tie, some boxes have no area."""
    random = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 24, (pictures, n, 2), generator=random).float() * 4
    size = torch.randint(0, 8, (pictures, n, 2), generator=random).float() * 4
    scores = torch.randint(0, 200, (pictures, n), generator=random) / 200
    groups = torch.randint(0, 3, (pictures, n), generator=random)
    valid = torch.rand(pictures, n, generator=random) > 0.2
    return torch.cat((low, low + size), dim=2), scores, groups, valid


@pytest.mark.parametrize(("n", "limit"), [(1, 1), (60, 7), (BLOCK + 1, 1000), (3 * BLOCK + 5, 1000), (600, 40)])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7])
def test_nms_equals_the_greedy_definition(n: int, limit: int, threshold: float) -> None:
    """Blocks, fixed point and limits give the greedy result, box by box, for each picture."""
    boxes, scores, groups, valid = crowd(n, pictures=3, n=n)
    kept, filled = grouped_nms(boxes, scores, groups, valid, torch.full((3,), threshold), limit)
    for row in range(3):
        expected = greedy(boxes[row], scores[row], groups[row], valid[row], threshold, limit)
        assert kept[row, filled[row]].tolist() == expected


@pytest.mark.skipif(torchvision_operator("nms") is None, reason="torchvision is not installed")
@pytest.mark.parametrize("limit", [3, 500])
def test_plain_torch_nms_equals_torchvision(limit: int) -> None:
    """Installing torchvision changes no result."""
    nms = torchvision_operator("nms")
    assert nms is not None
    boxes, _, _, _ = crowd(5, pictures=1, n=900)
    kept, filled = nms_ordered(boxes, torch.ones(1, 900, dtype=torch.bool), torch.tensor([0.5]), limit)
    expected = nms(boxes[0], torch.arange(900, 0, -1).float(), 0.5)[:limit]
    assert kept[0, filled[0]].tolist() == expected.tolist()


def test_a_chain_is_resolved_from_the_best_down() -> None:
    """Of boxes that each overlap only their neighbours, every second one is kept: a suppressed box suppresses none."""
    left = torch.arange(300.0)[:, None] * 4
    boxes = torch.cat((left, torch.zeros(300, 1), left + 10, torch.full((300, 1), 10.0)), dim=1)[None]
    kept, filled = nms_ordered(boxes, torch.ones(1, 300, dtype=torch.bool), torch.tensor([0.4]), 300)
    assert kept[0, filled[0]].tolist() == list(range(0, 300, 2))


def test_rows_are_independent() -> None:
    """A picture with larger coordinates, or more boxes, in the batch changes no other row."""
    boxes, scores, groups, valid = crowd(11, pictures=4, n=400)
    boxes = boxes * torch.tensor([1.0, 7.3, 0.1, 100.0])[:, None, None]
    together, filled = grouped_nms(boxes, scores, groups, valid, torch.full((4,), 0.5), 50)
    for row in range(4):
        one = slice(row, row + 1)
        alone, alone_filled = grouped_nms(boxes[one], scores[one], groups[one], valid[one], torch.tensor([0.5]), 50)
        assert together[row, filled[row]].tolist() == alone[0, alone_filled[0]].tolist()


@pytest.mark.parametrize("n", [0, 10])
def test_nothing_to_keep(n: int) -> None:
    """No boxes, or no valid ones, give an empty result."""
    kept, filled = grouped_nms(
        torch.zeros(2, n, 4),
        torch.zeros(2, n),
        torch.zeros(2, n, dtype=torch.int64),
        torch.zeros(2, n) > 0,
        torch.full((2,), 0.5),
        5,
    )
    assert kept.shape == filled.shape
    assert not bool(filled.any())


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
def test_roi_align_equals_the_definition(size: int, scale: float) -> None:
    """Small, large, thin, empty, border-crossing and outside regions, in windows of several sizes."""
    features = torch.randn(3, int(120 * scale), int(160 * scale), generator=torch.Generator().manual_seed(3))
    expected = slow_roi_align(features, ROIS, size, scale).float()
    torch.testing.assert_close(roi_align_windows(features, ROIS, size, scale), expected, rtol=0, atol=2e-5)


@pytest.mark.skipif(torchvision_operator("roi_align") is None, reason="torchvision is not installed")
def test_plain_torch_roi_align_equals_torchvision() -> None:
    """Installing torchvision changes no result."""
    features = torch.randn(8, 30, 40, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(
        roi_align(features, ROIS, 7, 0.25), roi_align_windows(features, ROIS, 7, 0.25), rtol=0, atol=2e-5
    )


def test_regions_are_independent() -> None:
    """Many regions, processed in chunks, give what each gives alone."""
    random = torch.Generator().manual_seed(5)
    features = torch.randn(256, 64, 64, generator=random)
    low = torch.rand(200, 2, generator=random) * 200
    rois = torch.cat((low, low + torch.rand(200, 2, generator=random) * 250), dim=1)
    assert 2 * CHUNK_ELEMENTS["cpu"] < 200 * MIN_WINDOW**2 * 256
    together = roi_align_windows(features, rois, 7, 0.25)
    alone = torch.cat([roi_align_windows(features, one[None], 7, 0.25) for one in rois[::20]])
    torch.testing.assert_close(together[::20], alone, rtol=0, atol=1e-5)


def test_no_regions() -> None:
    """No regions give an empty result."""
    assert roi_align_windows(torch.zeros(4, 8, 8), torch.zeros(0, 4), 7, 0.25).shape == (0, 4, 7, 7)
