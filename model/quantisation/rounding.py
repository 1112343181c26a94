"""Weights as integers that change a layer's outputs least on the inputs that it sees (arXiv 2210.17323).

Each weight rounded to the nearest integer is best only if a layer's inputs do not depend on each other. They do: what
one weight's rounding changes, the weights rounded after it can make up for. This needs the second moments of the inputs
alone. On the embedded classifier it leaves a twelfth of the error that the rounding of all weights makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.bundle import Bundle
from model.net.fold import fold_batch_norm
from model.net.quantisation import WEIGHT_LEVELS, quantise_weight
from model.predictor import Predictor, load_network
from model.quantisation.agreement import batch_of
from model.types import ModelInput

PICTURES = 64
POSITIONS = 128
"""Of a picture, at which a layer's inputs are taken into account, each time that it is called."""
MOMENT_BYTES = 256 << 20
"""Of the layers that are measured in one pass over the pictures."""
DAMPING = 0.01
"""Of the mean second moment, added to each: inputs that were hardly seen do not decide."""

Integers = Mapping[str, Tensor]
"""int8 weights, shaped as the layer's weight, by the name of the layer."""


def round_weights(
    bundle: Bundle,
    names: Sequence[str],
    inputs: Sequence[ModelInput],
    on_progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Tensor]:
    """The integers of these layers' weights, with the scales of `quantise_weight`.

    A layer whose input channels a batch norm scales, or that is padded, is left out: it is rounded once more when it is
    loaded.

    Args:
        bundle: of float weights.
        names: of layers that have weights in the file.
        inputs: pictures as the model's inputs; some of them are used.
        on_progress: gets the number of layers that are done.

    Raises:
        As `Predictor`.
    """
    network = load_network(bundle)
    stored = {name: _weight(network.get_submodule(name)).clone() for name in names}
    fold_batch_norm(network)
    layers = {name: network.get_submodule(name) for name in names}
    rounded_once = [name for name in names if scaled_by_row(stored[name], _weight(layers[name]))]
    predictor = Predictor(bundle, torch.device("cpu"), network=network)
    step = max(1, len(inputs) // PICTURES)
    batches = [batch_of(bundle.config, one) for one in inputs[::step][:PICTURES]]
    found: dict[str, Tensor] = {}
    done = len(names) - len(rounded_once)
    for group in _groups(rounded_once, layers):
        moments: dict[str, Tensor] = {}
        handles = [layers[name].register_forward_pre_hook(_observer(name, moments)) for name in group]
        for batch in batches:
            predictor.predict(batch)
        for handle in handles:
            handle.remove()
        for name in group:
            done += 1
            if name in moments:  # a second stage is not reached without proposals
                found[name] = rounded(_weight(layers[name]), moments.pop(name))
            on_progress(done)
    return found


@torch.inference_mode()
def rounded(weight: Tensor, moments: Tensor) -> Tensor:
    """The integers of a weight (D, ...), int8, one column after the other.

    Each row's largest weight keeps its integer, so that the row keeps its scale.

    Args:
        weight: float (D, ...), K values a row.
        moments: (K, K), the sum of x xᵀ of the inputs x.
    """
    rows = weight.flatten(1).double()
    columns = rows.shape[1]
    largest = rows.abs().amax(dim=1, keepdim=True)
    rows = rows * (WEIGHT_LEVELS / torch.where(largest > 0, largest, 1))
    kept = rows.abs().argmax(dim=1)
    moments = moments.double()
    spread = float(moments.diagonal().mean())
    order = moments.diagonal().argsort(descending=True)
    damped = moments[order][:, order] + torch.eye(columns, dtype=torch.float64) * (DAMPING * spread or 1.0)
    # Row k of this factor has what the error of column k means for the columns behind it.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True)
    left, integers = rows[:, order], torch.empty_like(rows)
    for at, column in enumerate(order.tolist()):
        values = torch.where(kept == column, rows[:, column], left[:, at])
        integers[:, column] = values.round().clamp(-WEIGHT_LEVELS, WEIGHT_LEVELS)
        errors = (left[:, at] - integers[:, column]) / factor[at, at]
        left[:, at:] -= errors[:, None] * factor[at, at:]
    return integers.to(torch.int8).view(weight.shape)


@torch.no_grad()
def set_integers(network: nn.Module, names: Sequence[str], integers: Integers) -> None:
    """Give the named layers the floats that their integers stand for, with the scales that their weights have now.

    Rows that a folded batch norm made negative have negative integers in a network that is not folded.
    """
    for name in names:
        if name in integers:
            weight = _weight(network.get_submodule(name))
            values = integers[name].float()
            signs = (weight * values).flatten(1).sum(dim=1).sign()
            _, scales = quantise_weight(weight)
            weight.copy_(values * (signs * scales).view(-1, *(1,) * (weight.ndim - 1)))


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def scaled_by_row(stored: Tensor, folded: Tensor) -> bool:
    """Whether folding multiplied each row of a weight (D, ...) by one number, and changed nothing else."""
    if stored.shape != folded.shape:
        return False
    before, after = stored.flatten(1).double(), folded.flatten(1).double()
    factors = (before * after).sum(dim=1, keepdim=True) / before.square().sum(dim=1, keepdim=True).clamp_min(1e-30)
    return bool(((after - factors * before).abs() <= 1e-4 * after.abs().amax(dim=1, keepdim=True)).all())


def _groups(names: Sequence[str], layers: Mapping[str, nn.Module]) -> Iterator[list[str]]:
    """The names in groups whose moments take `MOMENT_BYTES`, or one layer's."""
    group: list[str] = []
    used = 0
    for name in names:
        size = 4 * _weight(layers[name])[0].numel() ** 2
        if group and used + size > MOMENT_BYTES:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


def _observer(name: str, moments: dict[str, Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    random = torch.Generator().manual_seed(0)

    def observe(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = _rows(layer, inputs[0])
        rows = rows[torch.randperm(len(rows), generator=random)[:POSITIONS]]
        moments[name] = moments.get(name, 0) + rows.T @ rows

    return observe


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer multiplies with each row of its weight: (positions, K)."""
    if isinstance(layer, nn.Conv2d):
        padding = layer.padding
        assert isinstance(padding, tuple)
        patches = functional.unfold(x.float(), layer.kernel_size, layer.dilation, padding, layer.stride)
        return patches.transpose(1, 2).flatten(0, 1)
    return x.float().flatten(0, -2)
