"""Int8: layers that multiply bytes, bundles of such weights, and how they are made."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from benchmarks.batch_independence import Difference, batch_difference, pictures, thread_difference
from model.bundle import WEIGHTS_FILE, Bundle, read_bundle
from model.errors import BundleInvalid
from model.net.cpu import rows
from model.net.cpu.int8 import (
    Int8ChannelMLP,
    Int8Conv,
    Int8Linear,
    Int8PointwiseConv,
    convert_to_int8,
    int8_accelerates,
)
from model.net.layers import ChainedModule, Chains, ChannelMLP
from model.net.quantisation import InputRange, quantise_weight, range_between
from model.net.weights import load_weights, read_input_ranges
from model.precision import Precision, candidates_of, make_predictor, select_precision
from model.predictor import load_network
from model.quantisation.pictures import folder_inputs, halves, reference_variants
from model.quantisation.quantise import quantise
from model.types import ModelInput, Size
from tests.model.tiny_models import tiny_bundle

CPU = torch.device("cpu")
needs_int8 = pytest.mark.skipif(not int8_accelerates(), reason="this CPU has no instructions for products of bytes")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_weight_that_is_quantised_again_has_the_same_integers() -> None:
    """Also if its channels were scaled in between, as folding a batch norm does: nothing is lost by storing it."""
    weight = torch.randn(6, 4, 3, 3)
    weight[2] = 0
    integers, scales = quantise_weight(weight)
    factors = torch.tensor([3.0, -0.1, 1.0, 7.0, 1e-3, 1.0]).view(-1, 1, 1, 1)
    again, _ = quantise_weight(integers.float() * scales.view(-1, 1, 1, 1) * factors)
    assert torch.equal(again.float() * factors.sign(), integers.float())
    assert float((integers.float() * scales.view(-1, 1, 1, 1) - weight).abs().max()) <= float(scales.max()) / 2 + 1e-6


@pytest.mark.parametrize(("low", "high"), [(-2.0, 5.0), (0.0, 3.0), (1.0, 3.0), (-4.0, -1.0), (0.0, 0.0)])
def test_zero_is_a_value_of_every_range(low: float, high: float) -> None:
    """A convolution's padding is zero, and must stay so."""
    found = range_between(low, high)
    assert 0 <= found.zero_point <= 255
    assert (0 - found.zero_point) * found.scale <= low + found.scale
    assert (255 - found.zero_point) * found.scale >= high - found.scale


def fake_quantised(x: torch.Tensor, found: InputRange) -> torch.Tensor:
    integers = ((x / found.scale).round() + found.zero_point).clamp(0, 255)
    return (integers - found.zero_point) * found.scale


def dequantised(weight: torch.Tensor) -> torch.Tensor:
    integers, scales = quantise_weight(weight)
    return integers.float() * scales.view(-1, *(1,) * (weight.ndim - 1))


@needs_int8
@torch.inference_mode()
def test_layers_compute_what_their_ranges_and_weights_determine() -> None:
    """A convolution with padding and a linear layer equal the float layers on rounded inputs and weights."""
    conv = nn.Conv2d(8, 12, 3, stride=2, padding=1)
    x = torch.randn(2, 8, 9, 7).to(memory_format=torch.channels_last)
    found = range_between(float(x.min()), float(x.max()))
    expected = nn.functional.conv2d(fake_quantised(x, found), dequantised(conv.weight), conv.bias, 2, 1).relu()
    torch.testing.assert_close(Int8Conv(conv, found, relu=True)(x), expected, rtol=1e-4, atol=1e-4)
    linear, rows = nn.Linear(8, 5), torch.randn(3, 4, 8)
    found = range_between(-3.0, 3.0)
    plain = nn.functional.linear(fake_quantised(rows, found), dequantised(linear.weight), linear.bias)
    layer, addend = Int8Linear(linear.weight, linear.bias, found), torch.randn(3, 4, 5)
    torch.testing.assert_close(layer(rows), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.plus(rows, addend), plain + addend, rtol=1e-4, atol=1e-4)


