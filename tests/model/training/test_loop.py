from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from model.families.classifier import ClassifierSpec
from model.families.convmlp import CONVMLP_SIZES, ConvMLPSpec
from model.net.network import build_network
from model.training.classify import BreedNet, BreedTraining, ClassifyRecipe
from model.training.data import load_photographs, read_index
from model.training.loop import CHECKPOINT_FILE, LOG_FILE, Muon, Schedule, learning_rate, optimisers, orthogonalise, run

TINY = ConvMLPSpec(
    tokenizer_channels=4, conv_blocks=1, stage_channels=(8, 8, 8), stage_depths=(1, 1, 1), mlp_ratios=(1, 1, 1)
)
SCHEDULE = Schedule(
    epochs=3,
    decay_epochs=2,
    batch_size=4,
    learning_rate=1e-2,
    weight_decay=0.05,
    warmup_epochs=1,
    ema_decay=0.9,
    clip_norm=1.0,
    evaluate_every=3,
    bf16=False,
)


def breed_training(pets: Path) -> BreedTraining:
    index = read_index(pets)
    learn, watch = index.training(), index.held_out()
    torch.manual_seed(0)
    recipe = ClassifyRecipe(sizes=((0.0, 32), (0.5, 48)), test_size=32)
    return BreedTraining(recipe, BreedNet(TINY, 2, maps=True), load_photographs(learn), load_photographs(watch))


def test_a_resumed_run_reaches_the_same_weights(pets: Path, tmp_path: Path) -> None:
    """A run stopped in the middle of an epoch and resumed ends with the same weights, bit for bit."""
    whole = run(breed_training(pets), SCHEDULE, tmp_path / "whole")
    run(breed_training(pets), SCHEDULE, tmp_path / "stopped", stop_after=3)
    resumed = run(breed_training(pets), SCHEDULE, tmp_path / "stopped")
    early = run(breed_training(pets), SCHEDULE, tmp_path / "early", stop_after=3)
    for (name, expected), found, other in zip(
        whole.state_dict().items(), resumed.state_dict().values(), early.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, found), name
        assert expected.ndim < 2 or not torch.equal(expected, other), name


def test_each_epoch_leaves_a_log_line_and_the_run_a_checkpoint(pets: Path, tmp_path: Path) -> None:
    """Each epoch writes a log line; the run leaves a checkpoint."""
    run(breed_training(pets), SCHEDULE, tmp_path / "out")
    lines = (tmp_path / "out" / LOG_FILE).read_text().splitlines()
    assert len(lines) == SCHEDULE.epochs
    assert "top1" in lines[-1]
    assert (tmp_path / "out" / CHECKPOINT_FILE).is_file()


def test_the_learning_rate_rises_then_falls() -> None:
    """Warm-up to the peak, then linear decay to a hundredth of it."""
    rates = [learning_rate(SCHEDULE, epoch / 10) for epoch in range(31)]
    assert rates.index(max(rates)) == 10
    assert rates[10] == pytest.approx(SCHEDULE.learning_rate)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(SCHEDULE.learning_rate / 100)


def test_a_loss_that_is_not_finite_stops_the_run(pets: Path, tmp_path: Path) -> None:
    """Damaged weights are neither trained on nor saved."""
    training = breed_training(pets)
    head = training.module.classifier.head
    assert isinstance(head, nn.Linear)
    nn.init.constant_(head.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        run(training, dataclasses.replace(SCHEDULE, checkpoint_minutes=0.0), tmp_path / "out")
    assert not (tmp_path / "out" / CHECKPOINT_FILE).exists()


@pytest.mark.parametrize("shape", [(2, 8, 32), (2, 32, 8), (1, 16, 16)])
def test_all_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    """All singular values come near one; singular vectors are kept."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrices)
    values = torch.linalg.svdvals(result)
    assert result.shape == matrices.shape
    assert values.min() > 0.5
    assert values.max() < 1.5
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert (torch.diagonal(left.mT @ result @ right.mT, dim1=1, dim2=2) > 0.4).all()


def test_a_step_has_the_length_of_an_adam_step() -> None:
    """A value moves by about 0.2 times the learning rate, whatever the gradient's size, and decays."""
    weight = nn.Parameter(torch.ones(16, 4, 3, 3))
    weight.grad = 1e-6 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], learning_rate=0.1, weight_decay=0.5).step()
    moved = weight.detach() - (1 - 0.1 * 0.5)
    assert float(moved.square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.25)


def test_momentum_follows_the_gradients() -> None:
    """Step by step, a matrix reaches the minimum of its loss."""
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
    """Each parameter has exactly one optimiser; one-channel filters and output layers have AdamW."""
    network = build_network(ClassifierSpec(backbone=CONVMLP_SIZES["s"]), 10)
    muon, adam = ({p for group in one.param_groups for p in group["params"]} for one in optimisers(network, 1e-3, 0.1))
    assert muon.isdisjoint(adam)
    assert muon | adam == set(network.parameters())
    names = {name for name, parameter in network.named_parameters() if parameter in adam and parameter.ndim > 1}
    assert {name.rsplit(".", 2)[-2] for name in names} == {"0", "connect", "head"}
