"""Training of a segmenter, such as the outline model: Semantic FPN with cross-entropy on the known pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.metrics import intersection_over_union
from model.net.semantic_fpn import SemanticFPN
from model.training.augment import jitter_colours, normalise, random_window, side_at, to_tensor, whole_picture
from model.training.data import IGNORE, SPECIES, Photographs, Record, load_label_maps
from model.types import IntArray, Size, UInt8Array

OUTLINE_LABELS = ("background", *SPECIES)


@dataclass(frozen=True, slots=True)
class SegmentRecipe:
    """Hyperparameters. `zoom`: range of the square windows' sides, as multiples of the picture's shorter side.

    `sizes`: (progress from which it applies, side of the network's input in px).

    `hint_share` is the probability that a picture without a mask replaces one with a mask: masks come from few breeds,
    while the middle of an annotated head is known to be cat or dog in all of them.
    """

    sizes: tuple[tuple[float, int], ...] = ((0.0, 128), (0.5, 160), (0.85, 224))
    zoom: tuple[float, float] = (0.5, 1.3)
    test_side: int = 224
    hint_share: float = 0.4
    colour_jitter: float = 0.4
    grey_share: float = 0.05


def head_hint(record: Record) -> UInt8Array:
    """Class indices uint8 (H, W) known from the head's box alone: an ellipse of half its sides, IGNORE elsewhere."""
    hint = np.full((record.size.height, record.size.width), IGNORE, np.uint8)
    if record.head is not None:
        head = record.head
        centre = (round((head.xmin + head.xmax) / 2), round((head.ymin + head.ymax) / 2))
        axes = (round((head.xmax - head.xmin) / 4), round((head.ymax - head.ymin) / 4))
        cv2.ellipse(hint, centre, axes, 0, 0, 360, (record.species + 1,), thickness=-1)
    return hint


class SegmenterTraining:
    """The segmentation task, as the training loop's `Training`. Its examples are the records with a mask."""

    def __init__(
        self,
        recipe: SegmentRecipe,
        module: SemanticFPN,
        labels: Sequence[str],
        learn: Photographs,
        held_out: Photographs,
    ) -> None:
        self.recipe, self.module, self.labels = recipe, module, labels
        self.records, self.pictures = learn.records, learn.pictures
        self.device = next(module.parameters()).device
        self.maps = load_label_maps(learn.records)
        self.masked = list(self.maps)
        self.hinted = [
            index for index, record in enumerate(learn.records) if record.mask is None and record.head is not None
        ]
        self.examples = len(self.masked)
        maps = load_label_maps(held_out.records)
        windows = {index: whole_picture(held_out.records[index].size, recipe.test_side) for index in maps}
        self.held_out_pixels = np.stack([window.apply(held_out.pictures[index]) for index, window in windows.items()])
        self.held_out_maps = np.stack([window.apply_to_mask(maps[index], IGNORE) for index, window in windows.items()])

    def loss(self, indices: IntArray, rng: np.random.Generator, progress: float) -> Tensor:
        recipe = self.recipe
        side = side_at(recipe.sizes, progress)
        out = Size(side, side)
        pixels, maps = [], []
        for position in indices:
            index = self.masked[position]
            if self.hinted and rng.random() < recipe.hint_share:
                index = self.hinted[rng.integers(len(self.hinted))]
            record = self.records[index]
            window = random_window(rng, record.size, out, recipe.zoom, None if index in self.maps else record.head)
            pixels.append(window.apply(self.pictures[index]))
            full = self.maps[index] if index in self.maps else head_hint(record)
            maps.append(window.apply_to_mask(full, IGNORE))
        x = jitter_colours(rng, to_tensor(np.stack(pixels), self.device), recipe.colour_jitter, recipe.grey_share)
        logits = self.module(normalise(x)).float()
        logits = F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, torch.from_numpy(np.stack(maps)).long().to(self.device), ignore_index=IGNORE)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """IoU and pixel accuracy on the held-out pictures, at a quarter of the input's size."""
        confusion = np.zeros((len(self.labels), len(self.labels)), np.int64)
        for start in range(0, len(self.held_out_pixels), 32):
            logits = module(normalise(to_tensor(self.held_out_pixels[start : start + 32], self.device)))
            true = self.held_out_maps[start : start + 32, 2::4, 2::4]
            known = true != IGNORE
            np.add.at(confusion, (true[known], logits.argmax(dim=1).cpu().numpy()[known]), 1)
        return intersection_over_union(confusion, self.labels)
