from __future__ import annotations

import math

import pytest
import torch

from model.net.boxes import decode_deltas
from model.training.detect import assign, focal_loss

ANCHORS = torch.tensor(
    [
        [0.0, 0.0, 10.0, 10.0],
        [0.0, 0.0, 10.0, 8.0],  # IoU 0.8 with the first
        [0.0, 0.0, 10.0, 4.5],  # IoU 0.45
        [0.0, 0.0, 10.0, 2.0],  # IoU 0.2
        [50.0, 50.0, 60.0, 60.0],
    ]
)


def test_anchors_are_positive_ignored_or_negative_by_iou() -> None:
    """Positive from IoU 0.5 on, background below 0.4, ignored between."""
    found = assign(ANCHORS, torch.tensor([[[0.0, 0.0, 10.0, 10.0]]]), torch.tensor([[1]]), 0.5, 0.4)
    assert found.classes.tolist() == [[1, 1, -2, -1, -1]]
    torch.testing.assert_close(decode_deltas(ANCHORS[1], found.deltas[0, 1]), ANCHORS[0])


def test_an_object_always_has_its_best_anchor() -> None:
    """An object's best anchor is positive, however small the IoU."""
    found = assign(ANCHORS, torch.tensor([[[50.0, 50.0, 52.0, 52.0]]]), torch.tensor([[0]]), 0.5, 0.4)
    assert found.classes.tolist() == [[-1, -1, -1, -1, 0]]


def test_without_an_object_all_anchors_are_background() -> None:
    """A picture without a head has background targets alone, in a batch with one that has a head."""
    boxes = torch.tensor([[[0.0, 0.0, 0.0, 0.0]], [[50.0, 50.0, 60.0, 60.0]]])
    found = assign(ANCHORS, boxes, torch.tensor([[-1], [0]]), 0.5, 0.4)
    assert found.classes.tolist() == [[-1] * 5, [-1, -1, -1, -1, 0]]
    assert torch.isfinite(found.deltas).all()


def test_several_objects_share_the_anchors() -> None:
    """Each anchor belongs to the object that it overlaps most; the second's best anchor is its own, at any overlap."""
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 52.0, 52.0], [0.0, 0.0, 10.0, 2.2]]])
    found = assign(ANCHORS, boxes, torch.tensor([[1, 0, 2]]), 0.5, 0.4)
    assert found.classes.tolist() == [[1, 1, -2, 2, 0]]
    torch.testing.assert_close(decode_deltas(ANCHORS[3], found.deltas[0, 3]), boxes[0, 2])


def test_focal_loss_of_known_scores() -> None:
    """alpha times the miss to the power of gamma times the entropy; ignored anchors add nothing."""
    logits = torch.zeros(1, 3, 2)
    found = focal_loss(logits, torch.tensor([[0, -1, -2]]), alpha=0.25, gamma=2.0)
    entropy = math.log(2) * 0.25
    assert float(found) == pytest.approx(0.25 * entropy + 3 * 0.75 * entropy)
