from __future__ import annotations

from pathlib import Path

import pytest

from model.metrics import ScoredBox
from model.training.data import Record
from model.training.evaluate import average_precisions, true_heads
from model.types import Box, Size

TRUE = Box(10, 10, 50, 50)
NEAR = Box(10, 10, 50, 45)
FAR = Box(60, 60, 90, 90)


def head(species: int) -> Record:
    return Record(Path("a.jpg"), Size(100, 100), 0, species, 0, TRUE, None)


def test_average_precision_of_a_hand_made_case() -> None:
    """Cats: hit, miss, hit of two heads: AP 1/2·1 + 1/2·2/3; dogs: the head's second box is false."""
    found = [
        [ScoredBox(0, 0.9, NEAR), ScoredBox(0, 0.8, FAR)],
        [ScoredBox(0, 0.7, TRUE), ScoredBox(1, 0.1, FAR)],
        [ScoredBox(1, 0.9, NEAR), ScoredBox(1, 0.8, TRUE)],
    ]
    figures = average_precisions(found, true_heads([head(0), head(0), head(1)]), ("cat", "dog"))
    assert figures["ap50_cat"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert figures["ap50_dog"] == pytest.approx(1.0)
    assert figures["ap50"] == pytest.approx((figures["ap50_cat"] + figures["ap50_dog"]) / 2)
