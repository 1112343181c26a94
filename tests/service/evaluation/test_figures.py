from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convmlp_client.geometry import Box, ImageSize
from convmlp_client.masks import Mask
from convmlp_client.results import Classification, Detection, Detections, Label, Meta, Result, Segment, Segmentation
from convmlp_client.results import Task as ClientTask
from model.types import Task
from service.evaluation.dataset import DataInvalid
from service.evaluation.figures import Figures, compute_figures
from service.evaluation.formats import read_dataset
from service.evaluation.label_matching import mask_value_indices, match_labels
from service.evaluation.predictions import ModelIdentity, PredictionError
from service.evaluation.report import MAX_CLASSES, confusion_picture, metric_rows, top_confusions
from tests.service.evaluation.data_sets import HEIGHT, WIDTH, write_csv, write_instances, write_mask, write_picture

SIZE = ImageSize(WIDTH, HEIGHT)
PETS = ("cat", "dog", "bird")
META = {task: Meta("", ClientTask(task)) for task in Task}


def model(task: Task, labels: tuple[str, ...] = PETS, threshold: float | None = None) -> ModelIdentity:
    return ModelIdentity("pets", task, labels, "0" * 64, "exact", threshold)


def classified(*scores: tuple[int, float]) -> Classification:
    return Classification(SIZE, tuple(Label(PETS[at], at, score) for at, score in scores), META[Task.CLASSIFY])


def figures_of(
    path: Path, identity: ModelIdentity, results: Mapping[str, Result | PredictionError], label_map: object = None
) -> Figures:
    dataset = read_dataset(path, identity.task)
    indices = match_labels(dataset.labels, identity.labels, label_map)  # type: ignore[arg-type]
    return compute_figures(dataset, identity, results.items(), indices)


def test_figures_of_a_classifier(tmp_path: Path) -> None:
    """Of four pictures one cannot be read, one is left out, one of the others is right: top1 1/2, ece |0.8 - 1/2|."""
    for name in "abcd":
        write_picture(tmp_path / f"{name}.png")
    path = write_csv(tmp_path / "x.csv", [["a.png", "cat"], ["b.png", "dog"], ["c.png", "dog"], ["d.png", "car"]])
    results: dict[str, Result | PredictionError] = {
        "a.png": classified((0, 0.8), (1, 0.1), (2, 0.1)),
        "b.png": classified((2, 0.8), (1, 0.2)),
        "c.png": PredictionError("image-undecodable", "the PNG is damaged"),
        "d.png": classified((0, 1.0)),
    }
    figures = figures_of(path, model(Task.CLASSIFY), results, {"car": None})
    assert figures.metrics == {"top1": 0.5, "top5": 1.0, "ece": 0.3}
    assert (figures.measured, figures.left_out, figures.errors) == (2, 1, {"c.png": "the PNG is damaged"})
    assert figures.confusion is not None
    assert figures.confusion.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert top_confusions(figures.confusion, PETS) == [{"truth": "dog", "answer": "bird", "count": 1, "share": 1.0}]


def test_figures_of_a_multi_label_classifier(tmp_path: Path) -> None:
    """Cats rank first and third of three: AP 5/6; dogs first: AP 1. Above 0.5: three labels, two right, of three."""
    write_picture(tmp_path / "a.png")
    path = write_csv(tmp_path / "x.csv", [["a.png", "cat|dog"], ["b.png", ""], ["c.png", "cat"]])
    results = {
        "a.png": classified((0, 0.9), (1, 0.7), (2, 0.1)),
        "b.png": classified((0, 0.6), (1, 0.2), (2, 0.1)),
        "c.png": classified((0, 0.4), (1, 0.1), (2, 0.1)),
    }
    figures = figures_of(path, model(Task.CLASSIFY, threshold=0.5), results)
    assert figures.metrics == {
        "map": pytest.approx((5 / 6 + 1) / 2, abs=1e-4),
        "f1": pytest.approx(2 / 3, abs=1e-4),
        "precision_at_threshold": pytest.approx(2 / 3, abs=1e-4),
        "recall_at_threshold": pytest.approx(2 / 3, abs=1e-4),
        "ap_cat": pytest.approx(5 / 6, abs=1e-4),
        "ap_dog": 1.0,
    }


