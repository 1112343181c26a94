"""The held-out photographs as data sets for `convmlp eval`: annotations alone, for the photographs where they are."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from model.training.data import SPECIES, PetIndex, Record, load_label_maps, read_index

BREED_FILE, HEADS_FILE, OUTLINE_FOLDER = "breed.csv", "heads.json", "outline"


def write_held_out(data_dir: Path, out_dir: Path) -> None:
    """Write CSV of the breeds, COCO's instances of the heads, and a mask of class indices for each outline.

    Paths are below the folder of the photographs, `images` of `data_dir`. Photographs without a head are not in the
    instances, and those without a mask have no outline.

    Raises:
        OSError: the data cannot be read, or the folder cannot be written.
        ValueError: as `read_index`.
    """
    index = read_index(data_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    _write_breeds(index, out_dir / BREED_FILE)
    _write_heads([record for record in index.held_out() if record.head is not None], out_dir / HEADS_FILE)
    _write_outlines([record for record in index.held_out() if record.mask is not None], out_dir / OUTLINE_FOLDER)


def _write_breeds(index: PetIndex, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "label"))
        rows.writerows((record.path.name, index.breeds[record.label]) for record in index.held_out())


def _write_heads(records: Sequence[Record], path: Path) -> None:
    images, annotations = [], []
    for number, record in enumerate(records, start=1):
        assert record.head is not None
        head = record.head
        width, height = head.xmax - head.xmin, head.ymax - head.ymin
        size = {"width": record.size.width, "height": record.size.height}
        images.append({"id": number, "file_name": record.path.name, **size})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": record.species + 1,
                "bbox": [head.xmin, head.ymin, width, height],
                "area": width * height,
                "iscrowd": 0,
            }
        )
    categories = [{"id": number, "name": name} for number, name in enumerate(SPECIES, start=1)]
    document = {"images": images, "categories": categories, "annotations": annotations}
    path.write_text(json.dumps(document) + "\n", encoding="utf-8")


def _write_outlines(records: Sequence[Record], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for record, label_map in zip(records, load_label_maps(records).values(), strict=True):
        path = folder / f"{record.path.stem}.png"
        encoded, data = cv2.imencode(".png", label_map)
        assert encoded
        path.write_bytes(np.asarray(data).tobytes())
