from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.large import CANDIDATES, SEGMENTS, fit_detector, fit_segmenter
from model.families.convmlp import ConvMLPSpec
from model.families.retinanet import RetinaNetSpec
from model.families.semantic_fpn import SemanticFPNSpec
from model.net.retinanet import RetinaNet
from model.net.semantic_fpn import SemanticFPN
from model.spec import DetectPostSpec

BACKBONE = ConvMLPSpec(
    tokenizer_channels=8, conv_blocks=1, stage_channels=(8, 16, 16), stage_depths=(1, 1, 1), mlp_ratios=(2, 2, 2)
)


@pytest.fixture
def pictures() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.nn.functional.interpolate(torch.randn(2, 3, 16, 16), size=(96, 96), mode="bilinear")


@torch.no_grad()
def test_a_fitted_detector_finds_as_much_as_a_trained_one_might(pictures: torch.Tensor) -> None:
    """The wanted number of candidates is above the threshold: NMS has work, and some candidates are left out."""
    torch.manual_seed(0)
    network = RetinaNet(RetinaNetSpec(backbone=BACKBONE, fpn_channels=16, head_convs=2), 80).eval()
    fit_detector(network, pictures)
    logits, _ = network(pictures)
    scores = torch.cat([level.flatten() for level in logits]).sigmoid()
    above = int((scores > DetectPostSpec().score_threshold).sum())
    assert above == pytest.approx(CANDIDATES * len(pictures), abs=2)
    assert above < scores.numel() / 100


@torch.no_grad()
def test_a_fitted_segmenter_has_some_classes_and_keeps_them_in_bf16(pictures: torch.Tensor) -> None:
    """The label map has several classes in large areas, and an answer in bf16 is comparable with one in fp32."""
    torch.manual_seed(0)
    network = SemanticFPN(SemanticFPNSpec(backbone=BACKBONE, fpn_channels=16, head_channels=16), 150).eval()
    fit_segmenter(network, pictures)
    labels = network(pictures).argmax(dim=1)
    assert len(labels.unique()) == SEGMENTS
    in_bf16 = copy.deepcopy(network).bfloat16()(pictures.bfloat16()).argmax(dim=1)
    assert (labels == in_bf16).float().mean() > 0.9
