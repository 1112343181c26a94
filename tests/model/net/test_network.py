from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from model.families.classifier import ClassifierSpec
from model.families.convmlp import CONVMLP_SIZES, ConvMLPSpec
from model.families.mask_rcnn import MaskRCNNSpec
from model.families.registry import Architecture
from model.families.retinanet import RetinaNetSpec
from model.families.semantic_fpn import SemanticFPNSpec
from model.net.network import build_network
from tests import goldens
from tests.model.tiny_models import ARCHITECTURES, NUM_CLASSES

PUBLISHED: dict[str, tuple[Callable[[ConvMLPSpec], Architecture], int]] = {
    "classifier": (lambda backbone: ClassifierSpec(backbone=backbone), 1000),
    "retinanet": (lambda backbone: RetinaNetSpec(backbone=backbone), 80),
    "maskrcnn": (lambda backbone: MaskRCNNSpec(backbone=backbone), 80),
    "semfpn": (lambda backbone: SemanticFPNSpec(backbone=backbone), 150),
}


@goldens.requires_goldens
@pytest.mark.parametrize("size", ["s", "m", "l"])
@pytest.mark.parametrize("family", list(PUBLISHED))
def test_keys_shapes_and_parameters_are_the_authors(family: str, size: str) -> None:
    """A published checkpoint loads without renaming: equal keys, shapes, dtypes and parameter counts."""
    architecture, classes = PUBLISHED[family]
    with torch.device("meta"):
        network = build_network(architecture(CONVMLP_SIZES[size]), classes)
    ours = {key: (list(tensor.shape), tensor.dtype) for key, tensor in network.state_dict().items()}
    golden = goldens.load(f"keys/keys_{family}_{size}.json")["keys"]
    assert ours == {key: (shape, getattr(torch, dtype)) for key, shape, dtype in golden}
    parameters = goldens.load("params.json")[f"{family}_{size}"]["parameters"]
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize("family", list(ARCHITECTURES))
def test_small_constants_are_the_authors(family: str) -> None:
    """Epsilons of 1e-5 and exact GELU: other values change outputs too little for a comparison to notice."""
    modules = list(build_network(ARCHITECTURES[family], NUM_CLASSES).modules())
    assert {module.eps for module in modules if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)} == {1e-5}
    assert {module.approximate for module in modules if isinstance(module, nn.GELU)} == {"none"}


@pytest.mark.parametrize("family", list(ARCHITECTURES))
def test_every_parameter_gets_a_gradient(family: str) -> None:
    """Gradients reach each parameter of the dense part; no in-place operation breaks training."""
    network = build_network(ARCHITECTURES[family], NUM_CLASSES).train()
    out = network(torch.randn(2, 3, 64, 96))
    flat = [out] if isinstance(out, torch.Tensor) else [x for part in out for x in part]
    torch.stack([x.square().sum() for x in flat]).sum().backward()
    idle = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert {name for name in idle if not name.startswith("roi_head.")} == set()


@pytest.mark.parametrize("family", list(ARCHITECTURES))
@pytest.mark.parametrize("size", [(32, 32), (33, 61), (96, 64)])
def test_sizes_that_are_no_multiple_of_the_stride_work(family: str, size: tuple[int, int]) -> None:
    """Levels round up at each halving and are merged at the finer level's size."""
    network = build_network(ARCHITECTURES[family], NUM_CLASSES).eval()
    with torch.inference_mode():
        out = network(torch.randn(1, 3, *size))
    if family == "semantic_fpn":
        assert out.shape == (1, NUM_CLASSES, -(-size[0] // 4), -(-size[1] // 4))
