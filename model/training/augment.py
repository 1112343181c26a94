"""Augmentation of whole batches: colours, erasing, mixing.

All chance comes from the generator that is passed in, so that a step's batch depends on its number alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from model.spec import Normalisation
from model.types import UInt8Array


def to_tensor(pixels: UInt8Array, device: torch.device) -> Tensor:
    """uint8 (N, H, W, 3) → float32 (N, 3, H, W) on `device`, channels last in memory."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float()


def normalise(x: Tensor) -> Tensor:
    """Grey levels (N, 3, H, W) → what the networks take, channels last in memory."""
    constants = Normalisation()
    mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (constants.mean, constants.std))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def jitter_colours(rng: np.random.Generator, x: Tensor, strength: float, grey_share: float) -> Tensor:
    """Brightness, contrast and saturation of float (N, 3, H, W) grey levels, each within 1 ± `strength`."""
    drawn = rng.uniform(1 - strength, 1 + strength, (3, len(x), 1, 1, 1)).astype(np.float32)
    factors = torch.from_numpy(drawn).to(x.device)
    grey_rows = torch.from_numpy(rng.random((len(x), 1, 1, 1)) < grey_share).to(x.device)
    weights = x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    x = x * factors[0]
    grey = (x * weights).sum(dim=1, keepdim=True)
    saturation = factors[1].masked_fill(grey_rows, 0)
    x = grey + saturation * (x - grey)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    return (mean + factors[2] * (x - mean)).clamp(0, 255)


def erase(rng: np.random.Generator, x: Tensor, probability: float) -> Tensor:
    """Random erasing on normalised (N, 3, H, W), in place: a rectangle of 2 to 20 % becomes the mean colour."""
    height, width = x.shape[2:]
    for row in np.flatnonzero(rng.random(len(x)) < probability):
        share, aspect = rng.uniform(0.02, 0.2), math.exp(rng.uniform(math.log(0.4), math.log(2.5)))
        h = min(height, round(math.sqrt(share * aspect) * height))
        w = min(width, round(math.sqrt(share / aspect) * width))
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        x[row, :, top : top + h, left : left + w] = 0
    return x


def mix(rng: np.random.Generator, x: Tensor, targets: Tensor, maps: Tensor, cell: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mixup or CutMix, an even chance of each, of a batch with itself in reverse order.

    x (N, 3, H, W); targets (N, classes); maps (N, C, H/cell, W/cell) are mixed the same way, for which CutMix
    keeps to whole cells. CutMix draws its share evenly (arXiv 1905.04899), mixup from Beta(0.3, 0.3).
    """
    if rng.random() < 0.5:
        share = float(rng.beta(0.3, 0.3))
        return tuple(share * one + (1 - share) * one.flip(0) for one in (x, targets, maps))  # type: ignore[return-value]
    rows, columns = maps.shape[2:]
    side = math.sqrt(1 - rng.random())
    h, w = round(side * rows), round(side * columns)
    top, left = int(rng.integers(0, rows - h + 1)), int(rng.integers(0, columns - w + 1))
    mixed_x, mixed_maps = x.clone(), maps.clone()
    mixed_maps[:, :, top : top + h, left : left + w] = maps.flip(0)[:, :, top : top + h, left : left + w]
    area_x = (slice(None), slice(None), slice(top * cell, (top + h) * cell), slice(left * cell, (left + w) * cell))
    mixed_x[area_x] = x.flip(0)[area_x]
    share = 1 - h * w / (rows * columns)
    return mixed_x, share * targets + (1 - share) * targets.flip(0), mixed_maps
