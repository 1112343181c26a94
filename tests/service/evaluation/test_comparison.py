"""What `convmlp compare` finds in pairs of results, and its page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from convmlp_client.geometry import Box, ImageSize
from convmlp_client.masks import Mask
from convmlp_client.results import (
    Classification,
    Detection,
    Detections,
    Label,
    Meta,
    Result,
    Segment,
    Segmentation,
)
from convmlp_client.results import Task as ClientTask
from model.postprocess.masks import RegionMask, encode_rle
from model.types import Box as ModelBox
from model.types import Size, Task
from service.evaluation.comparison import ComparedPicture, Comparison, Summary, comparison_for
from service.evaluation.comparison_page import PageHead, comparison_page
from service.evaluation.dataset import ClassTruth, MaskTruth, ObjectsTruth, Sample, TrueObject, Truth
from service.evaluation.truth_errors import truth_error
from tests.service.evaluation.data_sets import HEIGHT, WIDTH, write_mask, write_picture

SIZE = ImageSize(WIDTH, HEIGHT)
LABELS = ("cat", "dog", "ox")


def classified(*scores: tuple[str, float], labels: tuple[str, ...] = LABELS) -> Classification:
    found = tuple(Label(label, labels.index(label), score) for label, score in scores)
    return Classification(SIZE, found, Meta("m", ClientTask.CLASSIFY))


def detected(*boxes: tuple[str, float, Box], labels: tuple[str, ...] = LABELS) -> Detections:
    found = tuple(Detection(label, labels.index(label), score, box, None) for label, score, box in boxes)
    return Detections(SIZE, found, Meta("m", ClientTask.DETECT))


def segmented(label_map: np.ndarray, labels: tuple[str, ...] = LABELS) -> Segmentation:
    segments = []
    for index in np.unique(label_map).tolist():
        region = RegionMask(0, 0, label_map == index, Size(HEIGHT, WIDTH))
        mask = Mask(SIZE, encode_rle(region).counts)
        segments.append(Segment(labels[index], index, int(region.pixels.sum()), 1.0, mask))
    return Segmentation(SIZE, tuple(segments), Meta("m", ClientTask.SEGMENT))


def metrics(comparison: Comparison) -> dict[str, float]:
    return {metric.name: metric.value for metric in comparison.metrics()}


def test_classifiers_agree_on_the_best_label() -> None:
    """Counted by name, whatever the order of the models' classes; scores are compared label by label."""
    other = ("dog", "ox", "cat")
    comparison = comparison_for(Task.CLASSIFY, LABELS, other)
    same = comparison.add(classified(("cat", 0.9), ("dog", 0.1)), classified(("cat", 0.8), ("dog", 0.2), labels=other))
    assert same.agrees
    differs = comparison.add(
        classified(("cat", 0.6), ("dog", 0.4)), classified(("dog", 0.7), ("cat", 0.3), labels=other)
    )
    assert (differs.agrees, differs.degree > 1 > same.degree) == (False, True)
    assert differs.facts[0] == "the best label is cat 0.600 in A, dog 0.700 in B"
    assert metrics(comparison) == pytest.approx(
        {
            "top-1 agreement": 0.5,
            "mean score difference of the best labels": 0.2,
            "largest score difference": 0.3,
        }
    )


def test_equal_names_of_two_classes_stay_two_classes() -> None:
    """Of models with the same labels, indices count: ImageNet has two classes named crane."""
    labels = ("crane", "crane")
    comparison = comparison_for(Task.CLASSIFY, labels, labels)
    first, second = (Classification(SIZE, (Label("crane", at, 0.9),), Meta("m", ClientTask.CLASSIFY)) for at in (0, 1))
    assert not comparison.add(first, second).agrees


def test_boxes_match_by_class_and_overlap() -> None:
    """At IoU 0.5, each once, the best first; the others are counted for their model."""
    comparison = comparison_for(Task.DETECT, LABELS, LABELS)
    difference = comparison.add(
        detected(("cat", 0.9, Box(0, 0, 10, 10)), ("cat", 0.8, Box(0, 0, 10, 9)), ("dog", 0.7, Box(20, 0, 30, 10))),
        detected(("cat", 0.7, Box(0, 0, 10, 10)), ("ox", 0.7, Box(20, 0, 30, 10))),
    )
    assert not difference.agrees
    assert difference.facts == (
        "boxes only in A: 2 of 3",
        "boxes only in B: 1 of 2",
        "matched boxes: 1, scores differ by up to 0.200, the IoU is at least 1.000",
    )
    found = metrics(comparison)
    assert [found[name] for name in ("boxes matched at IoU 0.5", "boxes only in A", "boxes only in B")] == [1, 2, 1]
    assert found["mean score difference of matched boxes"] == pytest.approx(0.2)


