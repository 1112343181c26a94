"""UPerNet against its definition, and its checkpoints as mmsegmentation writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.families.hire_mlp import HireMLPSpec
from model.families.upernet import UPerNetSpec
from model.net.network import build_network
from model.net.upernet import POOL_SIZES, UPerHead, UPerNet
from model.precision import Precision, make_predictor
from model.predictor import load_network
from model.reference import REFERENCE_PARAMS, reference_input
from model.spec import KeepRatioSpec
from model.types import Batch, SegmentOutput
from model.zoo.importer import import_checkpoint

BACKBONE = HireMLPSpec(stage_channels=(8, 12, 16, 24), stage_depths=(1, 1, 1, 1), mlp_ratio=2)
CLASSES = 7
KEYS = (
    "conv_seg",
    *(f"psp_modules.{index}.1.conv" for index in range(4)),
    *(f"psp_modules.{index}.1.bn" for index in range(4)),
    "bottleneck.conv",
    "bottleneck.bn",
    *(f"lateral_convs.{index}.{part}" for index in range(3) for part in ("conv", "bn")),
    *(f"fpn_convs.{index}.{part}" for index in range(3) for part in ("conv", "bn")),
    "fpn_bottleneck.conv",
    "fpn_bottleneck.bn",
)
"""mmsegmentation's, below `decode_head`."""


def network() -> UPerNet:
    torch.manual_seed(5)
    made = build_network(UPerNetSpec(backbone=BACKBONE, head_channels=16), CLASSES).eval()
    assert isinstance(made, UPerNet)
    for name, tensor in made.state_dict().items():
        if name.endswith(("running_mean", ".bias")):
            tensor.normal_(std=0.2)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    return made


def by_definition(head: UPerHead, levels: list[Tensor]) -> Tensor:
    """Pyramid pooling, top-down sums, all levels side by side; straight from the state dict."""
    state = head.state_dict()

    def block(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[2] // 2)
        mean, var = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        return F.relu(F.batch_norm(x, mean, var, state[f"{name}.bn.weight"], state[f"{name}.bn.bias"]))

    def at(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[2:], mode="bilinear")

    last = levels[3]
    means = [F.adaptive_avg_pool2d(last, size) for size in POOL_SIZES]
    pools = [at(block(f"psp_modules.{i}.1", mean), last) for i, mean in enumerate(means)]
    top = block("bottleneck", torch.cat([last, *pools], 1))
    third = block("lateral_convs.2", levels[2]) + at(top, levels[2])
    second = block("lateral_convs.1", levels[1]) + at(third, levels[1])
    first = block("lateral_convs.0", levels[0]) + at(second, levels[0])
    outs = [block(f"fpn_convs.{i}", one) for i, one in enumerate((first, second, third))]
    together = torch.cat([outs[0], *(at(one, outs[0]) for one in (outs[1], outs[2], top))], 1)
    return F.conv2d(block("fpn_bottleneck", together), state["conv_seg.weight"], state["conv_seg.bias"])


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 96), (95, 131)])
def test_logits_follow_the_definition(size: tuple[int, int]) -> None:
    """At sizes whose levels are exact halves, and at others."""
    made = network()
    x = torch.randn(2, 3, *size)
    expected = by_definition(made.decode_head, list(made.backbone(x)))
    torch.testing.assert_close(made(x), expected, rtol=1e-4, atol=1e-5)


def test_parameters_have_mmsegmentations_names() -> None:
    """So the toolbox's checkpoints load."""
    found = {key.rpartition(".")[0] for key in network().decode_head.state_dict()}
    assert found == set(KEYS)


def test_a_checkpoint_with_its_second_head_is_imported_and_served(tmp_path: Path) -> None:
    """The head that only training uses is left out; the fast network labels pixels as the plain one does."""
    tensors = {**network().state_dict(), "auxiliary_head.conv_seg.weight": torch.zeros(CLASSES, 8, 1, 1)}
    torch.save({"meta": {}, "state_dict": tensors}, tmp_path / "upernet.pth")
    bundle = import_checkpoint(tmp_path / "upernet.pth", tmp_path, "upernet")
    config = bundle.config
    assert config.architecture == UPerNetSpec(backbone=BACKBONE, head_channels=16)
    assert config.preprocessing == KeepRatioSpec(long_side=2048, short_side=512)
    picture = reference_input(KeepRatioSpec(long_side=160, short_side=96))
    batch = Batch(np.stack((picture.pixels,)), (picture.geometry,), (REFERENCE_PARAMS,))
    maps = []
    for precision in (Precision.EXACT, Precision.FP32):
        (output,) = make_predictor(bundle, torch.device("cpu"), precision, load_network(bundle)).predict(batch)
        assert isinstance(output, SegmentOutput)
        maps.append(output.label_map)
    assert (maps[0] == maps[1]).mean() > 0.999
