from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.bundle import CONFIG_FILE, EMBEDDED_DIR, read_bundle
from model.confusion_picture import CELL, MARGIN
from model.predictor import load_network
from model.training.data import Record
from model.training.report import cost, draw_breeds, report
from model.types import Size
from tests.model.tiny_backbones import BACKBONES, tiny_backbone_bundle

COST = ("parameters_millions", "gmacs", "images_per_cpu_second")


def test_every_embedded_bundle_has_its_figures(pets: Path, tmp_path: Path) -> None:
    """One call measures the embedded bundles, and their cost, and draws the confusion matrix."""
    picture = tmp_path / "confusion.png"
    figures = report(pets, EMBEDDED_DIR, picture)
    costs = {name: {key: one.pop(key) for key in COST} for name, one in figures.items()}
    assert {"top1", "top5", "species", "ece"} == figures["convmlp_pets_breed"].keys()
    assert {"ap50", "ece"} <= figures["convmlp_pets_heads"].keys()
    assert {"miou", "iou_background", "iou_cat"} <= figures["convmlp_pets_outline"].keys()
    assert all(0 <= value <= 1 for one in figures.values() for value in one.values())
    assert costs["convmlp_pets_breed"]["parameters_millions"] == pytest.approx(2.15, abs=0.01)
    assert costs["convmlp_pets_breed"]["gmacs"] == pytest.approx(0.44, abs=0.01)
    assert all(cost["images_per_cpu_second"] > 0 for cost in costs.values())
    with Image.open(picture) as drawn:
        assert drawn.size > (MARGIN, MARGIN)


def test_a_store_without_the_bundles_is_refused(pets: Path, tmp_path: Path) -> None:
    """A folder without the bundles is an error, not an empty table."""
    with pytest.raises(ValueError, match="none of the bundles"):
        report(pets, tmp_path, None)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_its_cost(backbone: str, tmp_path: Path) -> None:
    """The parameters are those of the form that is served: RepMLPNet's biases are there, its convolutions are not."""
    bundle = tiny_backbone_bundle(tmp_path, backbone)
    found = cost(bundle)
    served = load_network(bundle).parameters()
    assert found["parameters_millions"] == sum(parameter.numel() for parameter in served) / 1e6
    assert found["gmacs"] > 0
    assert found["images_per_cpu_second"] > 0


def test_a_picture_of_several_classifiers_is_refused(pets: Path, tmp_path: Path) -> None:
    """It has room for one; the message names them."""
    for name in ("convmlp_pets_breed", "other_pets_breed"):
        shutil.copytree(EMBEDDED_DIR / "convmlp_pets_breed", tmp_path / name)
    config = tmp_path / "other_pets_breed" / CONFIG_FILE
    config.write_text(config.read_text().replace('"convmlp_pets_breed"', '"other_pets_breed"'))
    with pytest.raises(ValueError, match=r"needs one classifier.*it has convmlp_pets_breed, other_pets_breed"):
        report(pets, tmp_path, tmp_path / "confusion.png")


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
