from __future__ import annotations

import json
from typing import Any

import numpy as np
import pycocotools.mask
import pytest

from model.types import BoolArray
from tests.model.zoo import formula

SIZE = (120, 160)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decoder
@pytest.mark.parametrize("family", ["classifier", "retinanet", "mask_rcnn", "semantic_fpn"])
def test_the_answer_equals_the_recorded_one(family: str) -> None:
    """Import, preprocessing, network and postprocessing give the recorded answer, within the bounds of the authors'
    goldens.
    """
    expected = json.loads((formula.FOLDER / f"{family}.json").read_text(encoding="utf-8"))
    found = formula.answer(family)
    assert found.keys() == expected.keys()
    if family == "semantic_fpn":
        assert (label_map(found) == label_map(expected)).mean() >= 0.9999
        return
    order = partners(found, expected)
    largest = 1e-4 if family == "classifier" else 5e-4
    assert np.abs(np.array(found["scores"]) - np.array(expected["scores"])[order]).max() <= largest
    if family != "classifier":
        assert np.abs(np.array(found["boxes"]) - np.array(expected["boxes"])[order]).max() <= 0.1
        for mask, partner in zip(found["masks"], np.array(order)[: len(found["masks"])], strict=True):
            ours, theirs = decoded(mask), decoded(expected["masks"][partner])
            assert (ours ^ theirs).sum() <= max(2, 0.002 * (ours | theirs).sum())


def partners(found: dict[str, Any], expected: dict[str, Any]) -> list[int]:
    """Check that both hold the same detections; return, for each of ours, its partner's position."""
    assert len(found["indices"]) == len(expected["indices"])
    far = np.abs(np.subtract.outer(np.array(found["scores"]), np.array(expected["scores"])))
    if "boxes" in expected:
        far += np.abs(np.array(found["boxes"])[:, None] - np.array(expected["boxes"])[None]).max(axis=2)
    far[np.array(found["indices"])[:, None] != np.array(expected["indices"])] = np.inf
    order: list[int] = far.argmin(axis=1).tolist()
    assert sorted(order) == list(range(len(order)))
    return order


def label_map(document: dict[str, Any]) -> np.ndarray:
    found = np.full(SIZE, -1)
    for index, counts in zip(document["indices"], document["masks"], strict=True):
        found[decoded(counts)] = index
    return found


def decoded(counts: str) -> BoolArray:
    mask: BoolArray = pycocotools.mask.decode({"size": SIZE, "counts": counts}).astype(bool)
    return mask
