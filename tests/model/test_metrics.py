from __future__ import annotations

import numpy as np
import pytest

from model.metrics import (
    ScoredBox,
    TrueBox,
    average_precision,
    calibration_error,
    confusion_matrix,
    interpolated_precision,
    intersection_over_union,
    match_boxes,
    precision_and_recall,
    scored_matches,
    top_k_accuracy,
    voc_average_precision,
)
from model.types import Box

TRUE = Box(10, 10, 50, 50)
NEAR = Box(10, 10, 50, 45)
FAR = Box(60, 60, 90, 90)


def test_low_scores_do_not_count_for_calibration() -> None:
    """Each detection above the minimum has its score and correctness; those below are left out."""
    found = [[ScoredBox(0, 0.9, TRUE), ScoredBox(1, 0.3, FAR), ScoredBox(1, 0.04, FAR)]]
    scores, right = scored_matches(found, [[TrueBox(0, TRUE)]], 2)
    assert scores.tolist() == [0.9, 0.3]
    assert right.tolist() == [True, False]


def test_precision_and_recall_above_a_score() -> None:
    """Above 0.75: a hit and a miss, of three objects; an object's second box is a miss even if it fits better."""
    truth = [[TrueBox(0, TRUE)], [TrueBox(0, TRUE)], [TrueBox(1, TRUE)]]
    found = [[ScoredBox(0, 0.9, NEAR), ScoredBox(0, 0.8, TRUE)], [ScoredBox(0, 0.7, TRUE)], []]
    figures = precision_and_recall(found, truth, 2, 0.75)
    assert figures == {"precision_at_threshold": 1 / 2, "recall_at_threshold": pytest.approx(1 / 3)}


def test_a_detection_takes_the_object_that_it_overlaps_most() -> None:
    """The second one takes the other object. A detection in a crowd is neither right nor wrong."""
    truth = [[TrueBox(0, NEAR), TrueBox(0, TRUE), TrueBox(0, FAR, crowd=True)]]
    found = [[ScoredBox(0, 0.9, TRUE), ScoredBox(0, 0.8, TRUE), ScoredBox(0, 0.7, Box(61, 61, 70, 70))]]
    assert match_boxes(found, truth, 0, 0.5) == ([(0.9, True), (0.8, True)], 2)


def test_average_precision_of_a_hand_made_case() -> None:
    """Cats: hit, miss, hit of two: AP 1/2·1 + 1/2·2/3; dogs: a dog's second box is false; there are no birds."""
    truth = [[TrueBox(0, TRUE)], [TrueBox(0, TRUE)], [TrueBox(1, TRUE)]]
    found = [
        [ScoredBox(0, 0.9, NEAR), ScoredBox(0, 0.8, FAR)],
        [ScoredBox(0, 0.7, TRUE), ScoredBox(1, 0.1, FAR)],
        [ScoredBox(1, 0.9, NEAR), ScoredBox(1, 0.8, TRUE)],
    ]
    figures = voc_average_precision(found, truth, ("cat", "dog", "bird"))
    assert figures["ap50_cat"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert figures["ap50_dog"] == pytest.approx(1.0)
    assert figures["ap50"] == pytest.approx((figures["ap50_cat"] + figures["ap50_dog"]) / 2)
    assert "ap50_bird" not in figures


def test_precision_falls_with_recall() -> None:
    """A later, higher precision counts for all lower recalls; objects that are never found lower the area."""
    assert interpolated_precision(np.array([False, True, True]), 4) == pytest.approx(2 / 3 * 2 / 4)
    assert interpolated_precision(np.array([], np.bool_), 4) == 0


def test_average_precision_of_a_class() -> None:
    """Hits at ranks 1 and 3: 1/2·1 + 1/2·2/3. Equal scores are one point: two of four in any order give 1/2."""
    assert average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True])) == pytest.approx(5 / 6)
    for positive in ([True, True, False, False], [False, False, True, True]):
        assert average_precision(np.full(4, 0.5), np.array(positive)) == pytest.approx(1 / 2)


def test_top_k_counts_the_rank_of_the_truth() -> None:
    """Rank 1 counts for top 1; ranks 1 to 5 for top 5; -1 is no class."""
    ranked = np.array([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 0, 5], [1, 2, 3, 4, 5, 0], [1, -1, -1, -1, -1, -1]])
    assert top_k_accuracy(ranked, np.zeros(4, np.int64)) == {"top1": 1 / 4, "top5": 2 / 4}


def test_calibration_error_is_the_gap_between_score_and_accuracy() -> None:
    """One of two at 0.9 correct: 0.4; none of two at 0.3: 0.3; a score of 1 is in the last bin."""
    scores, right = np.array([0.9, 0.9, 0.3, 0.3, 1.0]), np.array([True, False, False, False, True])
    assert calibration_error(scores, right) == pytest.approx((2 * 0.4 + 2 * 0.3 + 0) / 5)


def test_iou_from_pixel_counts() -> None:
    """A class's IoU is the intersection of truth and answer over their union; one that neither has does not count."""
    confusion = confusion_matrix(np.array([[0] * 8 + [1] * 2]), np.array([[0] * 6 + [1] * 2 + [0, 1]]), 3)
    assert confusion.tolist() == [[6, 2, 0], [1, 1, 0], [0, 0, 0]]
    assert intersection_over_union(confusion, ("background", "cat", "dog")) == {
        "miou": pytest.approx((6 / 9 + 1 / 4) / 2),
        "pixel_accuracy": pytest.approx(0.7),
        "iou_background": pytest.approx(6 / 9),
        "iou_cat": pytest.approx(1 / 4),
    }
