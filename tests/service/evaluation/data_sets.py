"""Small data sets, written at run time."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30


def write_picture(path: Path, grey: int = 100, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path)
    return path


def write_class_folders(root: Path, pictures: Mapping[str, int]) -> Path:
    """A folder for each label with so many pictures, each of another grey."""
    grey = 0
    for label, count in pictures.items():
        for number in range(count):
            grey += 7
            write_picture(root / label / f"{number}.png", grey % 256)
    return root


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def write_instances(path: Path, objects: Mapping[str, Sequence[Mapping[str, Any]]], labels: Sequence[str]) -> Path:
    """COCO's instances: by file name, the objects with `label`, `bbox` as x, y, width, height, and what else is given.

    Category ids are 10, 20, …, so that they differ from indices.
    """
    ids = {label: 10 * number for number, label in enumerate(labels, start=1)}
    images = [
        {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT} for number, name in enumerate(objects)
    ]
    annotations: list[dict[str, Any]] = []
    for number, found in enumerate(objects.values()):
        for one in found:
            rest = {key: value for key, value in one.items() if key != "label"}
            area = one["bbox"][2] * one["bbox"][3]
            fixed = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[one["label"]]}
            annotations.append({**fixed, "area": area, "iscrowd": 0, **rest})
    categories = [{"id": identity, "name": label} for label, identity in ids.items()]
    path.write_text(json.dumps({"info": {}, "images": images, "categories": categories, "annotations": annotations}))
    return path


def write_mask(path: Path, values: Any) -> Path:  # noqa: ANN401  (whatever numpy takes)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path
