"""The comparison of the backbones' plain networks with what `auto` takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.families import MODELS, compare, plain_predictor, random_bundle, rows
from model.families.registry import BACKBONES as FAMILIES
from model.families.registry import backbone_of
from model.precision import Precision, make_predictor
from model.predictor import load_network
from tests.model.tiny_backbones import BACKBONES

CPU = torch.device("cpu")


@pytest.mark.parametrize("backbone", ["hire_mlp", "repmlpnet"])
def test_each_row_has_both_times_and_the_ratio_of_their_pairs(backbone: str) -> None:
    """The ratio is that of the runs, and its quartiles enclose it."""
    (row,) = rows(backbone, BACKBONES[backbone], [2], rounds=3)
    name, size, plain, precision, served, ratio, spread = (cell.strip() for cell in row.strip("|").split("|"))
    assert (name, size) == (backbone, "2")
    assert precision in list(Precision)
    low, high = map(float, spread.split(" to "))
    assert float(plain) > 0
    assert float(served) > 0
    assert 0 < low <= float(ratio) <= high


def test_as_many_pairs_as_rounds_are_measured(tmp_path: Path) -> None:
    """The first run of each network, which packs weights, is not among them."""
    bundle = random_bundle(tmp_path, BACKBONES["cmt"])
    served = make_predictor(bundle, CPU, Precision.FP32, load_network(bundle))
    found = compare(plain_predictor(bundle), served, bundle, size=1, rounds=4)
    assert len(found.plain) == len(found.served) == len(found.ratios) == 4
    assert found.ratios[0] == found.plain[0] / found.served[0]


def test_every_backbone_family_is_compared() -> None:
    """A new family is not forgotten."""
    assert {backbone_of(spec).name for spec in MODELS.values()} == set(FAMILIES)
