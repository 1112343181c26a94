"""Checkpoints of the published backbones that are not what they are imported as: what the error calls each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.errors import BundleInvalid
from model.families.classifier import ClassifierSpec
from model.families.registry import BACKBONES, ArchitectureSpec, BackboneSpec
from model.families.repmlpnet import REPMLPNET_SIZES
from model.families.semantic_fpn import SemanticFPNSpec
from model.net.network import meta_network
from model.zoo.importer import import_checkpoint
from tests.model.tiny_backbones import checkpoint

PUBLISHED = {"cmt": "cmt_tiny", "hire_mlp": "hire_mlp_tiny", "repmlpnet": "repmlpnet_t224", "hvt": "hvt_ti_1"}
"""By backbone: the name of its smallest checkpoint."""
SIZES = {"cmt": ("ti", "s"), "hire_mlp": ("tiny", "small"), "repmlpnet": ("t224", "b224"), "hvt": ("ti_1", "s_1")}
"""The size of that one, and another."""


def shapes(architecture: ArchitectureSpec, num_classes: int = 1000) -> dict[str, Tensor]:
    """A network's tensors, which take no memory, neither here nor in a file."""
    found = meta_network(architecture, num_classes).state_dict()
    return {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in found.items()}


def spec_of(backbone: str, at: int = 0) -> BackboneSpec:
    return BACKBONES[backbone].sizes[SIZES[backbone][at]]


def refusal(tensors: Mapping[str, Tensor], name: str, folder: Path) -> str:
    """The error of an import under a name; nothing is written."""
    torch.save(dict(tensors), folder / "file.pth")
    with pytest.raises(BundleInvalid) as caught:
        import_checkpoint(folder / "file.pth", folder / "store", name)
    assert not (folder / "store").exists()
    return caught.value.detail


@pytest.mark.parametrize(("backbone", "other"), list(permutations(PUBLISHED, 2)))
def test_one_backbone_under_the_name_of_another(backbone: str, other: str, tmp_path: Path) -> None:
    """The error has what the file is, and what the name stands for."""
    name = PUBLISHED[other]
    why = refusal(shapes(ClassifierSpec(backbone=spec_of(backbone))), name, tmp_path)
    assert f"is not {name}: it has a classifier on {backbone} of size {SIZES[backbone][0]} and 1000 classes" in why
    assert f"the published model is a classifier on {other} of size {SIZES[other][0]} and 1000 classes" in why


@pytest.mark.parametrize("num_classes", [1000, 10])
@pytest.mark.parametrize("backbone", PUBLISHED)
def test_another_size(backbone: str, num_classes: int, tmp_path: Path) -> None:
    """A larger network of the same backbone, or the same one with other classes."""
    spec = spec_of(backbone, at=1 if num_classes == 1000 else 0)
    why = refusal(shapes(ClassifierSpec(backbone=spec), num_classes), PUBLISHED[backbone], tmp_path)
    assert f"it has a classifier on {backbone} of size {spec.size} and {num_classes} classes; the published" in why


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_another_form(backbone: str, tmp_path: Path) -> None:
    """Backbones without a head, with a head of another name, and below a segmenter are not the classifier."""
    whole = shapes(ClassifierSpec(backbone=spec_of(backbone)))
    size, name = SIZES[backbone][0], PUBLISHED[backbone]
    headless = {key: tensor for key, tensor in whole.items() if not key.startswith("head.")}
    nearest = f"the nearest is a classifier on {backbone} of size {size}, with {len(headless)} of {len(whole)} tensors"
    why = refusal(headless, name, tmp_path)
    assert f"{nearest}; head.weight is missing; head.bias is missing" in why
    why = refusal({f"backbone.{key}": tensor for key, tensor in headless.items()}, name, tmp_path)
    assert "without the prefix backbone. of all names" in why
    assert nearest in why
    why = refusal({key.replace("head.", "fc."): tensor for key, tensor in whole.items()}, name, tmp_path)
    assert "fc.weight is unexpected" in why
    if spec_of(backbone).has_levels:
        why = refusal(shapes(SemanticFPNSpec(backbone=spec_of(backbone)), 150), name, tmp_path)
        assert f"it has a semantic_fpn on {backbone} of size {size} and 150 classes" in why


def test_repmlpnets_forms(tmp_path: Path) -> None:
    """A deployed file of another size is named; one in both forms, or in neither, is refused with its reason."""
    trained = shapes(ClassifierSpec(backbone=REPMLPNET_SIZES["t224"]))
    deployed = shapes(ClassifierSpec(backbone=REPMLPNET_SIZES["t224"].model_copy(update={"deploy": True})))
    why = refusal(deployed, "repmlpnet_b224", tmp_path)
    assert "it has a classifier on repmlpnet of size t224 and 1000 classes" in why
    why = refusal(trained | deployed, "repmlpnet_t224", tmp_path)
    assert "some blocks are in deploy form (fc3.bias) and others as they were trained (fc3_bn)" in why
    biased = "repmlp_block.fc3.bias"
    why = refusal({k: t for k, t in deployed.items() if not k.endswith(biased)}, "repmlpnet_t224", tmp_path)
    assert re.search(
        rf"repmlpnet of size t224 and 1000 classes, but stages\.0\.0\.{biased} is missing; .*and 7 more", why
    )


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_a_part_of_a_checkpoint(backbone: str, tmp_path: Path) -> None:
    """The first or the second half of the tensors, or the first with the head: the error has what it is a part of."""
    whole = shapes(ClassifierSpec(backbone=spec_of(backbone)))
    names = list(whole)
    head = {name: whole[name] for name in names if name.startswith("head.")}
    first = {name: whole[name] for name in names[: len(names) // 2]}
    second = {name: whole[name] for name in names[len(names) // 2 :]}
    for part in (first, first | head, second):
        why = refusal(part, PUBLISHED[backbone], tmp_path)
        assert f"classifier on {backbone} of size" in why
        assert " is missing" in why


@pytest.mark.parametrize("share", [0.5, 0.99])
@pytest.mark.parametrize("backbone", PUBLISHED)
def test_a_file_that_is_cut_off(backbone: str, share: float, tmp_path: Path) -> None:
    """Whether half of it or its end is missing; the error has what to do."""
    file = checkpoint(tmp_path, backbone)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    why = r"is truncated or corrupt: it begins like a file of torch\.save, .* at its end .*; copy or download it again"
    with pytest.raises(BundleInvalid, match=why):
        import_checkpoint(file, tmp_path / "store", PUBLISHED[backbone])
