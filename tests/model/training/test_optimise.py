from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from model.net.build import build_network
from model.spec import BACKBONES, ClassifierSpec
from model.training.optimise import Muon, optimisers, orthogonalise


@pytest.mark.parametrize("shape", [(2, 8, 32), (2, 32, 8), (1, 16, 16)])
def test_all_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    """Directions that the gradient hardly knows are followed like the strong ones, and none is turned."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrices)
    values = torch.linalg.svdvals(result)
    assert result.shape == matrices.shape
    assert values.min() > 0.5
    assert values.max() < 1.5
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert (torch.diagonal(left.mT @ result @ right.mT, dim1=1, dim2=2) > 0.4).all()


def test_a_step_has_the_length_of_an_adam_step() -> None:
    """A parameter moves by about 0.2 times the learning rate a value, whatever the gradient's size, and decays."""
    weight = nn.Parameter(torch.ones(16, 4, 3, 3))
    weight.grad = 1e-6 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], learning_rate=0.1, weight_decay=0.5).step()
    moved = weight.detach() - (1 - 0.1 * 0.5)
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.25)


def test_momentum_follows_the_gradients() -> None:
    """Step by step, a matrix reaches the target that its loss names."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(8, 12, generator=generator)
    weight = nn.Parameter(torch.zeros(8, 12))
    optimiser = Muon([weight], learning_rate=0.2, weight_decay=0.0)
    for step in range(300):
        optimiser.param_groups[0]["lr"] = 0.2 * (1 - step / 300)
        optimiser.zero_grad()
        loss = (weight - target).square().mean()
        loss.backward()
        optimiser.step()
    assert math.sqrt(loss.item()) < 0.02


def test_every_parameter_has_one_optimiser() -> None:
    """Nothing is left untrained or trained twice; filters of one channel and the output layer are AdamW's."""
    network = build_network(ClassifierSpec(backbone=BACKBONES["s"]), 10)
    muon, adam = ({p for group in one.param_groups for p in group["params"]} for one in optimisers(network, 1e-3, 0.1))
    assert muon.isdisjoint(adam)
    assert muon | adam == set(network.parameters())
    names = {name for name, parameter in network.named_parameters() if parameter in adam and parameter.ndim > 1}
    assert {name.rsplit(".", 2)[-2] for name in names} == {"0", "connect", "head"}
