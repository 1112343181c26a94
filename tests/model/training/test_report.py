from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.bundle import EMBEDDED_DIR, read_bundle
from model.confusion_picture import CELL, MARGIN
from model.training.data import Record
from model.training.report import draw_breeds, report
from model.types import Size


def test_every_embedded_bundle_has_its_figures(pets: Path, tmp_path: Path) -> None:
    """One call measures the embedded bundles on the held-out photographs and draws the confusion matrix."""
    picture = tmp_path / "confusion.png"
    figures = report(pets, EMBEDDED_DIR, picture)
    assert {"top1", "top5", "species", "ece"} == figures["convmlp_pets_breed"].keys()
    assert {"ap50", "ece"} <= figures["convmlp_pets_heads"].keys()
    assert {"miou", "iou_background", "iou_cat", "iou_dog"} <= figures["convmlp_pets_outline"].keys()
    assert all(0 <= value <= 1 for one in figures.values() for value in one.values())
    with Image.open(picture) as drawn:
        assert drawn.size > (MARGIN, MARGIN)


def test_a_store_without_the_bundles_is_refused(pets: Path, tmp_path: Path) -> None:
    """A folder without the bundles is an error, not an empty table."""
    with pytest.raises(ValueError, match="none of the bundles"):
        report(pets, tmp_path, None)


def test_cats_come_first_and_a_share_darkens_its_cell() -> None:
    """Breeds are sorted by species, then name; a whole row's share is the darkest blue."""
    config = read_bundle(EMBEDDED_DIR / "convmlp_pets_breed").config
    cats = {"Abyssinian", "Bengal", "Birman"}
    records = [
        Record(Path(), Size(1, 1), 0, int(name not in cats), i, None, None) for i, name in enumerate(config.labels)
    ]
    confusion = np.zeros((37, 37), np.int64)
    confusion[config.labels.index("american bulldog"), config.labels.index("Bengal")] = 4
    image = draw_breeds(confusion, config, records)

    def colour(row: int, column: int) -> object:
        return image.getpixel((MARGIN + CELL * column + 3, MARGIN + CELL * row + 3))

    assert colour(3, 1) == (40, 40, 255)
    assert colour(1, 3) == (255, 255, 255)
