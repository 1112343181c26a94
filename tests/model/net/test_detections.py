from __future__ import annotations

import torch

from model.net.boxes import AnchorSpec
from model.net.detections import BatchGeometry, level_candidates
from model.types import Geometry, Size

ANCHORS = AnchorSpec(strides=(8,), scales=(1.0, 2.0), ratios=(1.0,))
CLASSES = 3


def frames(pictures: int) -> BatchGeometry:
    return BatchGeometry.of([Geometry(Size(100, 100), Size(40, 60))] * pictures, torch.device("cpu"))


def test_the_best_pairs_are_those_of_a_sort_over_all_pairs() -> None:
    """Choosing anchors first loses no pair, also with ties; ties are ordered by position, anchor, class."""
    random = torch.Generator().manual_seed(2)
    logits = torch.randint(-3, 3, (2, 2 * CLASSES, 5, 7), generator=random).float()
    logits[:, ::2] *= -1  # and -0.0 ties with 0.0
    deltas = torch.randn(2, 2 * 4, 5, 7, generator=random) * 0.1
    best = level_candidates(logits, deltas, ANCHORS, 0, frames(2), limit=40)
    for row in range(2):
        flat = [
            (-logits[row, anchor * CLASSES + label, y, x].item(), (y * 7 + x) * 2 + anchor, label)
            for y in range(5)
            for x in range(7)
            for anchor in range(2)
            for label in range(CLASSES)
        ]
        expected = sorted(flat)[:40]
        assert best.classes[row].tolist() == [label for _, _, label in expected]
        scores = torch.tensor([-negative for negative, _, _ in expected]).sigmoid()
        torch.testing.assert_close(best.scores[row], scores)


def test_boxes_belong_to_their_scores_and_stay_within_the_content() -> None:
    """The pair at cell (y 2, x 3), second anchor, is decoded from that anchor; boxes are clipped to 60 x 40 px."""
    logits, deltas = torch.full((1, 2 * CLASSES, 5, 7), -5.0), torch.zeros(1, 8, 5, 7)
    logits[0, 1 * CLASSES + 2, 2, 3] = 5.0
    deltas[0, 4, 2, 3] = 0.5
    best = level_candidates(logits, deltas, ANCHORS, 0, frames(1), limit=300)
    assert best.classes[0, 0] == 2
    torch.testing.assert_close(best.boxes[0, 0], torch.tensor([24.0 - 8 + 8, 16.0 - 8, 24.0 + 8 + 8, 16.0 + 8]))
    assert best.boxes.shape == (1, 5 * 7 * 2 * CLASSES, 4)
    assert bool((best.boxes >= 0).all())
    assert bool((best.boxes[..., 2] <= 60).all())
    assert bool((best.boxes[..., 3] <= 40).all())
