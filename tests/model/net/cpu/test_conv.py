"""Convolutions by oneDNN's operator and by Winograd's algorithm equal torch's, for any input size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.net.cpu.conv import MAX_CACHED_SIZES, MIN_CHANNELS, MIN_POSITIONS, Conv, WinogradConv, winograd_applies
from model.net.cpu.onednn import onednn_available

pytestmark = pytest.mark.skipif(not onednn_available(), reason="this build of torch has no oneDNN operators")


@torch.inference_mode()
def test_each_input_size_equals_torch() -> None:
    """New and repeated sizes, which need different packings of the weight, give torch's result."""
    conv = nn.Conv2d(64, 96, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ours = Conv(conv)
    for batch, height, width in ((1, 56, 56), (1, 7, 7), (4, 7, 10), (1, 1, 1), (1, 56, 56), (0, 5, 5)):
        x = torch.randn(batch, 64, height, width).to(memory_format=torch.channels_last)
        torch.testing.assert_close(ours(x), conv(x), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_more_sizes_than_are_cached_are_computed() -> None:
    """More input sizes than the cache holds give correct results."""
    conv = nn.Conv2d(4, 4, 1)
    ours = Conv(conv)
    for width in (*range(1, MAX_CACHED_SIZES + 10), 1):
        x = torch.randn(1, 4, 1, width)
        torch.testing.assert_close(ours(x), conv(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
@torch.inference_mode()
def test_the_addend_is_added_before_the_relu(relu: bool) -> None:
    """The ReLU applies to the sum, not to the convolution alone."""
    conv = nn.Conv2d(8, 16, 3, padding=1)
    x, addend = torch.randn(2, 8, 5, 6), torch.randn(2, 16, 5, 6)
    expected = conv(x) + addend
    found = Conv(conv, "relu" if relu else "none").plus(x, addend)
    torch.testing.assert_close(found, F.relu(expected) if relu else expected, rtol=1e-4, atol=1e-4)


CHANNELS = MIN_CHANNELS


@pytest.mark.parametrize("size", [(32, 32), (29, 40), (30, 35), (39, 27), (1, MIN_POSITIONS), (2, 600), (7, 9)])
@pytest.mark.parametrize(("relu", "bias"), [(False, True), (True, True), (True, False)])
@torch.inference_mode()
def test_winograd_equals_the_definition(size: tuple[int, int], relu: bool, bias: bool) -> None:
    """Within float32's rounding of the sum in float64, for heights that are and are not multiples of a tile."""
    conv = nn.Conv2d(CHANNELS, CHANNELS + 32, 3, padding=1, bias=bias)
    x = torch.randn(2, CHANNELS, *size)
    exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double() if conv.bias is not None else None, padding=1)
    assert winograd_applies(conv)
    found = WinogradConv(conv, relu=relu)(x.to(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, (F.relu(exact) if relu else exact).float(), rtol=1e-5, atol=2e-5)


@torch.inference_mode()
def test_an_empty_batch_is_no_error() -> None:
    """Without regions, the region heads get an empty batch."""
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    assert WinogradConv(conv)(torch.zeros(0, CHANNELS, 14, 14)).shape == (0, CHANNELS, 14, 14)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, stride=2),
        nn.Conv2d(CHANNELS, CHANNELS, 3),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
        nn.Conv2d(CHANNELS, CHANNELS, 1),
        nn.Conv2d(CHANNELS, CHANNELS // 2, 3, padding=1),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, dtype=torch.bfloat16),
    ],
    ids=["strided", "unpadded", "depthwise", "pointwise", "narrow", "bf16"],
)
def test_winograd_does_not_apply_to_other_convolutions(conv: nn.Conv2d) -> None:
    """Other kernels, few channels, and half precision do not use it."""
    assert not winograd_applies(conv)
