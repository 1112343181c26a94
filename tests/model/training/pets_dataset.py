"""Synthetic photographs in the dataset's layout."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np

HEADER = [
    "file",
    "width",
    "height",
    "fold",
    "species",
    "breed",
    "breed_id",
    "head_xmin",
    "head_ymin",
    "head_xmax",
    "head_ymax",
    "mask",
    "mask_kind",
]
HEIGHT, WIDTH = 48, 64


def write_photographs(data_dir: Path) -> Path:
    """Ten pictures of two breeds, five each, one of each in fold 0; odd ones have no mask."""
    for folder in ("images", "masks"):
        (data_dir / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(10):
        breed = number // 5
        cv2.imwrite(
            str(data_dir / f"images/{number}.jpg"),
            rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        )
        mask = ""
        if number % 2 == 0:
            mask = f"masks/{number}.png"
            pixels = np.full((HEIGHT, WIDTH), 2, np.uint8)
            pixels[10:40, 8:40], pixels[10:12, 8:40] = 1, 3
            cv2.imwrite(str(data_dir / mask), pixels)
        species, name = (("cat", "Some_Cat"), ("dog", "some_dog"))[breed]
        rows.append(
            [f"images/{number}.jpg", WIDTH, HEIGHT, number % 5, species, name, breed + 1, 10, 12, 34, 36, mask, ""]
        )
    with (data_dir / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return data_dir
