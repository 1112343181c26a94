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
from model.precision import MIN_TIMED_ROUNDS, Precision, Selection, Trial, choose, make_predictor, select_precision
from model.predictor import Predictor, load_network
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


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """Any one: it stands for those of the trials."""
    return Predictor(tiny_bundle(tmp_path_factory.mktemp("store"), "classifier"), CPU)


@pytest.mark.parametrize("family", ["classifier", "retinanet", "mask_rcnn", "semantic_fpn"])
def test_the_selection_follows_its_own_measurement(tmp_path: Path, family: str) -> None:
    """float32 is always tried, each precision as often; the selection follows the times."""
    bundle = tiny_bundle(tmp_path, family)
    selection = select_precision(bundle, CPU, load_network(bundle))
    assert selection.trials[0].precision is Precision.FP32
    assert len({len(one.rounds) for one in selection.trials}) == 1
    assert len(selection.trials[0].rounds) >= MIN_TIMED_ROUNDS
    chosen = choose(selection.trials)
    assert chosen is not None
    assert (selection.precision, selection.predictor) == (chosen.precision, chosen.predictor)


@pytest.mark.parametrize(
    ("bf16", "accurate", "chosen"),
    [
        ([5, 5, 5, 5, 5], True, Precision.BF16),
        ([8.4, 8.4, 8.4, 8.4, 8.4], True, Precision.BF16),
        ([8.6, 8.6, 8.6, 8.6, 8.6], True, Precision.FP32),  # faster, but not by the margin
        ([5, 5, 5, 5, 5], False, Precision.FP32),
        ([2, 2, 30, 30, 30], True, Precision.FP32),  # two lucky rounds
        ([5, 5, 5, 300, 300], True, Precision.BF16),  # two disturbed rounds
    ],
)
def test_a_faster_precision_needs_a_margin_in_most_rounds(
    predictor: Predictor, bf16: list[float], *, accurate: bool, chosen: Precision
) -> None:
    """fp32 takes 10 ms. Another precision is chosen only if it is accurate and saves 15 % in the median round."""
    trials = (
        Trial(Precision.FP32, predictor, (10.0,) * 5, None),
        Trial(Precision.FP16, predictor, (9.9,) * 5, None),
        Trial(Precision.BF16, predictor, tuple(bf16), None if accurate else "another answer"),
    )
    best = choose(trials)
    assert best is not None
    assert best.precision is chosen


def test_the_spread_is_that_of_the_comparisons(predictor: Predictor) -> None:
    """Load that meets all precisions of a round is no spread; load that meets one of them is."""
    busy = (10.0, 40.0, 10.0, 80.0, 10.0)
    halves = Trial(Precision.BF16, predictor, tuple(one / 2 for one in busy), None)
    fp32 = Trial(Precision.FP32, predictor, busy, None)
    assert Selection(predictor, Precision.FP32, (fp32, halves)).spread == 0
    disturbed = Trial(Precision.BF16, predictor, (5.0, 20.0, 25.0, 40.0, 5.0), None)
    assert Selection(predictor, Precision.FP32, (fp32, disturbed)).spread > 0.5
    assert Selection(predictor, Precision.FP32, (fp32,)).spread == 0


def test_without_an_accurate_precision_none_is_chosen(predictor: Predictor) -> None:
    """Where each precision changes the answer, the caller stays with `exact`."""
    assert choose([Trial(Precision.FP32, predictor, (1.0,), "another answer")]) is None


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
