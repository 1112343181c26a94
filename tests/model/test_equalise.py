"""Networks whose layers' inputs have channels of similar ranges: they compute the same, and rounding costs less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.bundle import Bundle
from model.net.normalise import Normalise
from model.predictor import load_network, output_tensors
from model.quantisation.equalise import equalised
from model.quantisation.pictures import reference_variants
from model.types import ModelInput
from tests.model.tiny_backbones import tiny_backbone_bundle
from tests.model.tiny_models import ARCHITECTURES, tiny_bundle

pytestmark = pytest.mark.usefixtures("one_thread")


def variants(bundle: Bundle) -> list[ModelInput]:
    return list(reference_variants(bundle.config.preprocessing))


@torch.inference_mode()
def outputs(bundle: Bundle, network: nn.Module) -> list[Tensor]:
    pixels = torch.from_numpy(variants(bundle)[2].pixels.copy())[None]
    return output_tensors(network(Normalise(bundle.config.preprocessing)(pixels)))


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    others = after.state_dict()
    return {name for name, value in before.state_dict().items() if not torch.equal(value, others[name])}


@pytest.mark.parametrize("family", [*ARCHITECTURES, "hvt", "cmt", "hire_mlp", "repmlpnet"])
def test_the_function_stays(tmp_path: Path, family: str) -> None:
    """All outputs are equal but for float32's rounding, and the model keeps its name."""
    plain = tiny_bundle(tmp_path, family) if family in ARCHITECTURES else tiny_backbone_bundle(tmp_path, family)
    made = equalised(plain, variants(plain)[:4], tmp_path / "made")
    assert made.config.name == plain.config.name
    before, after = load_network(plain), load_network(made)
    for one, other in zip(outputs(plain, before), outputs(made, after), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3 * float(one.abs().max()))
    # Where layers are merged as a network is loaded, and where none follows a layer norm directly, nothing is done.
    assert bool(changed(before, after)) == (family not in {"repmlpnet", "cmt", "hire_mlp"})


def test_channels_have_one_range_around_zero(tmp_path: Path) -> None:
    """On the inputs that measured it, whatever the weights of the norm before."""
    plain = tiny_bundle(tmp_path, "classifier")
    made = load_network(equalised(plain, variants(plain), tmp_path / "made"))
    seen: list[tuple[Tensor, Tensor]] = []
    layer = made.get_submodule("stages.1.blocks.0.channel_mlp1.fc1")
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, -2).aminmax(dim=0)))
    with torch.inference_mode():
        for one in variants(plain):
            made(Normalise(plain.config.preprocessing)(torch.from_numpy(one.pixels.copy())[None]))
    low = torch.stack([low for low, _ in seen]).amin(dim=0)
    high = torch.stack([high for _, high in seen]).amax(dim=0)
    torch.testing.assert_close(high, high.mean().expand_as(high), rtol=1e-2, atol=0)
    torch.testing.assert_close(low, -high, rtol=1e-2, atol=0)
