from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.training.data import Record
from model.training.evaluate import (
    area_under_curve,
    average_precision,
    calibration_error,
    intersection_over_union,
    precision_and_recall,
    scored_matches,
    top_k_accuracy,
)
from model.types import Box, Detection, Size

TRUE = Box(10, 10, 50, 50)
FAR = Box(60, 60, 90, 90)


def test_low_scores_do_not_count_for_calibration() -> None:
    """Each detection above the minimum has its score and correctness; those below are left out."""
    records = [Record(Path("a.jpg"), Size(100, 100), 0, 0, 0, TRUE, None)]
    found = [
        [Detection("cat", 0, 0.9, TRUE, None), Detection("dog", 1, 0.3, FAR, None), Detection("", 1, 0.04, FAR, None)]
    ]
    scores, right = scored_matches(found, records, ("cat", "dog"))
    assert scores.tolist() == [0.9, 0.3]
    assert right.tolist() == [True, False]


def head(species: int, box: Box | None) -> Record:
    return Record(Path("a.jpg"), Size(100, 100), 0, species, 0, box, None)


def detection(index: int, score: float, box: Box) -> Detection:
    return Detection("", index, score, box, None)


NEAR = Box(10, 10, 50, 45)


def test_average_precision_of_a_hand_made_case() -> None:
    """Cats: hit, miss, hit of two heads: AP 1/2·1 + 1/2·2/3; dogs: the head's second box is false."""
    records = [head(0, TRUE), head(0, TRUE), head(1, TRUE), head(1, None)]
    found = [
        [detection(0, 0.9, NEAR), detection(0, 0.8, FAR)],
        [detection(0, 0.7, TRUE), detection(1, 0.1, FAR)],
        [detection(1, 0.9, NEAR), detection(1, 0.8, TRUE)],
        [detection(1, 0.99, FAR)],
    ]
    figures = average_precision(found, records, ("cat", "dog"))
    assert figures["ap50_cat"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert figures["ap50_dog"] == pytest.approx(1.0)
    assert figures["ap50"] == pytest.approx((figures["ap50_cat"] + figures["ap50_dog"]) / 2)


def test_precision_and_recall_above_a_score() -> None:
    """Above 0.75: a hit and a miss, of three heads; a head's second box is a miss even if it fits better."""
    records = [head(0, TRUE), head(0, TRUE), head(1, TRUE)]
    found = [[detection(0, 0.9, NEAR), detection(0, 0.8, TRUE)], [detection(0, 0.7, TRUE)], []]
    figures = precision_and_recall(found, records, ("cat", "dog"), 0.75)
    assert figures == {"precision_at_threshold": 1 / 2, "recall_at_threshold": pytest.approx(1 / 3)}


def test_precision_falls_with_recall() -> None:
    """A later, higher precision counts for all lower recalls; heads that are never found lower the area."""
    assert area_under_curve(np.array([False, True, True]), 4) == pytest.approx(2 / 3 * 2 / 4)
    assert area_under_curve(np.array([], np.bool_), 4) == 0


def test_top_k_counts_the_rank_of_the_truth() -> None:
    """Rank 1 counts for top 1; ranks 1 to 5 for top 5."""
    probabilities = np.array([[0.3, 0.2, 0.2, 0.1, 0.1, 0.1], [0.1, 0.3, 0.2, 0.2, 0.15, 0.05]])
    figures = top_k_accuracy(np.concatenate([probabilities, probabilities]), np.array([0, 0, 5, 5]))
    assert figures == {"top1": pytest.approx(1 / 4), "top5": pytest.approx(2 / 4)}


def test_calibration_error_is_the_gap_between_score_and_accuracy() -> None:
    """One of two at 0.9 correct: 0.4; none of two at 0.3: 0.3; a score of 1 is in the last bin."""
    scores, right = np.array([0.9, 0.9, 0.3, 0.3, 1.0]), np.array([True, False, False, False, True])
    assert calibration_error(scores, right) == pytest.approx((2 * 0.4 + 2 * 0.3 + 0) / 5)


def test_iou_from_pixel_counts() -> None:
    """A class's IoU is the intersection of truth and answer over their union."""
    figures = intersection_over_union(np.array([[6, 2], [1, 1]]), ("background", "cat"))
    assert figures["iou_background"] == pytest.approx(6 / 9)
    assert figures["iou_cat"] == pytest.approx(1 / 4)
    assert figures["pixel_accuracy"] == pytest.approx(0.7)
