"""Weights as integers, chosen for a layer's outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.net.quantisation import dequantise_weight, quantise_weight
from model.quantisation.pictures import reference_variants
from model.quantisation.rounding import round_weights, rounded, scaled_by_row, set_integers
from tests.model.tiny_models import tiny_bundle

pytestmark = pytest.mark.usefixtures("one_thread")


def correlated(rows: int, columns: int) -> Tensor:
    """Inputs that a quarter as many numbers determine, nearly."""
    return torch.randn(rows, columns // 4) @ torch.randn(columns // 4, columns) + 0.05 * torch.randn(rows, columns)


def test_outputs_change_less_than_by_rounding_each_weight_alone() -> None:
    """On inputs that depend on each other, those that were not measured too: less than a third of the error."""
    inputs, weight = correlated(4000, 64), torch.randn(24, 64)
    seen, new = inputs[:2000], inputs[2000:]
    nearest, scales = quantise_weight(weight)
    chosen = rounded(weight, seen.T @ seen)

    def error(integers: Tensor) -> float:
        return float((new @ (dequantise_weight(integers, scales) - weight).T).square().mean())

    assert error(chosen) < error(nearest) / 3
    assert int(chosen.abs().max()) <= 127


def test_integers_are_the_nearest_where_nothing_can_make_up_for_an_error() -> None:
    """Independent inputs, or none that were seen."""
    weight = torch.randn(5, 3, 3, 3)
    nearest, _ = quantise_weight(weight)
    assert torch.equal(rounded(weight, torch.eye(27)), nearest)
    assert torch.equal(rounded(weight, torch.zeros(27, 27)), nearest)


def test_a_weight_has_the_same_integers_when_it_is_quantised_again() -> None:
    """Each row keeps its scale, and its sign in a network that is not folded; a row of zeros stays zero."""
    layer = nn.Linear(64, 6)
    with torch.no_grad():
        layer.weight[2] = 0
    inputs = correlated(500, 64)
    factors = torch.tensor([3.0, -0.1, 1.0, 7.0, -1e-3, 1.0])[:, None]
    integers = rounded(layer.weight * factors, inputs.T @ inputs)
    _, scales = quantise_weight(layer.weight)
    set_integers(layer, [""], {"": integers})
    again, scales_again = quantise_weight(layer.weight)
    assert torch.equal(again, integers * factors.sign().to(torch.int8))
    torch.testing.assert_close(scales_again, scales)


def test_only_layers_that_are_rounded_once_are_chosen_for() -> None:
    """Not those that folding scales by column, or pads."""
    weight = torch.randn(6, 4, 1, 1)
    assert scaled_by_row(weight, weight * torch.randn(6, 1, 1, 1))
    assert not scaled_by_row(weight, weight * torch.tensor([1.0, 2.0, 1.0, 1.0]).view(1, 4, 1, 1))
    assert not scaled_by_row(weight, torch.cat([weight, weight]))


def test_the_layers_of_a_network_are_measured_on_pictures(tmp_path: Path) -> None:
    """Convolutions and linear layers; the progress counts all; the same pictures give the same integers."""
    bundle = tiny_bundle(tmp_path, "classifier")
    names = ["tokenizer.block.0", "stages.0.blocks.0.channel_mlp1.fc1"]
    inputs = list(reference_variants(bundle.config.preprocessing))[:3]
    done: list[int] = []
    found = round_weights(bundle, names, inputs, done.append)
    assert done == [1, 2]
    assert {name: (one.dtype, one.ndim) for name, one in found.items()} == {
        names[0]: (torch.int8, 4),
        names[1]: (torch.int8, 2),
    }
    again = round_weights(bundle, names, inputs)
    assert all(torch.equal(found[name], again[name]) for name in names)
