from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model.types import Box, Size, Task
from service.evaluation.dataset import ClassTruth, DataFormat, DataInvalid, MaskTruth, ObjectsTruth
from service.evaluation.formats import read_dataset
from service.evaluation.mask_datasets import class_map, mask_values
from tests.service.evaluation.data_sets import (
    HEIGHT,
    WIDTH,
    write_class_folders,
    write_csv,
    write_instances,
    write_mask,
    write_picture,
)


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    """Folder names are the labels; pictures at any depth count; hidden files and texts do not."""
    root = write_class_folders(tmp_path, {"cat": 2, "dog": 1})
    write_picture(root / "dog/more/x.JPG")
    (root / "dog/notes.txt").write_text("x")
    (root / "dog/.hidden.png").write_text("x")
    dataset = read_dataset(root, Task.CLASSIFY)
    assert (dataset.format, dataset.labels, dataset.multi_label) == (DataFormat.FOLDERS, ("cat", "dog"), False)
    assert [(one.name, one.truth) for one in dataset.samples] == [
        ("cat/0.png", ClassTruth(("cat",))),
        ("cat/1.png", ClassTruth(("cat",))),
        ("dog/0.png", ClassTruth(("dog",))),
        ("dog/more/x.JPG", ClassTruth(("dog",))),
    ]


def test_csv_with_and_without_header(tmp_path: Path) -> None:
    """A header names the columns, in any order; without one they are path and label. Several labels are multi-label."""
    write_picture(tmp_path / "a.png")
    bare = write_csv(tmp_path / "bare.csv", [["a.png", "cat"], ["b.png", "dog"]])
    dataset = read_dataset(bare, Task.CLASSIFY)
    assert [one.truth for one in dataset.samples] == [ClassTruth(("cat",)), ClassTruth(("dog",))]
    rows = [["fold", "label", "file"], ["0", "cat|dog", "a.png"], ["1", "", "b.png"], ["1", "dog", "c.png"]]
    dataset = read_dataset(write_csv(tmp_path / "named.csv", rows), Task.CLASSIFY)
    assert [(one.name, one.truth) for one in dataset.samples] == [
        ("a.png", ClassTruth(("cat", "dog"))),
        ("b.png", ClassTruth(())),
        ("c.png", ClassTruth(("dog",))),
    ]
    assert dataset.multi_label


def test_coco_instances_are_labels_of_a_classifier(tmp_path: Path) -> None:
    """Each category counts once; a picture without an object has no label. The hash is of the same files."""
    write_picture(tmp_path / "a.png")
    box = [0, 0, 5, 5]
    objects = {"a.png": [{"label": label, "bbox": box} for label in ("dog", "cat", "dog")], "b.png": []}
    path = write_instances(tmp_path / "instances.json", objects, ["cat", "dog"])
    dataset = read_dataset(path, Task.CLASSIFY)
    assert [one.truth for one in dataset.samples] == [ClassTruth(("dog", "cat")), ClassTruth(())]
    assert (dataset.labels, dataset.multi_label, dataset.annotations) == (("cat", "dog"), True, (path,))


def test_coco_instances_are_in_the_folder_of_their_split(tmp_path: Path) -> None:
    """As COCO lays out its files; boxes are corners, and a picture without an object counts."""
    write_picture(tmp_path / "val2017/a.png")
    (tmp_path / "annotations").mkdir()
    path = write_instances(
        tmp_path / "annotations/instances_val2017.json",
        {"a.png": [{"label": "dog", "bbox": [1, 2, 10, 20], "iscrowd": 1}], "b.png": []},
        ("cat", "dog"),
    )
    dataset = read_dataset(path, Task.DETECT)
    assert (dataset.format, dataset.labels) == (DataFormat.COCO, ("cat", "dog"))
    first, second = dataset.samples
    assert first.path == tmp_path / "val2017/a.png"
    assert isinstance(first.truth, ObjectsTruth)
    assert [(one.label, one.box, one.area, one.crowd) for one in first.truth.objects] == [
        ("dog", Box(1, 2, 11, 22), 200, True)
    ]
    assert second.truth == ObjectsTruth((), (WIDTH, HEIGHT))


