"""What a request chooses of an answer: classes, overlaps, areas, and the confidence of pixels. With real networks."""

from __future__ import annotations

import io
from typing import Any

import httpx2
import numpy as np
import PIL.Image
import pytest

from convmlp_client import Client
from convmlp_client.results import Segmentation
from model.reference import REFERENCE_PICTURE
from tests.e2e.convmlp_process import RunningService

PICTURE = REFERENCE_PICTURE.read_bytes()
EVERYTHING = "score_threshold=0.01&max_detections=1000&masks=false"


def ask(service: RunningService, path: str) -> dict[str, Any]:
    answer = httpx2.post(f"{service.url}{path}", content=PICTURE, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["results"][0]
    return found


def area(detection: dict[str, Any]) -> float:
    box = detection["box"]
    width, height = box["xmax"] - box["xmin"], box["ymax"] - box["ymin"]
    return float(width * height)


def test_detections_of_chosen_classes_are_those_of_the_whole_answer(service: RunningService) -> None:
    """NMS works within classes, so a choice of classes changes nothing in those that are returned."""
    everything = ask(service, f"/detect?{EVERYTHING}")["detections"]
    chosen = ask(service, f"/detect?{EVERYTHING}&classes=DOG")["detections"]
    assert 0 < len(chosen) < len(everything)
    assert chosen == [one for one in everything if one["label"] == "dog"]
    assert ask(service, f"/detect?{EVERYTHING}&classes=1")["detections"] == chosen


def test_classes_are_chosen_before_detections_are_counted(service: RunningService) -> None:
    """The best of a rare class is returned, though there are better ones of other classes."""
    (dog,) = ask(service, "/detect?score_threshold=0.01&max_detections=1&masks=false&classes=dog")["detections"]
    assert dog["label"] == "dog"


def test_small_boxes_are_left_out(service: RunningService) -> None:
    """No box is smaller than `min_area`, and the large ones stay."""
    everything = ask(service, f"/detect?{EVERYTHING}")["detections"]
    least = int(sorted(map(area, everything))[len(everything) // 2])
    large = ask(service, f"/detect?{EVERYTHING}&min_area={least}")["detections"]
    assert all(area(one) >= least - 1 for one in large)
    assert large[0] == next(one for one in everything if area(one) >= least)


def test_overlaps_are_limited_as_asked(service: RunningService) -> None:
    """A lower `iou_threshold` leaves fewer detections; without regard to classes there are fewer still."""
    counts = [
        len(ask(service, f"/detect?{EVERYTHING}&{query}")["detections"])
        for query in (
            "iou_threshold=1",
            "iou_threshold=0.6",
            "iou_threshold=0.05",
            "iou_threshold=0.05&agnostic_nms=true",
        )
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[3] > 0


def test_confidence_is_the_mean_over_the_segments_pixels(service: RunningService) -> None:
    """Of the picture with each pixel's confidence, each segment's is the mean over its pixels."""
    segments = ask(service, "/segment")["segments"]
    shown = [
        np.asarray(
            PIL.Image.open(
                io.BytesIO(httpx2.post(f"{service.url}/segment?view={view}", content=PICTURE, timeout=60).content)
            )
        )
        for view in ("labelmap", "confidence")
    ]
    for segment in segments:
        mean = shown[1][shown[0] == segment["index"]].mean() / 255
        assert segment["confidence"] == pytest.approx(mean, abs=0.002)


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_segments_are_chosen_over_each_transport(service: RunningService, transport: str) -> None:
    """Only segments of the named classes and of enough pixels come back; the others' pixels have the largest value."""
    url = service.url if transport == "rest" else f"grpc://{service.grpc_address}"
    with Client(url) as client:
        whole = client.segment(PICTURE)
        background = next(one for one in whole.segments if one.label == "background")
        chosen = client.segment(PICTURE, classes=["background", "Dog"])
        assert isinstance(chosen, Segmentation)
        assert chosen.segments[0] == background
        assert {one.label for one in chosen.segments} <= {"background", "dog"}
        assert set(np.unique(chosen.label_map())) <= {0, 2, 255}
        least = max(one.area for one in whole.segments)
        assert [one.area for one in client.segment(PICTURE, min_area=least).segments] == [least]
        assert not client.segment(PICTURE, min_area=least + 1).segments
        few = client.detect(
            PICTURE, score_threshold=0.01, iou_threshold=0.05, agnostic_nms=True, min_area=100, classes=[0]
        )
        assert {one.label for one in few.detections} == {"cat"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/detect?classes=kat", "did you mean cat?"),
        ("/segment?classes=zebra", "its classes are background, cat, dog"),
        ("/segment?classes=cat,", "expected 1 to 100 names"),
        ("/detect?classes=2", "no class of the model"),
        ("/detect?iou_threshold=1.5", "expected a number from 0 to 1"),
        ("/segment?min_area=-1", "expected a whole number"),
        ("/segment?iou_threshold=0.5", "does not belong to /segment"),
        ("/classify?classes=cat", "does not belong to /classify"),
        ("/segment?view=heat", "one of labelmap, colors, confidence"),
    ],
)
def test_a_wrong_choice_is_named(service: RunningService, path: str, expected: str) -> None:
    """An unknown class is 422 with the nearest names; so is a value out of its range, with the range."""
    answer = httpx2.post(f"{service.url}{path}", content=PICTURE, timeout=60)
    assert answer.status_code == 422
    assert expected in answer.json()["detail"]


def test_an_unknown_class_is_refused_before_decoding(service: RunningService) -> None:
    """A parameter that the model refuses costs no decoding: the error of a broken image is not reached."""
    broken = PICTURE[: len(PICTURE) // 2]
    assert httpx2.post(f"{service.url}/detect", content=broken, timeout=60).status_code == 400
    assert httpx2.post(f"{service.url}/detect?classes=kat", content=broken, timeout=60).status_code == 422
