from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from model.bundle import read_bundle
from model.families.classifier import ClassifierSpec
from model.families.convmlp import ConvMLPSpec
from model.families.registry import Architecture
from model.families.retinanet import RetinaNetSpec
from model.families.semantic_fpn import SemanticFPNSpec
from model.predictor import Predictor
from model.spec import KeepRatioSpec
from model.training.classify import ClassifyRecipe
from model.training.detect import DetectRecipe
from model.training.recipes import RECIPES, PetsModel, Recipe
from model.training.segment import SegmentRecipe
from model.training.train import train
from model.types import Task

TINY = ConvMLPSpec(
    tokenizer_channels=4, conv_blocks=1, stage_channels=(8, 8, 8), stage_depths=(1, 1, 1), mlp_ratios=(1, 1, 1)
)
PARTS: dict[PetsModel, tuple[Architecture, ClassifyRecipe | DetectRecipe | SegmentRecipe]] = {
    PetsModel.BREED: (ClassifierSpec(backbone=TINY), ClassifyRecipe(sizes=((0.0, 32),), test_size=32)),
    PetsModel.HEADS: (
        RetinaNetSpec(backbone=TINY, fpn_channels=8, head_convs=1),
        DetectRecipe(sizes=((0.0, 64),), test_side=64),
    ),
    PetsModel.OUTLINE: (
        SemanticFPNSpec(backbone=TINY, fpn_channels=8, head_channels=8),
        SegmentRecipe(sizes=((0.0, 64),), test_side=64),
    ),
}
METRICS = {PetsModel.BREED: "top1", PetsModel.HEADS: "ap50", PetsModel.OUTLINE: "miou"}


def small(kind: PetsModel) -> Recipe:
    """The model's recipe with a tiny network and a single step's schedule."""
    architecture, examples = PARTS[kind]
    recipe = RECIPES[kind]
    schedule = dataclasses.replace(
        recipe.schedule, epochs=1, decay_epochs=0.5, warmup_epochs=0.5, batch_size=4, bf16=False
    )
    dense = KeepRatioSpec(long_side=64, short_side=64, pad_multiple=32)
    preprocessing = recipe.preprocessing if kind is PetsModel.BREED else dense
    return dataclasses.replace(
        recipe, architecture=architecture, examples=examples, schedule=schedule, preprocessing=preprocessing
    )


@pytest.mark.parametrize("kind", list(PetsModel))
def test_training_writes_a_valid_bundle(kind: PetsModel, pets: Path, tmp_path: Path) -> None:
    """From photographs to a bundle that loads, with its accuracy, source and reference answer."""
    written = train(kind, pets, tmp_path / "out", recipe=small(kind), command="the command")
    bundle = read_bundle(tmp_path / "out" / "bundles" / RECIPES[kind].name)
    config = bundle.config
    assert config == written.config
    assert config.accuracy is not None
    assert 0 <= config.accuracy.metrics[METRICS[kind]] <= 1
    assert "fold 0" in config.accuracy.measured_on
    assert "the command" in config.source.description
    assert "CC BY-SA 4.0" in config.source.licence
    Predictor(bundle, torch.device("cpu"))


def test_the_detector_starts_from_the_breed_bundles_backbone(pets: Path, tmp_path: Path) -> None:
    """A detector trained for no step has the breed model's backbone."""
    breed = train(PetsModel.BREED, pets, tmp_path, recipe=small(PetsModel.BREED), command="")
    heads = train(
        PetsModel.HEADS,
        pets,
        tmp_path,
        recipe=small(PetsModel.HEADS),
        backbone_from=breed.folder,
        stop_after=0,
        command="",
    )
    networks = [Predictor(one, torch.device("cpu"))._network.state_dict() for one in (breed, heads)]
    shared = [key for key in networks[0] if f"backbone.{key}" in networks[1]]
    assert shared
    assert all(torch.equal(networks[0][key], networks[1][f"backbone.{key}"]) for key in shared)


def test_only_a_classifier_gives_its_backbone(pets: Path, tmp_path: Path) -> None:
    """A bundle of another task is refused before training."""
    heads = train(PetsModel.HEADS, pets, tmp_path, recipe=small(PetsModel.HEADS), stop_after=0, command="")
    assert heads.config.task is Task.DETECT
    with pytest.raises(ValueError, match="a classifier is needed"):
        train(
            PetsModel.OUTLINE, pets, tmp_path, recipe=small(PetsModel.OUTLINE), backbone_from=heads.folder, command=""
        )