def test_a_classifier_without_a_threshold_has_average_precision_alone(tmp_path: Path) -> None:
    """Every label would count as an answer of a softmax."""
    write_picture(tmp_path / "a.png")
    path = write_csv(tmp_path / "x.csv", [["a.png", "cat|dog"]])
    figures = figures_of(path, model(Task.CLASSIFY), {"a.png": classified((0, 0.5), (1, 0.3), (2, 0.2))})
    assert figures.metrics == {"map": 1.0, "ap_cat": 1.0, "ap_dog": 1.0}


def detected(*found: tuple[int, float, tuple[float, float, float, float]], masks: bool = False) -> Detections:
    def mask(box: tuple[float, float, float, float]) -> Mask:
        pixels = np.zeros((HEIGHT, WIDTH), np.bool_)
        xmin, ymin, xmax, ymax = map(int, box)
        pixels[ymin:ymax, xmin:xmax] = True
        return Mask.from_array(pixels)

    rows = (
        Detection(PETS[index], index, score, Box(*box), mask(box) if masks else None) for index, score, box in found
    )
    return Detections(SIZE, tuple(rows), META[Task.DETECT])


def test_average_precision_is_cocos(tmp_path: Path) -> None:
    """Cats: one of two is found, exactly: precision 1 up to recall 1/2, which 51 of COCO's 101 points have.

    Dogs: the box has an IoU of 144 / 336 with the true one, and its mask 150 / 240, which is above three of COCO's ten
    thresholds. A second one is in a crowd, and does not count.
    """
    write_picture(tmp_path / "a.png")
    half = [[20, 0, 35, 0, 35, 10, 20, 10]]
    objects: list[dict[str, Any]] = [
        {"label": "cat", "bbox": [0, 0, 10, 10], "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]},
        {"label": "dog", "bbox": [20, 0, 12, 20], "segmentation": half},
        {"label": "dog", "bbox": [0, 20, 40, 10], "iscrowd": 1, "segmentation": {"size": [30, 40], "counts": [1200]}},
    ]
    others = [{"label": "cat", "bbox": [0, 0, 20, 20], "segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]]}]
    path = write_instances(tmp_path / "x.json", {"a.png": objects, "b.png": others}, PETS)
    found = [(0, 0.9, (0, 0, 10, 10)), (1, 0.8, (20, 0, 40, 12)), (1, 0.7, (0, 21, 10, 29))]
    results = {"a.png": detected(*found, masks=True), "b.png": detected()}
    figures = figures_of(path, model(Task.DETECT, threshold=0.75), results).metrics
    assert figures["box_ap_cat"] == pytest.approx(51 / 101, abs=1e-4)
    assert figures["mask_ap_cat"] == pytest.approx(51 / 101, abs=1e-4)
    assert figures["box_ap_dog"] == 0.0
    assert figures["box_ap50"] == pytest.approx(51 / 101 / 2, abs=1e-4)
    assert figures["mask_ap_dog"] == pytest.approx(3 / 10, abs=1e-4)
    assert figures["mask_ap"] == pytest.approx((51 / 101 + 3 / 10) / 2, abs=1e-4)
    assert (figures["precision_at_threshold"], figures["recall_at_threshold"]) == (0.5, 0.3333)
    assert "box_ap_bird" not in figures


def test_nothing_found_is_an_average_precision_of_0(tmp_path: Path) -> None:
    """pycocotools itself refuses an empty list of results."""
    write_picture(tmp_path / "a.png")
    path = write_instances(tmp_path / "x.json", {"a.png": [{"label": "cat", "bbox": [0, 0, 9, 9]}]}, PETS)
    assert figures_of(path, model(Task.DETECT), {"a.png": detected()}).metrics["box_ap"] == 0.0


@pytest.mark.parametrize(
    "mask", [[[0, 0, 1]], {"size": [30, 40], "counts": [7]}, {"size": [3, 4], "counts": "12"}, {"size": [30, 40]}, "x"]
)
def test_masks_that_are_none_are_refused(mask: object, tmp_path: Path) -> None:
    """pycocotools reads what it is given: masks that do not fit their picture are refused before."""
    write_picture(tmp_path / "a.png")
    objects = [{"label": "cat", "bbox": [0, 0, 9, 9], "segmentation": mask}]
    path = write_instances(tmp_path / "x.json", {"a.png": objects}, PETS)
    found = {"a.png": detected((0, 0.9, (0, 0, 9, 9)), masks=True)}
    with pytest.raises(DataInvalid, match="is not polygons or run lengths of its picture"):
        figures_of(path, model(Task.DETECT), found)


def test_annotations_of_another_size_are_refused(tmp_path: Path) -> None:
    """Boxes of a picture that is rotated would be measured against boxes that are not."""
    write_picture(tmp_path / "a.png")
    path = write_instances(tmp_path / "x.json", {"a.png": []}, PETS)
    document = json.loads(path.read_text())
    document["images"][0].update(width=HEIGHT, height=WIDTH)
    path.write_text(json.dumps(document))
    with pytest.raises(DataInvalid, match="is 40 x 30 when upright, the annotations are for 30 x 40"):
        figures_of(path, model(Task.DETECT), {"a.png": detected()})


def test_figures_of_a_segmenter(tmp_path: Path) -> None:
    """A fifth of the pixels is left out. Of the rest, half is cat, all found; half is dog, half of it found as bird."""
    write_picture(tmp_path / "images/a.png")
    values = np.zeros((HEIGHT, WIDTH), np.uint8)
    values[:, WIDTH // 2 :] = 1
    values[HEIGHT * 4 // 5 :] = 255
    write_mask(tmp_path / "masks/a.png", values)
    answer = np.zeros((HEIGHT, WIDTH), np.int64)
    answer[:, WIDTH // 2 :] = 1
    answer[:, WIDTH * 3 // 4 :] = 2
    segments = (
        Segment(PETS[index], index, int((answer == index).sum()), 0.5, Mask.from_array(answer == index))
        for index in range(3)
    )
    result = Segmentation(SIZE, tuple(segments), META[Task.SEGMENT])
    dataset = read_dataset(tmp_path, Task.SEGMENT)
    indices = mask_value_indices(255, None, PETS)
    figures = compute_figures(dataset, model(Task.SEGMENT), [("a.png", result)], indices)
    assert figures.metrics == {
        "miou": 0.5,
        "pixel_accuracy": 0.75,
        "iou_cat": 1.0,
        "iou_dog": 0.5,
        "iou_bird": 0.0,
    }


def test_many_classes_are_reported_by_the_worst() -> None:
    """The table has the lowest of many classes, and the picture those with the most errors."""
    labels = tuple(f"class {number}" for number in range(60))
    metrics = {"miou": 0.5, **{f"iou_{label}": number / 100 for number, label in enumerate(labels)}}
    rows = metric_rows(metrics)
    assert rows[0] == ("miou", "0.5000")
    assert [name for name, _ in rows[1:]] == [f"iou_{label}" for label in labels[:MAX_CLASSES]]
    confusion = np.diag(np.full(60, 3))
    confusion[50, 59] = 9
    some, few = confusion_picture(confusion, labels), confusion_picture(confusion[:3, :3], labels[:3])
    assert some.width > few.width
    assert confusion_picture(np.diag(np.full(MAX_CLASSES, 3)), labels[:MAX_CLASSES]).size == some.size
