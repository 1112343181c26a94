"""Every backbone by the one recipe: what can be trained, and that all of it learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from model.bundle import read_bundle
from model.families.cmt import CMTSpec
from model.families.registry import BACKBONES
from model.net.network import build_network
from model.predictor import load_deployed
from model.spec import CenterCropSpec
from model.training.classify import BreedNet, BreedTraining, ClassifyRecipe
from model.training.data import load_photographs, read_index
from model.training.loop import CHECKPOINT_FILE
from model.training.recipes import PetsModel, Recipe
from model.training.train import train
from model.training.variants import TINY, find_variant, variant_recipe, variants
from model.types import Deployment
from tests.model.tiny_backbones import BACKBONES as SPECS

COMMAND = "the command"


def small(backbone: str, kind: PetsModel = PetsModel.BREED) -> Recipe:
    """A variant's recipe, with two steps of four photographs on a network of a few thousand parameters."""
    spec = SPECS[backbone]
    if isinstance(spec, CMTSpec):
        spec = spec.model_copy(update={"input_size": 64})  # with a single key, attention has nothing to learn
    variant = dataclasses.replace(find_variant(backbone, "tiny"), spec=spec, side=spec.input_side or 32)
    recipe = variant_recipe(kind, variant)
    schedule = dataclasses.replace(recipe.schedule, epochs=1, decay_epochs=0.5, warmup_epochs=0.0, batch_size=4)
    return dataclasses.replace(recipe, schedule=schedule)


def test_every_backbone_has_a_tiny_and_its_published_sizes() -> None:
    """Hire-MLP's published tiny, of eighteen million parameters, is `ti`."""
    assert TINY.keys() == BACKBONES.keys()
    assert list(variants("hire_mlp")) == ["tiny", "ti", "small", "base", "large"]
    for backbone, registered in BACKBONES.items():
        found = variants(backbone)
        assert [one.spec for one in found.values()] == [TINY[backbone], *registered.sizes.values()]
        assert {one.side for name, one in found.items() if name != "tiny"} <= {160, 192, 224, 256}


@pytest.mark.parametrize("backbone", TINY)
def test_tiny_networks_are_alike_in_size(backbone: str) -> None:
    """About two million parameters, and an input that the recipe's pipeline gives."""
    variant = find_variant(backbone, "tiny")
    recipe = variant_recipe(PetsModel.BREED, variant)
    with torch.device("meta"):
        network = build_network(recipe.architecture, 37)
        assert network(torch.empty(2, 3, variant.side, variant.side)).shape == (2, 37)
    assert 1.4e6 < sum(parameter.numel() for parameter in network.parameters()) < 2.3e6


def test_all_learn_by_one_recipe() -> None:
    """But for the network and the side of its inputs the recipes are equal."""
    recipes = [variant_recipe(PetsModel.BREED, find_variant(backbone, "tiny")) for backbone in TINY]
    assert len({(one.schedule, one.examples, one.preprocessing, one.postprocessing) for one in recipes}) == 1
    published = variant_recipe(PetsModel.BREED, find_variant("cmt", "s"))
    assert published.preprocessing == CenterCropSpec(resize_shorter=256, crop=224)


@pytest.mark.parametrize("backbone", ["hire_mlp", "repmlpnet", "cmt", "hvt"])
def test_every_parameter_learns_and_the_bundle_is_served(backbone: str, pets: Path, tmp_path: Path) -> None:
    """Each parameter has a gradient; the bundle that `train` writes loads, RepMLPNet's in deploy form."""
    recipe = small(backbone)
    assert isinstance(recipe.examples, ClassifyRecipe)
    index = read_index(pets)
    data = (load_photographs(index.training()), load_photographs(index.held_out()))
    training = BreedTraining(recipe.examples, BreedNet(recipe.architecture.backbone, 2, maps=False), *data)
    training.loss(np.arange(4), np.random.default_rng(0), 0.0).backward()
    for name, parameter in training.module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name

    written = train(PetsModel.BREED, pets, tmp_path, recipe=recipe, command=COMMAND)
    bundle = read_bundle(tmp_path / "bundles" / f"{backbone}_tiny_pets_breed")
    assert bundle.config == written.config
    assert bundle.config.architecture == recipe.architecture
    assert f"{backbone}_tiny trained from scratch on the Oxford-IIIT Pet dataset by `{COMMAND}`" in str(bundle.config)
    network, deployment = load_deployed(bundle)
    if backbone == "repmlpnet":
        assert any("repconv" in name for name, _ in training.module.named_parameters())
        assert not any("repconv" in name for name in network.state_dict())
        assert deployment.form == "deploy"
        assert deployment.largest_difference is not None
        assert 0 < deployment.largest_difference < 1e-4
    else:
        assert deployment == Deployment()


