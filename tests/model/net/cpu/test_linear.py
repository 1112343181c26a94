"""Linear layers by oneDNN and MKL: torch's results, whichever computes, in any batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.net.cpu.conv import Activation
from model.net.cpu.linear import Linear, SingleSharedLinear, mkl_is_reproducible
from model.net.cpu.onednn import convert_to_onednn, onednn_available
from model.net.layers import SharedLinear, UnfoldedBatchNorm2d

pytestmark = pytest.mark.skipif(not onednn_available(), reason="this build of torch has no oneDNN operators")

SHAPES = [(1, 7), (40, 7), (3, 50, 7), (2, 5, 6, 7), (2, 0, 7), (0, 7)]
"""Inputs of seven channels: few rows, many, and none."""
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}


def values(*shape: int) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(shape)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.inference_mode()
def test_a_linear_layer_equals_torch(activation: Activation, bias: bool, large: bool) -> None:
    """With every activation, with and without bias, by either library."""
    weight, shift = values(9, 7), values(9) if bias else None
    layer = Linear(weight, shift, activation, large=large)
    for shape in SHAPES:
        x = values(*shape)
        expected = ACTIVATIONS[activation](F.linear(x, weight, shift))
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_an_addend_is_added_and_stays_as_it_is(bias: bool, large: bool) -> None:
    """The sum is a new tensor: a residual is used again."""
    weight, shift = values(9, 7), values(9) if bias else None
    layer = Linear(weight, shift, large=large)
    for shape in SHAPES:
        x, addend = values(*shape), values(*shape[:-1], 9)
        before = addend.clone()
        torch.testing.assert_close(layer.plus(x, addend), F.linear(x, weight, shift) + addend, rtol=1e-5, atol=1e-5)
        assert torch.equal(addend, before)


@torch.inference_mode()
def test_one_set_of_shared_weights_is_a_linear_layer() -> None:
    """Over positions; several sets stay a batched product."""
    shared = SharedLinear(1, 16, bias=True)
    x = values(5, 1, 16)
    torch.testing.assert_close(SingleSharedLinear(shared)(x), shared(x), rtol=1e-5, atol=1e-5)
    network = nn.Sequential(SharedLinear(1, 16, bias=False), SharedLinear(2, 16, bias=False))
    convert_to_onednn(network)
    assert [type(layer) for layer in network] == [SingleSharedLinear, SharedLinear]


@torch.inference_mode()
def test_a_batch_norm_in_one_pass_equals_torch() -> None:
    """With statistics and weights of its own."""
    norm = UnfoldedBatchNorm2d(6).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        assert tensor is not None
        tensor.normal_()
    x = values(2, 6, 5, 4).to(memory_format=torch.channels_last)
    network = nn.Sequential(norm)
    expected = network(x)
    convert_to_onednn(network)
    assert not isinstance(network[0], nn.BatchNorm2d)
    found = network(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not mkl_is_reproducible(), reason="MKL is used on Intel's processors, in its reproducible mode")
@pytest.mark.parametrize(("rows", "channels", "out_channels"), [(97, 192, 576), (25, 184, 184), (1, 320, 80)])
@torch.inference_mode()
def test_small_products_are_the_same_in_every_batch(rows: int, channels: int, out_channels: int) -> None:
    """To the bit, and on any number of cores; the sum with a residual, too."""
    layer = Linear(values(out_channels, channels), values(out_channels))
    x, addend = values(32, rows, channels), values(32, rows, out_channels)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [(layer(x[at : at + 1]), layer.plus(x[at : at + 1], addend[at : at + 1])) for at in range(32)]
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for size in (1, 2, 7, 32):
                many, sums = layer(x[:size]), layer.plus(x[:size], addend[:size])
                assert torch.equal(many, torch.cat([one for one, _ in alone[:size]]))
                assert torch.equal(sums, torch.cat([one for _, one in alone[:size]]))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("mode", ["", "AUTO"])
def test_mkl_is_not_used_where_its_results_depend_on_the_batch(mode: str) -> None:
    """Without its strict reproducible mode."""
    code = "from model.net.cpu.linear import mkl_is_reproducible; print(mkl_is_reproducible())"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[4],
        env={**os.environ, "MKL_CBWR": mode},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "False"
