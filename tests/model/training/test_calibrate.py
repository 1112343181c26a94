from __future__ import annotations

import numpy as np
import pytest
import torch

from model.families.classifier import ClassifierSpec
from model.families.convmlp import ConvMLPSpec
from model.families.retinanet import RetinaNetSpec
from model.families.semantic_fpn import SemanticFPNSpec
from model.metrics import calibration_error
from model.net.network import build_network
from model.training.calibrate import Calibration, apply_calibration, platt_scaling, temperature_scaling

TINY = ConvMLPSpec(
    tokenizer_channels=4, conv_blocks=1, stage_channels=(8, 8, 8), stage_depths=(1, 1, 1), mlp_ratios=(1, 1, 1)
)


def test_a_known_temperature_is_found() -> None:
    """Classes drawn from softmax(z) with probabilities softmax(3 z) give a scale of a third."""
    rng = np.random.default_rng(0)
    honest = torch.from_numpy(rng.normal(size=(4000, 5))).log_softmax(dim=1)
    truth = np.array([rng.choice(5, p=row) for row in honest.exp().numpy()])
    boastful = (3 * honest).softmax(dim=1).numpy()
    assert temperature_scaling(boastful, truth).scale == pytest.approx(1 / 3, rel=0.1)


def test_overconfident_detections_become_calibrated() -> None:
    """Detections correct half as often as their scores claim have, once calibrated, a calibration error near 0."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.05, 0.95, 5000)
    right = rng.random(5000) < scores / 2
    found = platt_scaling(scores, right)
    logits = found.scale * np.log(scores / (1 - scores)) + found.shift
    assert calibration_error(scores, right) > 0.2
    assert calibration_error(1 / (1 + np.exp(-logits)), right) < 0.03


def test_without_detections_nothing_changes() -> None:
    """A detector without detections gets the identity."""
    assert platt_scaling(np.zeros(0), np.zeros(0, np.bool_)) == Calibration(1.0, 0.0)


def test_an_applied_calibration_acts_on_the_logits() -> None:
    """The network's logits become scale times the logits plus shift, at every level of a detector."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    architectures = (ClassifierSpec(backbone=TINY), RetinaNetSpec(backbone=TINY, fpn_channels=8, head_convs=1))
    classifier, detector = (build_network(one, 4).eval() for one in architectures)
    with torch.inference_mode():
        before = [classifier(x), *detector(x)[0]]
        for network, architecture in zip((classifier, detector), architectures, strict=True):
            apply_calibration(network, architecture, Calibration(0.5, -1.0))
        after = [classifier(x), *detector(x)[0]]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, 0.5 * one - 1.0)


def test_a_calibration_that_inverts_the_order_is_refused() -> None:
    """A negative scale is refused."""
    architecture = ClassifierSpec(backbone=TINY)
    with pytest.raises(ValueError, match="train longer"):
        apply_calibration(build_network(architecture, 4), architecture, Calibration(-0.1, 0.0))


def test_a_network_without_scores_is_refused() -> None:
    """A segmenter has no scores to calibrate."""
    architecture = SemanticFPNSpec(backbone=TINY, fpn_channels=8, head_channels=8)
    with pytest.raises(TypeError, match="semantic_fpn has no scores"):
        apply_calibration(build_network(architecture, 3), architecture, Calibration(1.0, 0.0))
