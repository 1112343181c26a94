from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from model.net.nms import BLOCK, grouped_nms, nms_ordered
from model.net.torchvision_ops import torchvision_operator


def greedy(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, threshold: float, limit: int) -> list[int]:
    """NMS as it is told in words, one box after the other, of one picture."""
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
    """Boxes on a coarse raster, so that IoU meets the threshold exactly, scores tie and some have no area."""
    random = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 24, (pictures, n, 2), generator=random).float() * 4
    size = torch.randint(0, 8, (pictures, n, 2), generator=random).float() * 4
    scores = torch.randint(0, 200, (pictures, n), generator=random) / 200
    groups = torch.randint(0, 3, (pictures, n), generator=random)
    valid = torch.rand(pictures, n, generator=random) > 0.2
    return torch.cat((low, low + size), dim=2), scores, groups, valid


@pytest.mark.parametrize(("n", "limit"), [(1, 1), (60, 7), (BLOCK + 1, 1000), (3 * BLOCK + 5, 1000), (600, 40)])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7])
def test_keeps_what_the_greedy_definition_keeps(n: int, limit: int, threshold: float) -> None:
    """Blocks, fixed point, slots and limits give the greedy answer, box by box, for each picture."""
    boxes, scores, groups, valid = crowd(n, pictures=3, n=n)
    kept, filled = grouped_nms(boxes, scores, groups, valid, threshold, limit)
    for row in range(3):
        expected = greedy(boxes[row], scores[row], groups[row], valid[row], threshold, limit)
        assert kept[row, filled[row]].tolist() == expected


@pytest.mark.skipif(torchvision_operator("nms") is None, reason="torchvision is not installed")
@pytest.mark.parametrize("limit", [3, 500])
def test_plain_torch_gives_torchvisions_answer(limit: int) -> None:
    """Installing torchvision changes no answer."""
    nms = torchvision_operator("nms")
    assert nms is not None
    boxes, _, _, _ = crowd(5, pictures=1, n=900)
    kept, filled = nms_ordered(boxes, torch.ones(1, 900, dtype=torch.bool), 0.5, limit)
    expected = nms(boxes[0], torch.arange(900, 0, -1).float(), 0.5)[:limit]
    assert kept[0, filled[0]].tolist() == expected.tolist()


def test_a_chain_is_resolved_from_the_best_down() -> None:
    """Of boxes that each overlap only their neighbours every second one stays: a suppressed box suppresses none."""
    left = torch.arange(300.0)[:, None] * 4
    boxes = torch.cat((left, torch.zeros(300, 1), left + 10, torch.full((300, 1), 10.0)), dim=1)[None]
    kept, filled = nms_ordered(boxes, torch.ones(1, 300, dtype=torch.bool), 0.4, 300)
    assert kept[0, filled[0]].tolist() == list(range(0, 300, 2))


def test_a_rows_answer_does_not_depend_on_its_neighbours() -> None:
    """A picture with larger coordinates, or more boxes, beside it changes nothing."""
    boxes, scores, groups, valid = crowd(11, pictures=4, n=400)
    boxes = boxes * torch.tensor([1.0, 7.3, 0.1, 100.0])[:, None, None]
    together, filled = grouped_nms(boxes, scores, groups, valid, 0.5, 50)
    for row in range(4):
        one = slice(row, row + 1)
        alone, alone_filled = grouped_nms(boxes[one], scores[one], groups[one], valid[one], 0.5, 50)
        assert together[row, filled[row]].tolist() == alone[0, alone_filled[0]].tolist()


@pytest.mark.parametrize("n", [0, 10])
def test_nothing_to_keep(n: int) -> None:
    """No boxes, or none that take part, give an empty answer."""
    kept, filled = grouped_nms(
        torch.zeros(2, n, 4), torch.zeros(2, n), torch.zeros(2, n, dtype=torch.int64), torch.zeros(2, n) > 0, 0.5, 5
    )
    assert kept.shape == filled.shape
    assert not bool(filled.any())
