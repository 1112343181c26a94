"""The layers of kernels.c: torch's results, whatever a row's length, and the same ones wherever it stands."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.net import layers
from model.net.cpu import rows
from model.net.cpu.rows import AttentionProduct, LayerNorm, ScaleAndShift, is_row_norm, softmax_, to_bytes
from model.net.quantisation import range_between

pytestmark = pytest.mark.skipif(not rows.AVAILABLE, reason="kernels.c is not compiled, or no AVX-512 with bfloat16")

LENGTHS = (1, 15, 16, 17, 46, 128, 1000)
TOLERANCE = 0.01
HALF = torch.bfloat16


def values(*shape: int, spread: float = 3.0) -> Tensor:
    torch.manual_seed(sum(shape))
    return torch.randn(shape) * spread + 1


def norm_of(channels: int, *, bias: bool = True) -> nn.LayerNorm:
    norm = nn.LayerNorm(channels, eps=1e-6, bias=bias)
    nn.init.normal_(norm.weight)
    return norm


@pytest.mark.parametrize("length", LENGTHS)
@torch.inference_mode()
def test_a_layer_norm_equals_torchs_in_float32(length: int) -> None:
    """With full vectors and without, of any layout, and of no rows; the result is rounded once."""
    norm = norm_of(length)
    made = LayerNorm(norm)
    for x in (values(3, 5, length), values(5, 3, length).transpose(0, 1), values(0, length)):
        x = x.to(HALF)
        expected = norm(x.float()).to(HALF)
        found = made(x)
        assert found.dtype == HALF
        torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=1e-5)


@torch.inference_mode()
def test_a_layer_norm_without_bias_or_of_other_shapes() -> None:
    """A missing bias is zero; norms over several axes, without weights or of very long rows stay torch's."""
    norm = norm_of(33, bias=False)
    x = values(4, 33).to(HALF)
    torch.testing.assert_close(LayerNorm(norm)(x), norm(x.float()).to(HALF), rtol=TOLERANCE, atol=1e-5)
    assert is_row_norm(norm, HALF)
    assert not is_row_norm(norm, torch.float32)
    for other in (nn.LayerNorm((4, 5)), nn.LayerNorm(9, elementwise_affine=False), nn.LayerNorm(rows.LONGEST + 1)):
        assert not is_row_norm(other, HALF)


@pytest.mark.parametrize("length", LENGTHS)
@torch.inference_mode()
def test_bytes_are_those_of_torch(length: int) -> None:
    """A float becomes the nearest byte of its range, cut at its ends, also right behind a norm."""
    norm, x, found = norm_of(length), values(7, length).to(HALF), range_between(-2.0, 2.5)

    def expected(floats: Tensor) -> Tensor:
        return ((floats.float() / found.scale).round() + found.zero_point).clamp(0, 255)

    for made, floats in ((LayerNorm(norm, found)(x), norm(x.float())), (to_bytes(x, found), x)):
        assert made.dtype == torch.uint8
        # A sum in another order may round to the neighbour.
        assert float((made.float() - expected(floats)).abs().max()) <= 1
        assert float((made.float() != expected(floats)).float().mean()) < 0.01
    assert torch.equal(
        to_bytes(torch.tensor([-1e9, 1e9]).to(HALF), found).int(), torch.tensor([0, 255], dtype=torch.int32)
    )


@torch.inference_mode()
def test_bytes_keep_the_layout_of_memory() -> None:
    """Channels-last stays so, and a view of other strides is read at its own values."""
    x, found = values(2, 6, 4, 4).to(HALF).to(memory_format=torch.channels_last), range_between(-8, 8)
    assert to_bytes(x, found).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(to_bytes(x[:, ::2], found), to_bytes(x, found)[:, ::2])


@pytest.mark.parametrize("length", LENGTHS)
@torch.inference_mode()
def test_a_softmax_equals_torchs(length: int) -> None:
    """Scaled, with a bias for every head and without; each row adds up to one."""
    x, bias = values(6, 4, length).to(HALF), values(3, 4, length).to(HALF)
    for added, expected in ((bias, x.float() * 0.3 + bias.float().repeat(2, 1, 1)), (None, x.float() * 0.3)):
        found = softmax_(x.clone(), 0.3, added)
        torch.testing.assert_close(found.float(), expected.softmax(2), rtol=TOLERANCE, atol=1e-6)
    far = torch.tensor([[0.0, -1000.0, -90.0], [1e30, -1e30, 1e30]]).to(HALF)
    torch.testing.assert_close(softmax_(far.clone(), 1.0, None), far.float().softmax(1).to(HALF))


@torch.inference_mode()
def test_what_is_not_finite_stays_so() -> None:
    """NaN and infinity are an error of the answer: no layer may turn them into numbers."""
    for bad in (math.nan, math.inf, -math.inf):
        x = values(2, 40).to(HALF)
        x[1, 17] = bad
        norm = LayerNorm(norm_of(40))(x)
        assert norm[0].isfinite().all()
        assert norm[1].isnan().all()
        scaled = ScaleAndShift(torch.ones(40), torch.zeros(40), HALF)(x.view(2, 40, 1, 1))
        assert not scaled[1, 17].isfinite().any()
        if bad != -math.inf:
            assert softmax_(x.clone(), 1.0, None)[1].isnan().all()


@torch.inference_mode()
def test_a_scale_and_shift_by_channel() -> None:
    """Channels-last maps, with numbers of channels that fill no vector."""
    for channels in LENGTHS:
        x, scale, shift = values(2, channels, 3, 5).to(HALF), values(channels), values(channels)
        expected = x.float() * scale[:, None, None] + shift[:, None, None]
        found = ScaleAndShift(scale, shift, HALF)(x.to(memory_format=torch.channels_last))
        assert found.dtype == HALF
        torch.testing.assert_close(found.float(), expected, rtol=TOLERANCE, atol=1e-5)


@torch.inference_mode()
def test_an_attention_product_equals_torchs_operator() -> None:
    """Queries, keys and values may be views, as a joint projection gives them; a bias is optional."""
    q, k, v = values(2, 11, 3, 4, 8, spread=1.0).to(HALF).permute(2, 0, 3, 1, 4)
    for bias in (None, values(4, 11, 11).to(HALF)):
        mask = None if bias is None else bias.float()[None]
        expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
        for product in (AttentionProduct(layers.AttentionProduct()), layers.AttentionProduct()):
            torch.testing.assert_close(product(q, k, v, bias).float(), expected, rtol=0.03, atol=0.03)


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """The same bits, alone and among others: so an answer does not depend on its batch."""
    x = values(9, 97).to(HALF)
    norm = LayerNorm(norm_of(97))
    for at in range(len(x)):
        assert torch.equal(norm(x)[at], norm(x[at : at + 1])[0])
        assert torch.equal(softmax_(x.clone(), 1.0, None)[at], softmax_(x[at : at + 1].clone(), 1.0, None)[0])