def test_label_maps_agree_pixel_by_pixel() -> None:
    """By name of the class, over all pictures; a class that only one model has agrees nowhere."""
    other = ("dog", "cat", "cow")
    comparison = comparison_for(Task.SEGMENT, LABELS, other)
    label_map = np.zeros((HEIGHT, WIDTH), np.uint8)
    label_map[:, WIDTH // 2 :] = 1
    swapped = 1 - label_map  # the same classes
    assert comparison.add(segmented(label_map), segmented(swapped, other)).agrees
    swapped[: HEIGHT // 2] = 2
    difference = comparison.add(segmented(label_map), segmented(swapped, other))
    assert (difference.degree, difference.facts) == (0.5, ("50.00% of the pixels differ",))
    found = metrics(comparison)
    assert found["pixels that agree"] == pytest.approx(0.75)
    assert found["mean IoU of the classes of both"] == pytest.approx((0.75 + 0.75 + 0) / 3)


def test_errors_against_the_truth(tmp_path: Path) -> None:
    """A wrong label; missed and false boxes, but none in a crowd; the share of wrong pixels that have a class."""
    indices = {"cat": 0, "dog": 1, "x": None}

    def error(truth: Truth, result: Result) -> float | None:
        return truth_error(Sample("a", tmp_path, truth), result, indices)

    assert error(ClassTruth(("cat",)), classified(("cat", 0.9))) == 0
    assert error(ClassTruth(("cat",)), classified(("dog", 0.9), ("cat", 0.1))) == 1
    assert error(ClassTruth(("x",)), classified(("dog", 0.9))) is None
    objects = [
        TrueObject(label, ModelBox(left, 0, left + 10, 10), 100.0, crowd, None)
        for label, left, crowd in (("cat", 0, False), ("dog", 12, False), ("dog", 30, True), ("x", 5, False))
    ]
    found = detected(
        ("cat", 0.9, Box(0, 0, 10, 10)), ("cat", 0.8, Box(0, 20, 10, 30)), ("dog", 0.7, Box(30, 0, 40, 10))
    )
    assert error(ObjectsTruth(tuple(objects)), found) == 2
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[:, 30:] = 9  # no class
    mask = MaskTruth(write_mask(tmp_path / "mask.png", values), {0: "cat", 9: "x"})
    label_map = np.zeros((HEIGHT, WIDTH), np.uint8)
    label_map[:, 20:] = 1
    assert error(mask, segmented(label_map)) == pytest.approx(1 / 3)


def compared(sample: Sample, degree_of: float, errors: tuple[float, float] | None = None) -> ComparedPicture:
    comparison = comparison_for(Task.CLASSIFY, LABELS, LABELS)
    first, second = classified(("cat", degree_of)), classified(("dog", degree_of))
    return ComparedPicture(sample, first, second, comparison.add(first, second), errors)


def test_the_worst_pictures_are_kept(tmp_path: Path) -> None:
    """Never more than the limit, whatever the number of pictures; whose results are nearer to the truth is counted."""
    summary = Summary(3)
    for number in range(20):
        sample = Sample(str(number), tmp_path, ClassTruth(("cat",)))
        summary.add(compared(sample, (7 * number % 20) / 20 + 0.01, (0.0, 1.0) if number % 2 else (1.0, 1.0)))
    worst = [one.difference.degree for one in summary.worst]
    assert worst == pytest.approx([1.96, 1.91, 1.86])
    assert (summary.differing, summary.nearer) == (
        20,
        {"A is nearer to the truth": 10, "both are equally wrong": 10},
    )


class References(HTMLParser):
    """Collects what a page loads, and its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.elements: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_stands_alone(tmp_path: Path) -> None:
    """It loads nothing but its own pictures and has no scripts; names are text, whatever they contain; a picture that
    is missing has its results in words."""
    hostile = '<img src="http://evil.example/x"><script>alert(1)</script>"\'&'
    pictures = [
        compared(Sample(hostile, write_picture(tmp_path / "a.png"), ClassTruth((hostile,))), 0.5),
        compared(Sample("missing.png", tmp_path / "missing.png", ClassTruth(())), 0.4),
    ]
    page = comparison_page(PageHead(hostile, "b", hostile, [(hostile, "1")]), pictures)
    found = References()
    found.feed(page)
    assert len(found.loaded) == 2  # both drawings of the first
    assert all(re.fullmatch(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", one) for one in found.loaded)
    assert "script" not in found.elements
    assert page.count("cannot be drawn: cannot be read: No such file or directory") == 2
    assert "default-src 'none'" in page
