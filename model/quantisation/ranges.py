"""The ranges of the inputs of a network's layers, measured on pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.bundle import Bundle
from model.families.registry import family_of
from model.net.cpu.int8 import takes_int8
from model.net.fold import fold_batch_norm
from model.net.layers import ChannelMLP
from model.net.network import meta_network, network_of
from model.net.quantisation import InputRange, range_between
from model.predictor import Predictor, load_network
from model.quantisation.agreement import batch_of
from model.types import ModelInput


@dataclass(slots=True)
class _Seen:
    low: float = 0.0
    high: float = 0.0
    products: int = 0


@dataclass(frozen=True, slots=True)
class Unit:
    """Layers that are quantised together: a channel MLP's two, or one alone. `products`: their multiplications."""

    ranges: dict[str, InputRange]
    products: int


def measure_units(
    bundle: Bundle, inputs: Sequence[ModelInput], on_progress: Callable[[int], None] = lambda _: None
) -> list[Unit]:
    """The units that can be quantised, with the ranges of their inputs; from input to output of the network.

    A range holds all values that were seen. Ranges that leave out rare large values round the others less, but answers
    agree less often: such values matter. The layer that computes the scores is left out: it is small, and its rounding
    is that of the scores.

    Raises:
        As `Predictor`.
    """
    network = load_network(bundle)
    fold_batch_norm(network)  # as it will run
    score_layer = network_of(family_of(bundle.config.architecture)).score_layer
    last = None if score_layer is None else score_layer(network)
    # A layer that was merged from others as the network was loaded has no weight in the file.
    stored = meta_network(bundle.config.architecture, len(bundle.config.labels)).state_dict()
    layers = {
        name: layer
        for name, layer in network.named_modules()
        if takes_int8(layer) and layer is not last and f"{name}.weight" in stored
    }
    seen: dict[str, _Seen] = {}
    handles = [layer.register_forward_hook(_observer(name, seen)) for name, layer in layers.items()]
    predictor = Predictor(bundle, torch.device("cpu"), network=network)
    for number, model_input in enumerate(inputs, start=1):
        predictor.predict(batch_of(bundle.config, model_input))
        on_progress(number)
    for handle in handles:
        handle.remove()
    return list(_units(network, seen))


def _observer(name: str, seen: dict[str, _Seen]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def observe(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        found = seen.setdefault(name, _Seen())
        low, high = inputs[0].aminmax()
        found.low, found.high = min(found.low, float(low)), max(found.high, float(high))
        weight = layer.weight
        assert isinstance(weight, Tensor)
        found.products += out.numel() // len(weight) * weight.numel()

    return observe


def _units(network: nn.Module, seen: dict[str, _Seen]) -> list[Unit]:
    units: dict[str, list[str]] = {}
    for name in seen:
        parent = name.rpartition(".")[0]
        in_mlp = isinstance(network.get_submodule(parent), ChannelMLP)
        units.setdefault(parent if in_mlp else name, []).append(name)
    return [
        Unit(
            {name: range_between(seen[name].low, seen[name].high) for name in names},
            sum(seen[name].products for name in names),
        )
        for names in units.values()
    ]
