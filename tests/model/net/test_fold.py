from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from model.net.fold import fold_batch_norm
from model.net.layers import ChainedModule, ConvModule
from model.net.mask_rcnn import MaskRCNN
from tests.model.tiny_models import ARCHITECTURES, tiny_network

NORMS = {"classifier": 6, "retinanet": 6, "mask_rcnn": 6, "semantic_fpn": 13}
"""Three in the tokenizer and three in the conv stage; in the Semantic FPN head one a convolution, 1 + 1 + 2 + 3."""


def randomised(family: str) -> nn.Module:
    """A network whose batch norms have statistics and parameters far from a fresh one's."""
    network = tiny_network(family)
    for norm in batch_norms(network):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        nn.init.normal_(norm.running_mean, std=0.5)
        nn.init.uniform_(norm.running_var, 0.2, 3.0)
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.normal_(norm.bias, std=0.5)
    return network


def batch_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def tensors(out: Tensor | Sequence[Tensor] | Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """All output tensors of a network, flat."""
    return [out] if isinstance(out, Tensor) else [tensor for part in out for tensor in tensors(part)]


@torch.inference_mode()
@pytest.mark.parametrize("family", list(ARCHITECTURES))
def test_a_folded_network_gives_the_same_outputs(family: str) -> None:
    """Folding is exact except for rounding, and leaves no batch norm in any family."""
    network = randomised(family)
    x = torch.randn(2, 3, 64, 96)
    expected = [tensor.clone() for tensor in tensors(network(x))]
    assert len(batch_norms(network)) == NORMS[family]
    fold_batch_norm(network)
    assert batch_norms(network) == []
    found = tensors(network(x))
    assert len(found) == len(expected) == {"classifier": 1, "retinanet": 10, "mask_rcnn": 14, "semantic_fpn": 1}[family]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@torch.inference_mode()
def test_without_batch_norm_nothing_changes() -> None:
    """Folding a second time, or a module without batch norm, changes no weight."""
    network = tiny_network("mask_rcnn")
    assert isinstance(network, MaskRCNN)
    heads_before = {key: tensor.clone() for key, tensor in network.roi_head.state_dict().items()}
    fold_batch_norm(network)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    fold_batch_norm(network)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert all(torch.equal(tensor, after[f"roi_head.{key}"]) for key, tensor in heads_before.items())


@torch.inference_mode()
def test_a_bias_before_the_batch_norm_is_kept() -> None:
    """A convolution with a bias folds as exactly as one without."""
    norm = nn.BatchNorm2d(4)
    assert norm.running_mean is not None
    nn.init.normal_(norm.running_mean)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU()).eval()
    x = torch.randn(1, 3, 8, 8)
    expected = block(x)
    fold_batch_norm(block)
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("linear", [True, False])
def test_a_batch_norm_before_a_layer_without_padding_is_folded_into_it(linear: bool, bias: bool) -> None:
    """A norm that follows an activation is taken over by the layer after it."""
    norm = nn.BatchNorm2d(4)
    assert norm.running_mean is not None
    nn.init.normal_(norm.running_mean)
    nn.init.normal_(norm.weight)

    class Network(ChainedModule):
        chains = (("norm", "after"),)

        def __init__(self) -> None:
            super().__init__()
            self.norm = norm
            self.after = nn.Linear(4, 3, bias=bias) if linear else nn.Conv2d(4, 3, 2, 2, bias=bias)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x.relu())
            out: Tensor = self.after(x.mean(dim=(2, 3)) if linear else x)
            return out

    network = Network().eval()
    x = torch.randn(2, 4, 8, 8)
    expected = network(x)
    fold_batch_norm(network)
    assert batch_norms(network) == []
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-6)


def test_in_training_mode_nothing_is_folded() -> None:
    """In training mode batch norm depends on the batch, so folding is refused."""
    network = ConvModule(3, 4, 3, norm=True).train()
    with pytest.raises(ValueError, match="bn is in training mode"):
        fold_batch_norm(network)
    assert isinstance(network.bn, nn.BatchNorm2d)


class Backwards(nn.Module):
    """Its children are not listed in the order of computation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.norm(x))
        return out


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)),
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, groups=4)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        Backwards(),
    ],
    ids=["before padding", "before groups", "after a ReLU", "order unknown"],
)
def test_a_batch_norm_without_a_convolution_is_refused(module: nn.Module) -> None:
    """A batch norm that cannot be folded is an error, not silently skipped."""
    with pytest.raises(ValueError, match="does not follow a convolution"):
        fold_batch_norm(module.eval())
