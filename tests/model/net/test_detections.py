from __future__ import annotations

import numpy as np
import torch

from model.net.boxes import AnchorSpec
from model.net.detections import BatchGeometry, best_detections, detect_outputs, level_candidates
from model.spec import DetectPostSpec
from model.types import Geometry, QueryParams, Size

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


def test_rows_of_a_batch_have_their_own_choices() -> None:
    """Classes, areas, overlaps and NMS over all classes are each row's own; a row is as it would be alone."""
    generator = torch.Generator().manual_seed(5)
    corners = torch.rand(1, 60, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 4 + torch.rand(1, 60, 2, generator=generator) * 30], dim=2).expand(5, -1, -1)
    scores = torch.rand(1, 60, generator=generator).expand(5, -1)
    classes = torch.randint(3, (1, 60), generator=generator).expand(5, -1)
    params = [
        QueryParams(score_threshold=0.1),
        QueryParams(score_threshold=0.1, classes=(0, 2)),
        QueryParams(score_threshold=0.1, min_area=300),
        QueryParams(score_threshold=0.1, iou_threshold=0.1),
        QueryParams(score_threshold=0.1, agnostic_nms=True),
    ]
    spec = DetectPostSpec(score_threshold=0.5, nms_iou=0.5)
    together = detect_outputs(*best_detections(boxes, scores, classes, params, spec), params)
    for row, one in enumerate(params):
        here = slice(row, row + 1)
        (alone,) = detect_outputs(*best_detections(boxes[here], scores[here], classes[here], [one], spec), [one])
        np.testing.assert_array_equal(alone.boxes, together[row].boxes)
    plain, chosen, large, apart, agnostic = together
    assert set(chosen.classes) == {0, 2}
    np.testing.assert_array_equal(chosen.scores, plain.scores[plain.classes != 1])
    areas = np.prod(plain.boxes[:, 2:] - plain.boxes[:, :2], axis=1)
    np.testing.assert_array_equal(large.boxes, plain.boxes[areas >= 300])
    assert len(plain.scores) > len(apart.scores)
    assert len(plain.scores) > len(agnostic.scores)


def test_a_small_detection_is_not_replaced_by_what_it_suppressed() -> None:
    """`min_area` leaves detections out, and counts before `max_detections`; it never uncovers a duplicate."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 11, 11], [40, 40, 60, 60], [70, 70, 95, 95]]])
    scores, classes = torch.tensor([[0.9, 0.8, 0.7, 0.6]]), torch.zeros(1, 4, dtype=torch.int64)
    params = [QueryParams(score_threshold=0.1, min_area=110, max_detections=1)]
    (output,) = detect_outputs(*best_detections(boxes, scores, classes, params, DetectPostSpec(nms_iou=0.5)), params)
    assert output.boxes.tolist() == [[40, 40, 60, 60]]


def test_what_is_not_finite_passes_every_choice() -> None:
    """A NaN score is returned whatever its class and area, so that the answer is an error."""
    boxes, scores = torch.tensor([[[0.0, 0, 1, 1]]]), torch.tensor([[torch.nan]])
    params = [QueryParams(classes=(4,), min_area=50)]
    (output,) = detect_outputs(*best_detections(boxes, scores, torch.tensor([[1]]), params, DetectPostSpec()), params)
    assert not output.finite