def test_a_detector_starts_from_hire_mlps_breed_model(pets: Path, tmp_path: Path) -> None:
    """All but the norms of its levels, which a classifier does not have. Detector and segmenter learn; one on another
    backbone is refused."""
    breed = train(PetsModel.BREED, pets, tmp_path, recipe=small("hire_mlp"), command="")
    heads = train(
        PetsModel.HEADS,
        pets,
        tmp_path,
        recipe=small("hire_mlp", PetsModel.HEADS),
        backbone_from=breed.folder,
        stop_after=0,
        command="",
    )
    assert heads.config.name == "hire_mlp_tiny_pets_heads"
    one, other = (load_deployed(bundle)[0].state_dict() for bundle in (breed, heads))
    shared = [name for name in one if f"backbone.{name}" in other]
    assert {name for name in one if name not in shared} == {
        *(f"norm.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        "head.weight",
        "head.bias",
    }
    assert all(torch.equal(one[name], other[f"backbone.{name}"]) for name in shared)
    for kind in (PetsModel.HEADS, PetsModel.OUTLINE):
        recipe = small("hire_mlp", kind)
        trained = train(kind, pets, tmp_path, recipe=recipe, backbone_from=breed.folder, stop_after=1, command="")
        assert trained.config.architecture == recipe.architecture
        assert trained.config.weights_sha256 != heads.config.weights_sha256
    why = r"another backbone \(hire_mlp of size custom\) than the model to train \(convmlp of size custom\); give"
    with pytest.raises(ValueError, match=why):
        train(PetsModel.OUTLINE, pets, tmp_path, backbone_from=breed.folder, command="")


@pytest.mark.parametrize("kind", [PetsModel.HEADS, PetsModel.OUTLINE])
@pytest.mark.parametrize(
    ("backbone", "why"),
    [
        ("cmt", "takes inputs of 96 x 96 px only"),
        ("repmlpnet", "takes inputs of 96 x 96 px only"),
        ("hvt", "has no feature levels"),
    ],
)
def test_a_backbone_of_one_input_size_is_refused_below_the_others(backbone: str, why: str, kind: PetsModel) -> None:
    """Before any photograph is read, with what it can be."""
    with pytest.raises(ValueError, match=f"^{backbone} {why}: it can be trained as `breed` only, not to "):
        variant_recipe(kind, find_variant(backbone, "tiny"))


@pytest.mark.parametrize("damage", ["another network", "cut off", "not a checkpoint"])
def test_a_checkpoint_that_cannot_be_resumed_is_refused(damage: str, pets: Path, tmp_path: Path) -> None:
    """The message has the file and what to do; the file stays as it is."""
    train(PetsModel.BREED, pets, tmp_path, recipe=small("hvt"), stop_after=0, command="")
    checkpoint = tmp_path / "hvt_tiny_breed" / CHECKPOINT_FILE
    recipe = small("hvt")
    match damage:
        case "another network":
            recipe = dataclasses.replace(small("cmt"), variant="hvt_tiny")
        case "cut off":
            checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
        case _:
            checkpoint.write_bytes(b"hello")
    content = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be resumed.*remove it to train from the start"):
        train(PetsModel.BREED, pets, tmp_path, recipe=recipe, command="")
    assert checkpoint.read_bytes() == content


def test_another_length_keeps_the_shape_of_the_schedule(pets: Path, tmp_path: Path) -> None:
    """`epochs` shortens warm-up and decay alike, and the training ends there."""
    recipe = small("hvt")
    written = train(PetsModel.BREED, pets, tmp_path, recipe=recipe, epochs=2, command="")
    assert written.config.accuracy is not None
    assert len((tmp_path / "hvt_tiny_breed" / "log.jsonl").read_text().splitlines()) == 2
