"""How much a network's output changes when a part of its layers is quantised."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.bundle import Bundle
from model.net.cpu.int8 import convert_to_int8
from model.net.cpu.onednn import convert_to_onednn
from model.net.fold import fold_batch_norm
from model.net.normalise import Normalise
from model.net.quantisation import InputRanges
from model.predictor import load_network, output_tensors
from model.quantisation.ranges import Unit
from model.quantisation.rounding import Integers, set_integers
from model.spec import PaddedSpec
from model.types import ModelInput, Task

PICTURES = 4
"""Of a classifier. Inputs of the others have more positions, and take longer: one is enough."""


@torch.inference_mode()
def unit_errors(
    bundle: Bundle,
    units: Sequence[Unit],
    integers: Integers,
    inputs: Sequence[ModelInput],
    on_progress: Callable[[int], None],
) -> list[float]:
    """For each unit, the mean squared error of the outputs, by their mean square, if it alone is quantised.

    Infinite for layers that the network's forward pass does not reach, such as a second stage's: it is not known.
    """
    config = bundle.config
    network = load_network(bundle)
    fold_batch_norm(network)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalise = Normalise(config.preprocessing)
    padded = isinstance(config.preprocessing, PaddedSpec)
    number = min(PICTURES if config.task is Task.CLASSIFY else 1, len(inputs))
    # Spread over them: in a folder those of one kind are neighbours.
    pictures = [
        normalise(torch.tensor(one.pixels)[None], [one.geometry.content] if padded else None)
        for one in (inputs[at * len(inputs) // number] for at in range(number))
    ]
    expected = _outputs(network, {}, {}, pictures)
    errors = []
    for number, unit in enumerate(units, start=1):
        found = _outputs(network, unit.ranges, integers, pictures)
        squares = [
            float((one - other).square().mean() / other.square().mean().clamp_min(1e-12))
            for one, other in zip(found, expected, strict=True)
        ]
        errors.append(sum(squares) / len(squares) or math.inf)
        on_progress(number)
    return errors


def _outputs(network: nn.Module, ranges: InputRanges, integers: Integers, pictures: Sequence[Tensor]) -> list[Tensor]:
    """The network is left as it is."""
    converted = copy.deepcopy(network)
    set_integers(converted, list(ranges), integers)
    convert_to_int8(converted, ranges)
    convert_to_onednn(converted)
    return [tensor for picture in pictures for tensor in output_tensors(converted(picture))]
