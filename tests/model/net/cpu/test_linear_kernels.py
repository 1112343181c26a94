"""Linear layers by linear.h, of bfloat16 and, two in one, of bytes: the same outputs wherever a row stands."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.net.cpu import rows
from model.net.cpu.conv import Activation
from model.net.cpu.int8 import Int8ChannelMLP, VnniChannelMLP, convert_to_int8
from model.net.cpu.linear import Linear, _kernel_takes
from model.net.cpu.openmp import MIN_ROWS, parallel_address, threads_for
from model.net.layers import ChannelMLP
from model.net.quantisation import InputRange, dequantise_weight, quantise_weight, range_between

pytestmark = pytest.mark.skipif(
    not rows.products_available(),
    reason="kernels.c is not compiled, or no AVX-512 with VNNI and bfloat16, or AMX is faster",
)

HALF = torch.bfloat16
FIRST, SECOND = range_between(-4.0, 4.5), range_between(-0.17, 3.0)
ROWS = (*range(1, 14), 95, 96, 97, 200)
"""With all numbers of rows that a tile and a block can have left."""


def mlp_of(channels: int, hidden: int) -> ChannelMLP:
    torch.manual_seed(channels + hidden)
    mlp = ChannelMLP(channels, hidden)
    nn.init.normal_(mlp.fc1.weight, std=2 * channels**-0.5)
    return mlp


def values(*shape: int, spread: float = 1.0) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(shape) * spread


def to_bytes(x: Tensor, found: InputRange) -> Tensor:
    return ((x / found.scale).round() + found.zero_point).clamp(0, 255).to(torch.uint8)


def floats(x: Tensor, found: InputRange) -> Tensor:
    return (x.float() - found.zero_point) * found.scale


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, dequantise_weight(*quantise_weight(layer.weight)), layer.bias)


@pytest.mark.parametrize(("channels", "hidden"), [(64, 64), (64, 192), (256, 128)])
@torch.inference_mode()
def test_it_computes_what_its_ranges_and_weights_determine(channels: int, hidden: int) -> None:
    """For each number of rows; floats are rounded to bytes first. Where a sum is between two bytes, either is right."""
    mlp = mlp_of(channels, hidden)
    made = VnniChannelMLP(mlp, FIRST, SECOND)
    for count in ROWS:
        x, residual = values(1, count, 1, channels).to(HALF), values(1, count, 1, channels, spread=2.0).to(HALF)
        taken = rows.to_bytes(x, FIRST)
        between = to_bytes(F.gelu(linear(floats(taken, FIRST), mlp.fc1)), SECOND)
        expected = residual.float() + linear(floats(between, SECOND), mlp.fc2)
        found = made(taken, residual)
        assert found.dtype == HALF
        torch.testing.assert_close(found.float(), expected, rtol=0.01, atol=0.01)
        assert torch.equal(made(x, residual), found)


@torch.inference_mode()
def test_its_gelu_is_exact_but_for_the_step_of_bytes() -> None:
    """With identities as weights, the output is the GELU of the input, rounded to a byte, at both ends too."""
    mlp = ChannelMLP(64, 64)
    for layer in (mlp.fc1, mlp.fc2):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    taken = torch.arange(256).to(torch.uint8).repeat_interleave(64).view(1, 256, 1, 64)
    for low, high in ((-8.0, 8.0), (-3.0, 1.0)):
        first, second = range_between(low, high), range_between(-0.17, high)
        expected = F.gelu(floats(taken, first))
        found = VnniChannelMLP(mlp, first, second)(taken, torch.zeros(taken.shape, dtype=HALF))
        error = (found.float() - expected).abs() - expected.abs() * 2**-8  # bfloat16 has eight bits
        assert float(error.max()) <= second.scale / 2 + 2e-4


@torch.inference_mode()
def test_a_row_depends_neither_on_its_neighbours_nor_on_the_threads() -> None:
    """The same bits: so an answer does not depend on its batch, or on how many cores were free."""
    made = VnniChannelMLP(mlp_of(128, 256), FIRST, SECOND)
    x, residual = values(2, 7, 9, 128).to(HALF), values(2, 9, 7, 128).to(HALF).transpose(1, 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = made(x, residual)
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            assert torch.equal(made(x, residual), expected)
    finally:
        torch.set_num_threads(before)
    for at in range(7):
        assert torch.equal(made(x[1:, at : at + 1], residual[1:, at : at + 1])[0, 0], expected[1, at])


@torch.inference_mode()
def test_what_is_not_finite_stays_so() -> None:
    """The residual carries it: bytes cannot."""
    made = VnniChannelMLP(mlp_of(64, 64), FIRST, SECOND)
    x, residual = torch.zeros(1, 2, 1, 64, dtype=HALF), torch.zeros(1, 2, 1, 64, dtype=HALF)
    residual[0, 1] = math.nan
    found = made(x, residual)
    assert found[0, 0].isfinite().all()
    assert found[0, 1].isnan().all()


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 64), (192, 64), (128, 192), (46, 184), (184, 46), (64, 1000)])
@torch.inference_mode()
def test_a_linear_layer_of_bfloat16(inputs: int, outputs: int) -> None:
    """Each activation, the sum with an addend and a missing bias, for each number of rows; rounded once."""
    layer = nn.Linear(inputs, outputs).to(HALF)
    for count in ROWS:
        x, addend = values(count, 1, inputs).to(HALF), values(count, outputs, 1).transpose(1, 2).to(HALF)
        assert _kernel_takes(layer.weight)
        plain = F.linear(x.float(), layer.weight.float(), layer.bias.float())
        expected: dict[Activation, Tensor] = {"none": plain, "relu": plain.relu(), "gelu": F.gelu(plain)}
        for activation, outcome in expected.items():
            found = Linear(layer.weight, layer.bias, activation)(x)
            assert found.dtype == HALF
            torch.testing.assert_close(found.float(), outcome, rtol=0.01, atol=1e-3)
        sums = Linear(layer.weight, layer.bias).plus(x, addend)
        torch.testing.assert_close(sums.float(), plain + addend.float(), rtol=0.01, atol=1e-3)
        without = Linear(layer.weight, None)(x)
        torch.testing.assert_close(without.float(), plain - layer.bias.float(), rtol=0.01, atol=1e-3)


@torch.inference_mode()
def test_a_row_of_bfloat16_depends_neither_on_its_neighbours_nor_on_the_threads() -> None:
    """The same bits, as for bytes; NaN stays in its row."""
    layer = nn.Linear(128, 64).to(HALF)
    made, x = Linear(layer.weight, layer.bias, "relu"), values(131, 128).to(HALF)
    x[5, 7] = math.nan
    expected = made(x)
    assert expected[5].isnan().all()
    assert expected.isnan().sum() == 64
    for at in (0, 6, 95, 96, 130):
        assert torch.equal(made(x[at : at + 1])[0], expected[at])
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(made(x).nan_to_num(-1.0), expected.nan_to_num(-1.0))
    finally:
        torch.set_num_threads(before)


def test_other_sizes_and_floats_are_left_to_onednn() -> None:
    """Channel MLPs of bytes have multiples of 64 channels, and bfloat16 between them; of a linear layer's 64 outputs
    few are left out."""
    assert not _kernel_takes(torch.zeros(80, 64, dtype=HALF))
    assert not _kernel_takes(torch.zeros(16, 64, dtype=HALF))
    assert not _kernel_takes(torch.zeros(64, 63, dtype=HALF))
    assert not _kernel_takes(torch.zeros(64, 64))
    ranges = {"0.fc1": FIRST, "0.fc2": SECOND}
    for channels, dtype, kind in (
        (64, HALF, VnniChannelMLP),
        (64, torch.float32, Int8ChannelMLP),
        (80, HALF, Int8ChannelMLP),
    ):
        network = nn.Sequential(mlp_of(channels, 128))
        convert_to_int8(network, ranges, dtype)
        assert type(network[0]) is kind


def test_the_threads_are_those_of_torch() -> None:
    """Where torch uses GCC's OpenMP library its function is found; few rows stay with one thread."""
    assert (parallel_address() != 0) == ("OpenMP" in torch.__config__.parallel_info())
    assert threads_for(0) == threads_for(MIN_ROWS) == 1
    assert threads_for(1 << 20) == torch.get_num_threads()