@needs_int8
@torch.inference_mode()
def test_a_channel_mlp_hands_bytes_on() -> None:
    """Its output is that of the float layers, but for the rounding of their inputs and weights."""
    mlp = ChannelMLP(16, 32)
    x, residual = torch.randn(2, 5, 5, 16), torch.randn(2, 5, 5, 16)
    made = Int8ChannelMLP(mlp, range_between(-4, 4), range_between(-0.2, 3))
    assert float((made(x, residual) - mlp(x, residual)).abs().max()) < 0.05


class NormAndMLP(ChainedModule):
    """As in ConvMLP: a norm whose output a channel MLP alone takes."""

    chains: ClassVar[Chains] = (("norm", "mlp"),)

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(16), ChannelMLP(16, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.mlp(self.norm(x), x)
        return out


@needs_int8
@torch.inference_mode()
def test_between_int8_layers_numbers_may_be_bfloat16() -> None:
    """The output is that of the float layers, but for both kinds of rounding; where a norm can, it hands on bytes."""
    plain = NormAndMLP()
    made, x = copy.deepcopy(plain), torch.randn(2, 5, 5, 16)
    convert_to_int8(made, {"mlp.fc1": range_between(-4, 4), "mlp.fc2": range_between(-0.2, 3)}, torch.bfloat16)
    made.to(torch.bfloat16)
    found = made(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert float((found.float() - plain(x)).abs().max()) < 0.08
    if rows.AVAILABLE:
        assert made.norm(x.bfloat16()).dtype == torch.uint8


class Outer(ChainedModule):
    """As in RepMLPNet: one convolution ends a chain and begins another."""

    chains: ClassVar[Chains] = (("norm", "inner.0"),)

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner = nn.Identity(), nn.Sequential(nn.Conv2d(8, 16, 1), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(self.norm(x))
        return out


@needs_int8
@torch.inference_mode()
def test_an_activation_is_fused_into_a_convolution_of_two_chains() -> None:
    """It is not computed in a pass of its own, and the output is that of the float layers."""
    plain = Outer()
    made, x = copy.deepcopy(plain), torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)
    convert_to_int8(made, {"inner.0": range_between(-4, 4)})
    assert [type(layer) for layer in made.inner] == [Int8PointwiseConv, nn.Identity]
    assert float((made(x) - plain(x)).abs().max()) < 0.05


def variants(bundle: Bundle) -> list[ModelInput]:
    return list(reference_variants(bundle.config.preprocessing))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def plain(store: Path) -> Bundle:
    return tiny_bundle(store, "classifier")


@pytest.fixture(scope="module")
def quantised(store: Path, plain: Bundle) -> Bundle:
    return quantise(plain, variants(plain), store, "small", minimum=0.5)


@needs_int8
def test_a_quantised_bundle_is_read_back(plain: Bundle, quantised: Bundle) -> None:
    """Its weights are bytes; each precision runs it; its answers have the agreement that its config has."""
    config = read_bundle(quantised.folder).config
    made = config.quantisation
    assert config.precision == "int8"
    assert made is not None
    assert made.made_from == f"tiny {plain.config.version}"
    assert (made.pictures, made.agreement_pictures) == (8, 8)
    assert made.agreement["top1"] >= 0.5
    tensors = safetensors.torch.load_file(quantised.weights_path)
    stored = {name for name, tensor in tensors.items() if tensor.dtype == torch.int8}
    assert stored == {f"{layer}.weight" for layer in read_input_ranges(quantised)}
    assert len(stored) == made.layers
    assert "head.weight" not in stored  # the scores' own layer stays float32
    before, after = load_network(plain).state_dict(), load_network(quantised).state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0.03 * float(tensor.abs().max()) + 1e-6)
    assert Precision.INT8 in candidates_of(quantised, CPU)
    assert Precision.INT8 not in candidates_of(plain, CPU)
    selection = select_precision(quantised, CPU, load_network(quantised))
    assert {trial.precision for trial in selection.trials} == set(candidates_of(quantised, CPU))


@needs_int8
@pytest.mark.parametrize("family", ["retinanet", "mask_rcnn", "semantic_fpn"])
def test_other_tasks_are_quantised(tmp_path: Path, family: str) -> None:
    """Detectors and segmentation: with their own figure of agreement."""
    plain = tiny_bundle(tmp_path, family)
    made = quantise(plain, variants(plain)[:4], tmp_path, "small", minimum=0.0, allow=True).config.quantisation
    assert made is not None
    assert set(made.agreement) == ({"miou", "pixels"} if family == "semantic_fpn" else {"ap50"})
    assert all(value > 0.5 for value in made.agreement.values())


@needs_int8
def test_an_int8_answer_is_the_same_in_every_batch_and_on_several_cores(quantised: Bundle) -> None:
    """To the bit: ranges are fixed, and sums of integers are exact."""
    predictor = make_predictor(quantised, CPU, Precision.INT8, load_network(quantised))
    inputs = pictures(quantised, 32, Size(64, 96))
    assert batch_difference(predictor, inputs, (1, 2, 3, 7, 32)) == Difference()
    assert thread_difference(predictor, inputs[:2], (1, 2, 3)) == Difference()


@needs_int8
def test_answers_that_agree_too_little_are_refused_with_figures(tmp_path: Path) -> None:
    """A network of noise: nothing is written, unless it is allowed. Layers are made float32 before it is refused."""
    plain = tiny_bundle(tmp_path, "classifier")
    with pytest.raises(BundleInvalid, match=r"agree too little: top1 \d\.\d{4} on 8 pictures; the least is 1\.1"):
        quantise(plain, variants(plain), tmp_path, "small", minimum=1.1)
    assert not (tmp_path / "small").exists()
    made = quantise(plain, variants(plain), tmp_path, "small", minimum=1.1, allow=True).config.quantisation
    assert made is not None


def test_int8_needs_int8_weights(plain: Bundle) -> None:
    """A model of float weights is not run in a precision that it does not have."""
    with pytest.raises(BundleInvalid, match="models quantize"):
        make_predictor(plain, CPU, Precision.INT8, load_network(plain))


@needs_int8
@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("weight_scale", None, "weight_scale is missing"),
        ("weight_scale", torch.tensor(torch.nan), "weight_scale must be a positive float32 for each of"),
        ("input_scale", torch.tensor(0.0), "input_scale must be a positive float32"),
        ("input_zero_point", torch.tensor(-1, dtype=torch.int8), "input_zero_point must be a uint8"),
    ],
)
def test_damaged_scales_are_named(
    tmp_path: Path, quantised: Bundle, name: str, value: torch.Tensor | None, problem: str
) -> None:
    """A file whose scales cannot be right is refused when it is loaded, not served."""
    tensors = safetensors.torch.load_file(quantised.weights_path)
    key = f"{min(read_input_ranges(quantised))}.{name}"
    before = tensors.pop(key)
    if value is not None:
        tensors[key] = value.expand(before.shape).clone()
    safetensors.torch.save_file(tensors, tmp_path / WEIGHTS_FILE)
    damaged = Bundle(tmp_path, quantised.config)
    with pytest.raises(BundleInvalid, match=problem):
        load_weights(load_network(quantised), damaged)


def test_pictures_come_from_a_folder(tmp_path: Path, plain: Bundle) -> None:
    """Subfolders are read; what is no picture is left out; one picture is too few."""
    (tmp_path / "inner").mkdir()
    for number in range(3):
        picture = np.full((40, 50, 3), 60 * number, np.uint8)
        from PIL import Image

        Image.fromarray(picture).save(tmp_path / "inner" / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    found = list(folder_inputs(tmp_path, plain.config.preprocessing))
    assert len(found) == 3
    assert len(list(folder_inputs(tmp_path, plain.config.preprocessing, most=2))) == 2
    first, second = halves(found)
    assert (len(first), len(second)) == (2, 1)
    with pytest.raises(BundleInvalid, match="found 1"):
        halves(found[:1])
