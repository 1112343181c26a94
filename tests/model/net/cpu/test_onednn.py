"""Networks by oneDNN's operators: the same outputs as torch's layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from model.net.cpu.onednn import convert_to_onednn, onednn_available
from model.net.fold import fold_batch_norm
from tests.model.tiny_models import tiny_network

pytestmark = pytest.mark.skipif(not onednn_available(), reason="this build of torch has no oneDNN operators")


def flat(answer: object) -> list[Tensor]:
    if isinstance(answer, Tensor):
        return [answer]
    assert isinstance(answer, tuple | list)
    return [tensor for part in answer for tensor in flat(part)]


@pytest.mark.parametrize("family", ["classifier", "retinanet", "mask_rcnn", "semantic_fpn"])
@pytest.mark.parametrize("size", [(64, 64), (65, 97)])
@torch.inference_mode()
def test_each_family_gives_the_same_outputs(family: str, size: tuple[int, int]) -> None:
    """Packed weights and fused operations change no output beyond rounding, at even and odd sizes."""
    network = tiny_network(family).eval()
    x = torch.randn(2, 3, *size)
    expected = flat(network(x))
    fold_batch_norm(network)
    convert_to_onednn(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    assert not any(isinstance(module, nn.Conv2d | nn.Linear | nn.GELU) for module in network.modules())
    for found, one in zip(flat(network(x.to(memory_format=torch.channels_last))), expected, strict=True):
        torch.testing.assert_close(found, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(112, 112), (5, 7), (6, 9), (2, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_pooling_after_relu_is_equal_bit_for_bit(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Pooling one axis after the other equals torch's, also at the border."""
    x = torch.randn(2, 16, *size).to(dtype, memory_format=torch.channels_last)
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)).eval()
    network = network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    rectified = network[1](network[0](x))
    expected = network[2](rectified)
    convert_to_onednn(network)
    assert not isinstance(network[2], nn.MaxPool2d)
    assert torch.equal(network[2](rectified), expected)


@torch.inference_mode()
def test_pooling_without_relu_is_not_replaced() -> None:
    """Padding may be left out of the maximum only if no value is negative."""
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(3, stride=2, padding=1)).eval()
    convert_to_onednn(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    assert isinstance(network[1], nn.MaxPool2d)


@torch.inference_mode()
def test_no_regions_are_no_error() -> None:
    """A picture without proposals gives the region heads an empty batch."""
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2)).eval()
    convert_to_onednn(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    assert network[:2](torch.zeros(0, 4, 6, 6)).shape == (0, 8, 6, 6)
