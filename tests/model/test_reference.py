"""The reference check: which answers pass."""

from __future__ import annotations

import math

import numpy as np
import pytest

from model.reference import GRID, mismatch, summarise
from model.types import Box, ClassifyResult, Detection, DetectResult, Label, Result, SegmentResult, Size

SIZE = Size(64, 64)


def labels(*scores: float) -> ClassifyResult:
    return ClassifyResult(SIZE, tuple(Label(f"class {at}", at, score) for at, score in enumerate(scores)))


def heads(*found: tuple[int, float, Box]) -> DetectResult:
    return DetectResult(
        SIZE, tuple(Detection(f"class {index}", index, score, box, None) for index, score, box in found)
    )


def segments(split: int) -> SegmentResult:
    label_map = np.zeros((64, 64), np.uint8)
    label_map[:, split:] = 1
    return SegmentResult(SIZE, label_map, ())


HEAD = Box(10, 10, 40, 40)


@pytest.mark.parametrize(
    ("committed", "found", "agrees"),
    [
        (labels(0.6, 0.3), labels(0.6, 0.3), True),
        (labels(0.6, 0.3), labels(0.58, 0.33), True),
        (labels(0.6, 0.3), labels(0.5, 0.4), False),
        (heads((0, 0.9, HEAD)), heads((0, 0.88, Box(11, 10, 41, 40))), True),
        (heads((0, 0.9, HEAD)), heads((1, 0.9, HEAD)), False),
        (heads((0, 0.9, HEAD)), heads((0, 0.9, Box(30, 30, 60, 60))), False),
        (heads((0, 0.9, HEAD)), heads((0, 0.95001, HEAD)), False),
        (heads((0, 0.9, HEAD)), heads(), False),
        (heads((0, 0.9, HEAD)), heads((1, 0.89, HEAD)), False),
        (segments(30), segments(31), True),
        (segments(30), segments(40), False),
        (segments(30), labels(1.0), False),
    ],
)
def test_only_close_answers_pass(committed: Result, found: Result, agrees: bool) -> None:
    """Rounding passes; another class, place, score, pixel or task gives a mismatch with a reason."""
    objection = mismatch(found, summarise(committed))
    assert (objection is None) is agrees
    assert objection != ""


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("committed", [labels(0.6), heads((0, 0.9, HEAD)), labels(), heads()])
def test_numbers_that_are_not_finite_never_pass(committed: Result, number: float) -> None:
    """NaN and infinity agree with no reference, not even with an empty one: every comparison fails closed."""
    wrong_box = Box(10, number, 40, 40)
    answers = labels(number), labels(0.6, number), heads((0, number, HEAD)), heads((0, 0.9, HEAD), (0, 0.8, wrong_box))
    for found in answers:
        objection = mismatch(found, summarise(committed))
        assert objection is not None
        assert "not finite" in objection


def test_a_detection_at_the_cut_may_be_missing() -> None:
    """If an answer is cut at its limit, an expected detection that scores like the last one may be missing."""
    boxes = [Box(10 * at, 0, 10 * at + 9, 9) for at in range(6)]
    committed = heads(*((0, 0.9 - 0.001 * at, box) for at, box in enumerate(boxes[:5])))
    found = heads(*((0, 0.9 - 0.001 * at, box) for at, box in enumerate(boxes[1:])))
    assert mismatch(found, summarise(committed)) is None


def test_the_raster_is_the_same_for_every_size() -> None:
    """A segmentation reference has GRID rows of GRID indices, whatever the picture's size."""
    reference = summarise(segments(30))
    assert reference.task == "segment"
    assert [len(row.split()) for row in reference.grid] == [GRID] * GRID
