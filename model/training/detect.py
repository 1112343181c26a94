"""Training of a detector: RetinaNet's targets and losses (arXiv 1708.02002, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.metrics import TrueBox
from model.net.boxes import RETINANET_ANCHORS, decode_deltas, encode_deltas, iou_matrix
from model.net.retinanet import RetinaNet
from model.training.augment import (
    Window,
    jitter_colours,
    normalise,
    random_window,
    side_at,
    to_tensor,
    visible_share,
    whole_picture,
)
from model.training.data import Photographs, Record
from model.types import Box, IntArray, Size


@dataclass(frozen=True, slots=True)
class DetectRecipe:
    """Hyperparameters. `zoom`: range of the square windows' sides, as multiples of the picture's shorter side.

    `sizes`: (progress from which it applies, side of the network's input in px).
    """

    sizes: tuple[tuple[float, int], ...] = ((0.0, 128), (0.5, 160), (0.85, 224))
    zoom: tuple[float, float] = (0.6, 1.25)
    test_side: int = 224
    min_visible: float = 0.4
    colour_jitter: float = 0.4
    grey_share: float = 0.05
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    smooth_l1_beta: float = 0.11
    box_weight: float = 1.0


BEST_ANCHORS = 100
"""Of a picture, that are looked at during training."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Targets of each anchor of a batch.

    classes int64 (N, K): -1 background, -2 ignored; deltas float32 (N, K, 4), valid for anchors with a class.
    """

    classes: Tensor
    deltas: Tensor


def assign(anchors: Tensor, boxes: Tensor, labels: Tensor, positive_iou: float, negative_iou: float) -> Assignment:
    """Assign anchors to the objects that they overlap most (section 4.1); an object's best anchor is always assigned to
    it.

    Args:
        anchors: float32 (K, 4), pixels of the input.
        boxes: float32 (N, M, 4), up to M objects a picture; arbitrary beyond the last one.
        labels: int64 (N, M), the objects' classes; -1 beyond the last one.
    """
    present = (labels >= 0)[..., None]
    overlaps = torch.where(present, iou_matrix(boxes, anchors).nan_to_num(), -1.0)
    best = overlaps == overlaps.max(dim=2, keepdim=True).values.clamp(min=1e-6)
    # An IoU is at most 1: an object comes first where the anchor is its best one.
    chosen = (overlaps + 2 * best).argmax(dim=1, keepdim=True)
    positive = ((overlaps >= positive_iou) | best).take_along_dim(chosen, dim=1)[:, 0]
    between = (overlaps >= negative_iou).any(dim=1) & ~positive
    classes = torch.where(positive, labels.take_along_dim(chosen[:, 0], dim=1), torch.where(between, -2, -1))
    safe_boxes = torch.where(present, boxes, anchors.new_tensor((0.0, 0.0, 1.0, 1.0)))
    return Assignment(classes, encode_deltas(anchors, safe_boxes.take_along_dim(chosen[:, 0, :, None], dim=1)))


def focal_loss(logits: Tensor, classes: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum of the focal loss (equation 5) over logits (N, K, C); anchors of class -2 are ignored."""
    wanted = F.one_hot(classes.clamp(min=0), logits.shape[-1]).float() * (classes >= 0)[..., None]
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    missed = torch.where(wanted > 0, 1 - logits.sigmoid(), logits.sigmoid())
    weight = torch.where(wanted > 0, alpha, 1 - alpha) * missed**gamma
    return (weight * entropy * (classes != -2)[..., None]).sum()


def flatten_heads(levels: Sequence[Tensor], width: int) -> Tensor:
    """Maps (N, A·width, h, w) of all levels → float32 (N, K, width), in the order of the anchors."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, width) for level in levels], dim=1).float()


def all_anchors(levels: Sequence[Tensor]) -> Tensor:
    """Anchors of maps (N, ·, h, w), all levels: float32 (K, 4)."""
    parts = [
        RETINANET_ANCHORS.level_anchors(index, (level.shape[2], level.shape[3]), level.device)
        for index, level in enumerate(levels)
    ]
    return torch.cat(parts)


class DetectorTraining:
    """The detection task, as the training loop's `Training`."""

    def __init__(self, recipe: DetectRecipe, module: RetinaNet, learn: Photographs, held_out: Photographs) -> None:
        self.recipe, self.module = recipe, module
        self.records, self.pictures = learn.records, learn.pictures
        self.device = next(module.parameters()).device
        self.examples = len(learn.records)
        windows = [whole_picture(record.size, recipe.test_side) for record in held_out.records]
        self.held_out_pixels = np.stack([w.apply(p) for w, p in zip(windows, held_out.pictures, strict=True)])
        self.held_out_boxes, self.held_out_labels = self._objects(held_out.records, windows)

    def _objects(self, records: Sequence[Record], windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
        """Boxes float32 (N, M, 4) and classes int64 (N, M) of the objects that the windows show, as `assign` takes
        them."""
        shown = [
            [
                (one.index, window.move(one.box))
                for one in _single(record)
                if visible_share(window.box, one.box) >= self.recipe.min_visible
            ]
            for record, window in zip(records, windows, strict=True)
        ]
        most = max(1, *map(len, shown))
        boxes, labels = np.zeros((len(records), most, 4), np.float32), np.full((len(records), most), -1, np.int64)
        for row, objects in enumerate(shown):
            for column, (label, box) in enumerate(objects):
                boxes[row, column] = box.xmin, box.ymin, box.xmax, box.ymax
                labels[row, column] = label
        return torch.from_numpy(boxes).to(self.device), torch.from_numpy(labels).to(self.device)

    def loss(self, indices: IntArray, rng: np.random.Generator, progress: float) -> Tensor:
        recipe = self.recipe
        records = [self.records[index] for index in indices]
        side = side_at(recipe.sizes, progress)
        out = Size(side, side)
        windows = [random_window(rng, record.size, out, recipe.zoom, _any_box(rng, record)) for record in records]
        pixels = np.stack([w.apply(self.pictures[index]) for w, index in zip(windows, indices, strict=True)])
        boxes, labels = self._objects(records, windows)
        x = jitter_colours(rng, to_tensor(pixels, self.device), recipe.colour_jitter, recipe.grey_share)
        logit_maps, delta_maps = self.module(normalise(x))
        target = assign(all_anchors(logit_maps), boxes, labels, recipe.positive_iou, recipe.negative_iou)
        positive = target.classes >= 0
        deltas = flatten_heads(delta_maps, 4)[positive]
        logits = flatten_heads(logit_maps, self.module.num_classes)
        class_loss = focal_loss(logits, target.classes, recipe.focal_alpha, recipe.focal_gamma)
        box_loss = F.smooth_l1_loss(deltas, target.deltas[positive], reduction="sum", beta=recipe.smooth_l1_beta)
        return (class_loss + recipe.box_weight * box_loss) / positive.sum().clamp(min=1)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        """Share of the held-out objects that one of the 100 best-scored anchors of a picture detects: right class, IoU
        of at least 0.5; and the mean IoU of the best of these anchors."""
        hits, ious = [], []
        for start in range(0, len(self.held_out_pixels), 32):
            rows = slice(start, start + 32)
            logit_maps, delta_maps = module(normalise(to_tensor(self.held_out_pixels[rows], self.device)))
            anchors = all_anchors(logit_maps)
            scores, classes = flatten_heads(logit_maps, self.module.num_classes).max(dim=2)
            best = scores.topk(min(BEST_ANCHORS, scores.shape[1]), dim=1).indices
            deltas = flatten_heads(delta_maps, 4).take_along_dim(best[..., None], dim=1)
            labels = self.held_out_labels[rows]
            overlaps = iou_matrix(self.held_out_boxes[rows], decode_deltas(anchors[best], deltas)).nan_to_num()
            right = labels[..., None] == classes.take_along_dim(best, dim=1)[:, None]
            overlap = (overlaps * right).max(dim=2).values[labels >= 0]
            hits.append(overlap >= 0.5)
            ious.append(overlap)
        return {"recall50": float(torch.cat(hits).float().mean()), "mean_iou": float(torch.cat(ious).mean())}


def _single(record: Record) -> list[TrueBox]:
    """The objects, without crowds."""
    return [one for one in record.objects or () if not one.crowd]


def _any_box(rng: np.random.Generator, record: Record) -> Box | None:
    """Of one of the objects; None: there is none."""
    objects = _single(record)
    if len(objects) < 2:
        return objects[0].box if objects else None
    return objects[rng.integers(len(objects))].box
