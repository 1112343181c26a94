"""Channels of a layer's input scaled to one range, before it is rounded with one step for all channels.

A layer norm gives each channel the range that is wanted, if the weights of the linear layer behind it undo that (arXiv
2211.10438, section 4). The network computes the same function. Weights lose little: on the embedded classifier their
rounding makes a twentieth of the error that the rounding of inputs makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from model.bundle import Bundle
from model.families.registry import backbone_of
from model.net.layers import ChannelMLP, chains_of
from model.net.network import backbone_network_of, build_network
from model.net.weights import BundleMetadata, load_weights, write_bundle
from model.predictor import Predictor, reference_answer
from model.quantisation.agreement import batch_of
from model.types import ModelInput

PICTURES = 64
LEAST_SHARE = 1e-2
"""Of the largest range: that of a channel which hardly changes."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A linear layer, and the norm that alone makes its input."""

    norm: nn.LayerNorm
    linear: nn.Linear


def equalised(
    bundle: Bundle, inputs: Sequence[ModelInput], store: Path, on_progress: Callable[[int], None] = lambda _: None
) -> Bundle:
    """Write a bundle of the same function and name into `store`, whose layers' inputs have channels of similar ranges.

    Args:
        bundle: of float weights.
        inputs: pictures as the model's inputs, which measure the ranges.
        store: a folder of bundles.
        on_progress: gets the number of inputs that are done.

    Raises:
        As `Predictor` and `write_bundle`.
    """
    config = bundle.config
    network = build_network(config.architecture, len(config.labels))
    load_weights(network, bundle)
    # The layers of other networks are merged when they are loaded.
    if backbone_network_of(backbone_of(config.architecture.backbone)).reparameterise is None:
        pairs = _pairs(network)
        lows, highs = _ranges(bundle, network, pairs, inputs, on_progress)
        for pair, low, high in zip(pairs, lows, highs, strict=True):
            _equalise(pair, low, high)
    metadata = BundleMetadata(
        name=config.name,
        architecture=config.architecture,
        labels=config.labels,
        preprocessing=config.preprocessing,
        postprocessing=config.postprocessing,
        precision="fp32",
        source=config.source,
        accuracy=config.accuracy,
    )
    return write_bundle(store, metadata, network, reference_answer)


def _pairs(network: nn.Module) -> list[_Pair]:
    found = []
    for parent in network.modules():
        for chain in chains_of(parent):
            for norm, layer in pairwise(parent.get_submodule(key) for key in chain):
                linear = layer.fc1 if isinstance(layer, ChannelMLP) else layer
                if not (isinstance(norm, nn.LayerNorm) and isinstance(linear, nn.Linear)):
                    continue
                # Both biases move the middle of each channel's range to zero.
                biased = norm.bias is not None and linear.bias is not None
                if biased and norm.normalized_shape == (linear.in_features,):
                    found.append(_Pair(norm, linear))
    return found


def _ranges(
    bundle: Bundle,
    network: nn.Module,
    pairs: Sequence[_Pair],
    inputs: Sequence[ModelInput],
    on_progress: Callable[[int], None],
) -> tuple[list[Tensor], list[Tensor]]:
    """The least and the largest value of each channel of the layers' inputs, (C,) each."""
    lows: dict[nn.Module, Tensor] = {}
    highs: dict[nn.Module, Tensor] = {}

    def observe(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        low, high = given[0].flatten(0, -2).aminmax(dim=0)
        lows[layer] = torch.minimum(lows.get(layer, low), low)
        highs[layer] = torch.maximum(highs.get(layer, high), high)

    handles = [pair.linear.register_forward_pre_hook(observe) for pair in pairs]
    predictor = Predictor(bundle, torch.device("cpu"), network=network)
    number = min(PICTURES, len(inputs))
    for done in range(number):
        predictor.predict(batch_of(bundle.config, inputs[done * len(inputs) // number]))
        on_progress(done + 1)
    for handle in handles:
        handle.remove()
    nowhere = torch.zeros(1)  # a layer that the forward pass did not reach is left as it is
    return [lows.get(pair.linear, nowhere) for pair in pairs], [highs.get(pair.linear, nowhere) for pair in pairs]


@torch.no_grad()
def _equalise(pair: _Pair, low: Tensor, high: Tensor) -> None:
    """Centre each channel of the linear layer's input, and scale it to the geometric mean of all ranges."""
    norm, linear = pair.norm, pair.linear
    ranges = (high - low).double()
    if not float(ranges.max()) > 0:
        return
    ranges = ranges.clamp_min(LEAST_SHARE * float(ranges.max()))
    scales, middle = ranges / ranges.log().mean().exp(), (low + high).double() / 2
    linear.bias.copy_(linear.bias.double() + linear.weight.double() @ middle)
    linear.weight.copy_(linear.weight.double() * scales)
    norm.bias.copy_((norm.bias.double() - middle) / scales)
    norm.weight.copy_(norm.weight.double() / scales)
