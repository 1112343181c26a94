"""A convolution by oneDNN's operator: the same answers as torch's, whatever its input's size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.net.onednn import onednn_available
from model.net.onednn_conv import KEPT_SIZES, Conv

pytestmark = pytest.mark.skipif(not onednn_available(), reason="this build of torch has no oneDNN operators")


@torch.inference_mode()
def test_each_size_of_input_gets_its_answer() -> None:
    """Sizes that want the weight in another layout, and a size seen before, are answered as by torch."""
    conv = nn.Conv2d(64, 96, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ours = Conv(conv)
    for batch, height, width in ((1, 56, 56), (1, 7, 7), (4, 7, 10), (1, 1, 1), (1, 56, 56), (0, 5, 5)):
        x = torch.randn(batch, 64, height, width).to(memory_format=torch.channels_last)
        torch.testing.assert_close(ours(x), conv(x), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_more_sizes_than_are_remembered_are_answered() -> None:
    """A detector that sees one size of picture after another neither fails nor answers wrongly."""
    conv = nn.Conv2d(4, 4, 1)
    ours = Conv(conv)
    for width in (*range(1, KEPT_SIZES + 10), 1):
        x = torch.randn(1, 4, 1, width)
        torch.testing.assert_close(ours(x), conv(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
@torch.inference_mode()
def test_an_addend_comes_before_the_relu(relu: bool) -> None:
    """The sum is rectified, not the convolution alone."""
    conv = nn.Conv2d(8, 16, 3, padding=1)
    x, addend = torch.randn(2, 8, 5, 6), torch.randn(2, 16, 5, 6)
    expected = conv(x) + addend
    found = Conv(conv, relu=relu).plus(x, addend)
    torch.testing.assert_close(found, F.relu(expected) if relu else expected, rtol=1e-4, atol=1e-4)
