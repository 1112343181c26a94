"""Every published size of the other backbones, also of those without references here, against its authors' code.

`../shared/goldens-families` has the numbers that were counted on that code: a network with another width, depth or
branch, or with another input, has others.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.families.classifier import ClassifierSpec
from model.families.cmt import CMT_SIZES
from model.families.hire_mlp import HIRE_MLP_SIZES
from model.families.hvt import HVT_SIZES
from model.families.registry import BackboneSpec
from model.families.repmlpnet import REPMLPNET_SIZES
from model.net.network import meta_network
from model.spec import CenterCropSpec
from model.zoo.checkpoint import Checkpoint
from model.zoo.checkpoint_file import CheckpointFile
from model.zoo.infer import infer_architecture
from tests import goldens

pytestmark = goldens.requires_families

SIZES: dict[str, BackboneSpec] = {
    **{f"cmt_{size}": spec for size, spec in CMT_SIZES.items()},
    **{f"hire_mlp_{size}": spec for size, spec in HIRE_MLP_SIZES.items()},
    **{f"RepMLPNet-{size.upper()}": spec for size, spec in REPMLPNET_SIZES.items()},
    **{f"{'' if size.startswith('scale') else 'hvt_'}{size}": spec for size, spec in HVT_SIZES.items()},
}
SIZES["scale_hvt_ti_4"] = SIZES.pop("scale_ti_4")
_ROW = re.compile(r"^\| (\S+) \| (?:given|hidden) \| (\d+) \|[^|]*\| (\d+) \|[^|]*\|[^|]*\| (\d+) \|", re.MULTILINE)


def counted() -> dict[str, tuple[int, int, int]]:
    """By variant: parameters, multiply-adds of a picture, and the input's side in pixels."""
    rows = (row for file in sorted(goldens.FAMILIES.glob("*/README.md")) for row in _ROW.findall(file.read_text()))
    return {name: (int(parameters), int(macs), int(side)) for name, parameters, macs, side in rows}


def test_all_published_sizes_are_known() -> None:
    """The sizes here are those that the authors' READMEs have, and no others."""
    assert set(counted()) == set(SIZES)


@pytest.mark.parametrize("name", list(SIZES))
def test_a_size_has_the_parameters_and_multiply_adds_of_the_authors_code(name: str) -> None:
    """Equal to the last one, at the authors' input size; what is rounded in the catalogue is exact here."""
    parameters, macs, side = counted()[name]
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = meta_network(ClassifierSpec(backbone=SIZES[name]), 1000).eval()
        network(torch.zeros(1, 3, side, side))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert counter.get_total_flops() == 2 * macs
    preprocessing = SIZES[name].classifier_preprocessing
    assert isinstance(preprocessing, CenterCropSpec)
    assert preprocessing.crop == side


@pytest.mark.parametrize("name", list(SIZES))
@pytest.mark.parametrize("classes", [1000, 37])
def test_a_size_is_inferred_from_its_tensors_alone(name: str, classes: int) -> None:
    """Names and shapes give the size, in a file of any name and with any number of classes."""
    network = meta_network(ClassifierSpec(backbone=SIZES[name]), classes)
    tensors = {key: torch.zeros((), dtype=one.dtype).expand(one.shape) for key, one in network.state_dict().items()}
    found, count = infer_architecture(Checkpoint(CheckpointFile(goldens.FAMILIES / "any.pth", tensors), tensors))
    assert (found.backbone, count) == (SIZES[name], classes)