def test_panoptic_segments_are_a_class_for_each_pixel(tmp_path: Path) -> None:
    """Segment ids are in the colours of the PNG, and their categories in the JSON; pixels of no segment have none."""
    write_picture(tmp_path / "a.jpg")
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[:, :10] = (1, 2, 0)  # 1 + 2 * 256
    colours[:, 10:20] = (7, 0, 1)  # 7 + 65536
    write_mask(tmp_path / "panoptic/a.png", colours)
    segments = [{"id": 513, "category_id": 5}, {"id": 65543, "category_id": 3}]
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 3, "name": "sky"}, {"id": 5, "name": "road"}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
    }
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(document))
    dataset = read_dataset(path, Task.SEGMENT)
    assert (dataset.format, dataset.labels) == (DataFormat.PANOPTIC, ("sky", "road"))
    truth = dataset.samples[0].truth
    assert isinstance(truth, MaskTruth)
    found = class_map(mask_values(truth, Size(HEIGHT, WIDTH)), truth, {"sky": 0, "road": 4})
    assert (found[0, 0], found[0, 10], found[0, 20]) == (4, 0, -1)


def test_masks_beside_pictures(tmp_path: Path) -> None:
    """Masks and pictures pair by name, whatever the suffix; a picture without a mask is left out."""
    write_picture(tmp_path / "images/x/a.jpg")
    write_picture(tmp_path / "images/b.jpg")
    write_mask(tmp_path / "masks/x/a.png", np.full((HEIGHT, WIDTH), 2))
    dataset = read_dataset(tmp_path, Task.SEGMENT)
    assert [one.name for one in dataset.samples] == ["x/a.jpg"]
    apart = read_dataset(tmp_path / "masks", Task.SEGMENT, images=tmp_path / "images")
    assert apart.samples == dataset.samples
    truth = dataset.samples[0].truth
    assert isinstance(truth, MaskTruth)
    with pytest.raises(DataInvalid, match="is 40 x 30, its upright picture 30 x 40"):
        mask_values(truth, Size(WIDTH, HEIGHT))
    values = mask_values(truth, Size(HEIGHT, WIDTH))
    with pytest.raises(DataInvalid, match="has the value 2; the model's classes are 0 to 1"):
        class_map(values, truth, {"0": 0, "1": 1})


def test_the_hash_is_of_contents_and_not_of_places(tmp_path: Path) -> None:
    """A copy has the same hash; another picture, another label and another truth have others."""
    root = write_class_folders(tmp_path / "a", {"cat": 2, "dog": 1})
    before = read_dataset(root, Task.CLASSIFY).sha256()
    copy = shutil.copytree(root, tmp_path / "b")
    assert read_dataset(copy, Task.CLASSIFY).sha256() == before
    write_picture(copy / "cat/0.png", 255)
    assert read_dataset(copy, Task.CLASSIFY).sha256() != before
    (root / "dog/0.png").rename(root / "cat/9.png")
    assert read_dataset(root, Task.CLASSIFY).sha256() != before


@pytest.mark.parametrize(
    ("make", "task", "message"),
    [
        (lambda root: root / "missing", Task.CLASSIFY, "missing cannot be read: No such file"),
        (lambda root: root, Task.CLASSIFY, "has no pictures"),
        (lambda root: root, Task.SEGMENT, "no folders of pictures and masks"),
        (lambda root: write_class_folders(root, {"cat": 1}) / "cat/0.png", Task.CLASSIFY, "is no data set"),
        (lambda root: write_csv(root / "x.csv", [["a.png"]]), Task.CLASSIFY, "has one column"),
        (lambda root: write_csv(root / "x.csv", [["a.png", "cat"], ["b.png"]]), Task.CLASSIFY, "line 2 has 1 columns"),
        (lambda root: write_csv(root / "x.csv", [["a.png", "cat"]]), Task.CLASSIFY, "none of the 1 pictures .* exists"),
        (lambda root: write_csv(root / "x.csv", [["file", "colour"]]), Task.CLASSIFY, "no column for the label"),
        (lambda root: write_csv(root / "x.csv", [["a.png", "cat"]]), Task.DETECT, "expected coco"),
        (lambda root: write_instances(root / "x.json", {}, ("cat",)), Task.SEGMENT, "expected panoptic, masks"),
    ],
)
def test_what_is_no_data_set_is_refused(make: Callable[[Path], Path], task: Task, message: str, tmp_path: Path) -> None:
    """The error has the file, what it is, and what was expected."""
    with pytest.raises(DataInvalid, match=message):
        read_dataset(make(tmp_path), task)


def test_json_that_is_not_cocos_is_refused(tmp_path: Path) -> None:
    """The error has the member that is missing, or what is not listed."""
    path = tmp_path / "x.json"
    path.write_text('{"images": []}')
    with pytest.raises(DataInvalid, match=r"is not COCO's JSON: .*annotations"):
        read_dataset(path, Task.DETECT)
    annotation = {"image_id": 0, "category_id": 7, "bbox": [0, 0, 1, 1]}
    path.write_text(json.dumps({"images": [], "categories": [], "annotations": [annotation]}))
    with pytest.raises(DataInvalid, match="annotation 0 has category 7, which is not listed"):
        read_dataset(path, Task.DETECT)
