from __future__ import annotations

from pathlib import Path

from model.training.data import Record
from model.training.evaluate import judged
from model.types import Box, Detection, Size

TRUE = Box(10, 10, 50, 50)
FAR = Box(60, 60, 90, 90)


def test_detections_that_nobody_sees_do_not_count_for_calibration() -> None:
    """Each detection that is shown comes with its score and its verdict; thousands near zero would flatter the rest."""
    records = [Record(Path("a.jpg"), Size(100, 100), 0, 0, 0, TRUE, None)]
    found = [
        [Detection("cat", 0, 0.9, TRUE, None), Detection("dog", 1, 0.3, FAR, None), Detection("", 1, 0.04, FAR, None)]
    ]
    scores, right = judged(found, records, ("cat", "dog"))
    assert scores.tolist() == [0.9, 0.3]
    assert right.tolist() == [True, False]
