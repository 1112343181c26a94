from __future__ import annotations

import json

import pytest

from benchmarks.answers import Detection, Detections, Segment, Segments, agrees
from model.types import Box

CAT = Detection(3, 0.8, Box(10, 10, 110, 110))


def detected(index: int, score: float, xmin: float) -> bytes:
    box = {"xmin": xmin, "ymin": 10, "xmax": xmin + 100, "ymax": 110}
    return json.dumps({"results": [{"detections": [{"index": index, "score": score, "box": box}]}]}).encode()


@pytest.mark.parametrize(
    ("index", "score", "xmin", "right"),
    [(3, 0.78, 12, True), (4, 0.8, 10, False), (3, 0.6, 10, False), (3, 0.8, 40, False)],
)
def test_the_best_detection_must_be_found(index: int, score: float, xmin: float, right: bool) -> None:
    """A detection agrees if class, score and box agree within the tolerances; any other answer is wrong."""
    assert agrees(Detections([CAT]), detected(index, score, xmin)) is right


@pytest.mark.parametrize(("areas", "right"), [({1: 62, 2: 38}, True), ({1: 50, 2: 50}, False), ({1: 100}, False)])
def test_almost_all_pixels_must_be_of_their_class(areas: dict[int, int], right: bool) -> None:
    """A segmentation is wrong if more pixels change their class than rounding explains."""
    expected = Segments([Segment(1, 60), Segment(2, 40)])
    segments = [{"index": index, "area": area} for index, area in areas.items()]
    assert agrees(expected, json.dumps({"results": [{"segments": segments}]}).encode()) is right
