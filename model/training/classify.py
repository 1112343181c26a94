"""Training of the breed classifier, on any backbone; ConvMLP may have a second, training-only output, maps of heads and
bodies.

The maps supervise where the animal is, which few class labels alone do not, and prepare the backbone for the detector
and the outline model, which start from its weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.families.classifier import ClassifierSpec
from model.families.registry import BackboneSpec
from model.net.convmlp import ConvMLP, ConvMLPClassifier
from model.net.network import build_network
from model.training.augment import (
    Window,
    central_square,
    erase,
    jitter_colours,
    mix,
    normalise,
    random_resized_crop,
    side_at,
    to_tensor,
)
from model.training.data import IGNORE, SPECIES, Photographs, load_label_maps
from model.types import Box, Float32Array, IntArray, Size, UInt8Array

CELL = 16
"""Stride of the maps: that of the backbone's third level."""
TEST_SHARE = 0.875
"""Share of the shorter side in the crop that is evaluated during training."""


@dataclass(frozen=True, slots=True)
class ClassifyRecipe:
    """Hyperparameters. `sizes`: (progress from which it applies, side of the square input in px)."""

    sizes: tuple[tuple[float, int], ...] = ((0.0, 96), (0.7, 128), (0.87, 160), (0.96, 192))
    test_size: int = 192
    crop_scale: tuple[float, float] = (0.25, 1.0)
    min_visible: float = 0.5
    colour_jitter: float = 0.4
    grey_share: float = 0.05
    mix_probability: float = 0.5
    erase_probability: float = 0.2
    label_smoothing: float = 0.1
    map_weight: float = 1.0
    """Of the loss of the maps; 0: there are none, as with any backbone but ConvMLP."""


class BreedNet(nn.Module):
    """The classifier, plus, with `maps`, a 1x1 convolution for maps of heads and bodies by species, which is not
    exported."""

    def __init__(self, spec: BackboneSpec, num_classes: int, *, maps: bool) -> None:
        super().__init__()
        self.classifier = build_network(ClassifierSpec(backbone=spec), num_classes)
        self.maps = nn.Conv2d(spec.level_channels[2], 2 * len(SPECIES), 1) if maps else None
        initialise(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalised float (N, 3, H, W) → breed logits (N, classes), map logits (N, 4, H/16, W/16) or None."""
        if self.maps is None:
            return self.classifier(x), None
        assert isinstance(self.classifier, ConvMLPClassifier)
        levels = ConvMLP.forward(self.classifier, x)
        features = self.classifier.norm(levels[3].permute(0, 2, 3, 1)).mean(dim=(1, 2))
        return self.classifier.head(features), self.maps(levels[2])


def initialise(module: nn.Module) -> None:
    """Initialise linear layers and tables of positions with small weights, and ConvMLP's depthwise convolutions near
    the identity.

    Those convolutions are not residual: with random filters they would destroy the signal.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Conv2d) and name.endswith(".connect"):
            nn.init.normal_(part.weight, std=0.05)
            with torch.no_grad():
                part.weight[:, :, 1, 1] += 1
    for name, parameter in module.named_parameters():
        if "pos_embed" in name or "relative_pos" in name:
            nn.init.trunc_normal_(parameter, std=0.02)


class BreedTraining:
    """The breed task, as the training loop's `Training`. Without maps the batches are cut and mixed alike."""

    def __init__(self, recipe: ClassifyRecipe, module: BreedNet, learn: Photographs, held_out: Photographs) -> None:
        self.recipe, self.module = recipe, module
        self.records, self.pictures = learn.records, learn.pictures
        self.label_maps = load_label_maps(learn.records) if module.maps is not None else {}
        self.device = next(module.parameters()).device
        self.examples = len(learn.records)
        assert isinstance(module.classifier.head, nn.Linear)
        self.num_classes = module.classifier.head.out_features
        self.held_out_breeds = torch.tensor([record.label for record in held_out.records])
        windows = [central_square(record.size, TEST_SHARE, recipe.test_size) for record in held_out.records]
        self.held_out_pixels = np.stack([w.apply(p) for w, p in zip(windows, held_out.pictures, strict=True)])

    def loss(self, indices: IntArray, rng: np.random.Generator, progress: float) -> Tensor:
        side = side_at(self.recipe.sizes, progress)
        pixels, map_rows = [], []
        for index in indices:
            record = self.records[index]
            window = random_resized_crop(
                rng, record.size, Size(side, side), self.recipe.crop_scale, record.head, self.recipe.min_visible
            )
            pixels.append(window.apply(self.pictures[index]))
            map_rows.append(self._maps(index, window))
        x = to_tensor(np.stack(pixels), self.device)
        x = normalise(jitter_colours(rng, x, self.recipe.colour_jitter, self.recipe.grey_share))
        maps = torch.from_numpy(np.stack(map_rows)).to(self.device)
        breeds = torch.tensor([self.records[index].label for index in indices], device=self.device)
        targets = F.one_hot(breeds, self.num_classes).float()
        if rng.random() < self.recipe.mix_probability:
            x, targets, maps = mix(rng, x, targets, maps, CELL)
        logits, map_logits = self.module(erase(rng, x, self.recipe.erase_probability))
        breed_loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.recipe.label_smoothing)
        if map_logits is None:
            return breed_loss
        known = ~maps.isnan()
        map_loss = F.binary_cross_entropy_with_logits(map_logits.float()[known], maps[known])
        return breed_loss + self.recipe.map_weight * map_loss

    def _maps(self, index: int, window: Window) -> Float32Array:
        """Heads and bodies of cats and dogs in the window: float32 (4, cells, cells), NaN if unknown."""
        record, cells = self.records[index], window.out.height // CELL
        maps = np.full((2, len(SPECIES), cells, cells), np.nan, np.float32)
        if record.head is not None and self.module.maps is not None:
            maps[0] = head_map(window.move(record.head), record.species, cells)
        if index in self.label_maps:
            maps[1] = body_map(window.apply_to_mask(self.label_maps[index], IGNORE), cells)
        return maps.reshape(-1, cells, cells)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Top-1 and top-5 accuracy on the held-out pictures, by a fast approximation of the real pipeline."""
        ranks = []
        breeds = self.held_out_breeds.to(self.device)
        for start in range(0, len(self.held_out_pixels), 64):
            logits = module(normalise(to_tensor(self.held_out_pixels[start : start + 64], self.device)))[0].float()
            true = logits.gather(1, breeds[start : start + 64, None])
            ranks.append((logits > true).sum(dim=1))
        rank = torch.cat(ranks)
        return {"top1": float((rank < 1).float().mean()), "top5": float((rank < 5).float().mean())}


def head_map(box: Box, species: int, cells: int) -> Float32Array:
    """1 in the cells whose centre is in the head's box, by species: float32 (2, cells, cells)."""
    found = np.zeros((len(SPECIES), cells, cells), np.float32)
    top, bottom, left, right = (round(side / CELL) for side in (box.ymin, box.ymax, box.xmin, box.xmax))
    found[species, top:bottom, left:right] = 1
    return found


def body_map(labels: UInt8Array, cells: int) -> Float32Array:
    """Share of each cell's known pixels that are cat or dog: float32 (2, cells, cells), NaN if none is known."""
    blocks = labels.reshape(cells, CELL, cells, CELL)
    known = (blocks != IGNORE).sum(axis=(1, 3))
    shares = [(blocks == kind + 1).sum(axis=(1, 3)) / np.maximum(known, 1) for kind in range(len(SPECIES))]
    return np.where(known > 0, shares, np.nan).astype(np.float32)
