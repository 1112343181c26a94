"""Last layers that trainers write in fewer channels than the networks here have, written out: the answers are the same.

A single channel with a sigmoid is one class against the rest: with a second channel of 0, softmax and argmax decide
likewise. Masks and boxes that do not depend on the class are repeated for each one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from model.net import classifier, mask_rcnn, semantic_fpn
from model.types import Task
from model.zoo.checkpoint import Checkpoint
from model.zoo.class_names import ClassNames
from model.zoo.palette import ClassColours

PIXEL_THRESHOLD = 0.5
"""Of a single channel, unless the training had another."""
_BOXES = "roi_head.bbox_head"


def is_binary(checkpoint: Checkpoint) -> bool:
    """Whether a classifier or segmenter has a single output channel."""
    return any(_rows(checkpoint.tensors, key) == 1 for key in (classifier.CLASS_KEY, semantic_fpn.CLASS_KEY))


def complete_binary_head(checkpoint: Checkpoint, threshold: float) -> Checkpoint:
    """Of a single channel two: the rest, and the class where the sigmoid is above the threshold.

    Args:
        checkpoint: that `is_binary`.
        threshold: of a segmenter's pixels, between 0 and 1; a classifier returns both scores.
    """
    tensors = dict(checkpoint.tensors)
    segmenter = semantic_fpn.CLASS_KEY in tensors
    key = semantic_fpn.CLASS_KEY if segmenter else classifier.CLASS_KEY
    weight, bias_key = tensors[key], f"{key.removesuffix('weight')}bias"
    tensors[key] = torch.cat((torch.zeros_like(weight), weight))
    if bias_key in tensors:
        bias = tensors[bias_key]
        rest = math.log(threshold / (1 - threshold)) if segmenter else 0.0
        tensors[bias_key] = torch.cat((torch.full_like(bias, rest), bias))
    return replace(checkpoint, tensors=tensors)


def binary_class_names(names: ClassNames, task: Task) -> ClassNames:
    """Of the name of the class those of both; others as they are."""
    if len(names.names) != 1:
        return names
    (name,) = names.names
    return ClassNames(("background" if task is Task.SEGMENT else f"not {name}", name), names.source)


def binary_class_colours(found: ClassColours) -> ClassColours:
    """Of the colour of the class those of both: the rest is black. Others as they are."""
    return found if len(found.colours) != 1 else ClassColours(((0, 0, 0), *found.colours), found.source)


def repeat_class_agnostic_heads(checkpoint: Checkpoint) -> tuple[Checkpoint, list[str]]:
    """A Mask R-CNN's masks and boxes for each class, if it has them once; and what was repeated, in words."""
    tensors = checkpoint.tensors
    classes = (_rows(tensors, f"{_BOXES}.fc_cls.weight") or 0) - 1
    repeated = []
    for key, rows, what in ((mask_rcnn.CLASS_KEY, 1, "masks"), (f"{_BOXES}.fc_reg.weight", 4, "boxes")):
        if classes > 1 and _rows(tensors, key) == rows:
            repeated.append(f"the {what} do not depend on the class; they are repeated for each of the {classes}")
            for name in (key, f"{key.removesuffix('weight')}bias"):
                if name in tensors:
                    tensor = tensors[name]
                    tensors = {**tensors, name: tensor.repeat(classes, *[1] * (tensor.ndim - 1))}
    return replace(checkpoint, tensors=tensors), repeated


def _rows(tensors: Mapping[str, Tensor], key: str) -> int | None:
    tensor = tensors.get(key)
    return None if tensor is None or tensor.ndim == 0 else tensor.shape[0]
