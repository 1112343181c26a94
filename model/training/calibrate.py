"""Calibration of scores: fitted on held-out photographs, then folded into the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from model.bundle import BundleConfig
from model.families.registry import ArchitectureSpec, family_of
from model.metrics import Float64Array, scored_matches
from model.net.network import network_of
from model.predictor import Predictor
from model.training.data import Record
from model.training.evaluate import class_probabilities, detections, scored_boxes, true_boxes
from model.types import BoolArray, IntArray, Task

MIN_PROBABILITY = 1e-12
"""Smaller probabilities are raised to this, so that the logarithm is finite."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibrated logits are `scale`·logits + `shift`."""

    scale: float
    shift: float


def fit_calibration(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> Calibration | None:
    """The calibration that fits a bundle's scores to the truth; None if its answers have no scores."""
    match config.task:
        case Task.CLASSIFY:
            breeds = np.array([record.label for record in records])
            return temperature_scaling(class_probabilities(predictor, config, records), breeds)
        case Task.DETECT:
            known = [record for record in records if record.objects is not None]
            found = scored_boxes(detections(predictor, config, known))
            matches = scored_matches(found, true_boxes(known), len(config.labels))
            return platt_scaling(*matches)
        case Task.SEGMENT:
            return None


def temperature_scaling(probabilities: Float64Array, truth: IntArray) -> Calibration:
    """Temperature scaling (arXiv 1706.04599, section 4.2): probabilities (N, C), classes (N,); `scale` is 1/T.

    The log-likelihood is concave in the scale, so ternary search finds its maximum.
    """
    logits = np.log(np.maximum(probabilities, MIN_PROBABILITY))
    rows = np.arange(len(truth))

    def likelihood(scale: float) -> float:
        scaled = logits * scale
        top = scaled.max(axis=1)
        return float((scaled[rows, truth] - top - np.log(np.exp(scaled - top[:, None]).sum(axis=1))).sum())

    low, high = 0.05, 20.0
    while high - low > 1e-4:
        third = (high - low) / 3
        if likelihood(low + third) < likelihood(high - third):
            low += third
        else:
            high -= third
    return Calibration((low + high) / 2, 0.0)


def platt_scaling(scores: Float64Array, right: BoolArray) -> Calibration:
    """Platt scaling: logistic regression of correctness, bool (K,), on the logits of the scores (K,).

    Newton's method, with a weak prior at scale 1 and shift 0 for small samples.
    """
    clipped = np.clip(scores, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    inputs = np.stack([np.log(clipped / (1 - clipped)), np.ones(len(scores))], axis=1)
    prior = np.array([1.0, 0.0])
    weights = prior.copy()
    for _ in range(50):
        expected = 1 / (1 + np.exp(-inputs @ weights))
        slope = inputs.T @ (expected - right) + (weights - prior)
        curve = (inputs.T * (expected * (1 - expected))) @ inputs + np.eye(2)
        weights = weights - np.linalg.solve(curve, slope)
    return Calibration(float(weights[0]), float(weights[1]))


@torch.no_grad()
def apply_calibration(network: nn.Module, architecture: ArchitectureSpec, found: Calibration) -> None:
    """Fold a calibration into the layer that computes the logits.

    Raises:
        TypeError: the family's answers have no scores.
        ValueError: the calibration would invert the scores' order.
    """
    if not (math.isfinite(found.shift) and 0 < found.scale < math.inf):
        raise ValueError(f"{found} is not valid: scores do not rise with correctness; train longer")
    score_layer = network_of(family_of(architecture)).score_layer
    if score_layer is None:
        raise TypeError(f"{architecture.family} has no scores to calibrate")
    layer = score_layer(network)
    assert layer.bias is not None
    layer.weight.mul_(found.scale)
    layer.bias.mul_(found.scale).add_(found.shift)
