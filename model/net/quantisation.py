"""Numbers of eight bits: the range of a layer's input, and a layer's weight with a scale for each output channel.

A float x is stored as the integer round(x / scale) + zero_point, cut to the integers that there are (arXiv 1712.05877,
section 2.1). Weights have no zero point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 255
"""The largest uint8."""
WEIGHT_LEVELS = 127
"""The largest magnitude of a weight; -128 is not used."""


@dataclass(frozen=True, slots=True)
class InputRange:
    """How a layer's input is stored as uint8: float = (integer - zero_point) * scale."""

    scale: float
    zero_point: int


InputRanges = Mapping[str, InputRange]
"""By the name of the layer in its network."""


def range_between(low: float, high: float) -> InputRange:
    """The range of the floats from `low` to `high`, widened so that zero is one of its values."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / LEVELS or 1.0
    return InputRange(scale, min(LEVELS, max(0, round(-low / scale))))


def quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A float weight (D, ...) as int8 (D, ...), and its scales, float32 (D,).

    Weights that are quantised again, scaled by output channel or not, give the same integers.
    """
    largest = weight.detach().flatten(1).abs().amax(dim=1).double()
    scales = torch.where(largest > 0, largest / WEIGHT_LEVELS, torch.ones_like(largest))
    integers = (weight.detach().double() / _by_channel(scales, weight)).round()
    return integers.clamp(-WEIGHT_LEVELS, WEIGHT_LEVELS).to(torch.int8), scales.float()


def dequantise_weight(integers: Tensor, scales: Tensor) -> Tensor:
    """The float32 weight of int8 (D, ...) and scales (D,)."""
    return integers.float() * _by_channel(scales, integers)


SCALE, INPUT_SCALE, INPUT_ZERO_POINT = "weight_scale", "input_scale", "input_zero_point"
"""Tensors of a layer in a file of int8 weights, beside `weight`: float32 (D,), float32 (), uint8 ()."""


def quantised_tensors(tensors: Mapping[str, Tensor], ranges: InputRanges) -> dict[str, Tensor]:
    """A state dict with the weights of the layers in `ranges` as int8, and their scales and ranges."""
    made = dict(tensors)
    for layer, found in ranges.items():
        made[f"{layer}.weight"], made[f"{layer}.{SCALE}"] = quantise_weight(tensors[f"{layer}.weight"])
        made[f"{layer}.{INPUT_SCALE}"] = torch.tensor(found.scale, dtype=torch.float32)
        made[f"{layer}.{INPUT_ZERO_POINT}"] = torch.tensor(found.zero_point, dtype=torch.uint8)
    return made


def dequantised_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, InputRange]]:
    """The float32 state dict of what `quantised_tensors` made, and the ranges. Without int8 weights: as it was.

    Raises:
        ValueError: an int8 weight has no scales or range, or one that is not valid.
    """
    made, ranges = dict(tensors), {}
    for name, weight in tensors.items():
        if weight.dtype != torch.int8 or not name.endswith(".weight"):
            continue
        layer = name.removesuffix(".weight")
        try:
            scales, scale, zero_point = (made.pop(f"{layer}.{part}") for part in (SCALE, INPUT_SCALE, INPUT_ZERO_POINT))
        except KeyError as error:
            raise ValueError(f"{name} is int8, and {error.args[0]} is missing") from error
        if scales.dtype != torch.float32 or scales.shape != weight.shape[:1] or not _positive(scales):
            raise ValueError(f"{layer}.{SCALE} must be a positive float32 for each of {len(weight)} channels")
        if scale.dtype != torch.float32 or scale.ndim or not _positive(scale):
            raise ValueError(f"{layer}.{INPUT_SCALE} must be a positive float32")
        if zero_point.dtype != torch.uint8 or zero_point.ndim:
            raise ValueError(f"{layer}.{INPUT_ZERO_POINT} must be a uint8")
        made[name] = dequantise_weight(weight, scales)
        ranges[layer] = InputRange(float(scale), int(zero_point))
    return made, ranges


def _positive(values: Tensor) -> bool:
    return all(0 < value < math.inf for value in values.flatten().tolist())


def _by_channel(scales: Tensor, weight: Tensor) -> Tensor:
    return scales.view(-1, *(1,) * (weight.ndim - 1))
