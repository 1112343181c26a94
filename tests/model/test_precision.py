"""Selection of a precision: by accuracy first, then by speed."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.bundle import Bundle
from model.net.convmlp import ConvMLPClassifier
from model.net.cpu.onednn import onednn_accelerates
from model.precision import Precision, make_predictor, select_precision
from model.predictor import load_network
from model.reference import REFERENCE_PARAMS, reference_input
from model.types import Batch, ClassifyOutput
from tests.model.tiny_models import tiny_bundle

CPU = torch.device("cpu")


def first_class(bundle: Bundle, mode: Precision, network: nn.Module) -> int:
    assert isinstance(network, ConvMLPClassifier)
    one = reference_input(bundle.config.preprocessing)
    batch = Batch(np.stack([one.pixels]), (one.geometry,), (REFERENCE_PARAMS,))
    (output,) = make_predictor(bundle, CPU, mode, copy.deepcopy(network)).predict(batch)
    assert isinstance(output, ClassifyOutput)
    return int(output.indices[0])


@pytest.mark.parametrize("family", ["classifier", "retinanet", "mask_rcnn", "semantic_fpn"])
def test_the_fastest_accurate_precision_is_selected(tmp_path: Path, family: str) -> None:
    """No precision without a mismatch is faster; float32 is always tried."""
    bundle = tiny_bundle(tmp_path, family)
    selection = select_precision(bundle, CPU, load_network(bundle))
    tried = {one.precision: one for one in selection.trials}
    assert Precision.FP32 in tried
    assert tried[selection.precision].mismatch is None
    assert tried[selection.precision].seconds == min(one.seconds for one in selection.trials if one.mismatch is None)


@pytest.mark.skipif(not onednn_accelerates(torch.bfloat16), reason="this processor has no bfloat16 of its own")
def test_a_precision_with_another_top_class_is_not_selected(tmp_path: Path) -> None:
    """Classes whose scores bfloat16 rounds alike keep a model in float32, however fast bfloat16 is."""
    bundle = tiny_bundle(tmp_path, "classifier")
    network = load_network(bundle)
    assert isinstance(network, ConvMLPClassifier)
    classes = network.head.out_features
    with torch.no_grad():
        # Each class is the same but for less than bfloat16 resolves: there all tie, and the first one wins.
        network.head.weight.copy_(network.head.weight[:1].expand(classes, -1))
        network.head.bias.copy_(1 + torch.arange(classes) * 1e-4)
    assert first_class(bundle, Precision.FP32, network) == classes - 1
    assert first_class(bundle, Precision.BF16, network) == 0
    selection = select_precision(bundle, CPU, network)
    assert selection.precision is Precision.FP32
    (mismatch,) = (one.mismatch for one in selection.trials if one.precision is Precision.BF16)
    assert mismatch is not None
    assert "the top class is 0" in mismatch
