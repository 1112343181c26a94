"""Outputs that are not finite: each family reports them, for the rows that have them and no other."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.bundle import Bundle
from model.errors import BundleInvalid, NotFinite
from model.postprocess.results import require_finite
from model.precision import Precision, select_precision
from model.predictor import Predictor, load_network, reference_answer
from model.types import Batch
from tests.model.batches import GEOMETRIES, PARAMS, assert_close, pictures
from tests.model.tiny_models import ARCHITECTURES, damaged_bundle, tiny_bundle

CPU = torch.device("cpu")
SCORES = {
    "classifier": ("head",),
    "retinanet": ("bbox_head.retina_cls",),
    "mask_rcnn": ("rpn_head.rpn_cls", "roi_head.bbox_head.fc_cls", "roi_head.mask_head.conv_logits"),
    "semantic_fpn": ("decode_head.conv_seg",),
}
DELTAS = {"retinanet": ("bbox_head.retina_reg",), "mask_rcnn": ("rpn_head.rpn_reg", "roi_head.bbox_head.fc_reg")}
BATCH = Batch(pictures(), GEOMETRIES, PARAMS)
SPOILT = 1
"""The row of the batch that is not finite."""


def layers(of: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(family, layer) for family, names in of.items() for layer in names]


def spoilt_rows(bundle: Bundle, layer: str, value: float, *, whole: bool) -> set[int]:
    """The rows that are not finite where a layer's output has `value`: everywhere, or once. Asserts that all other rows
    are as without it."""
    expected = Predictor(bundle, CPU).predict(BATCH)
    network = load_network(bundle)

    def spoil(_module: nn.Module, _inputs: object, out: Tensor) -> Tensor:
        # Heads that take regions run picture by picture; there every picture is spoilt.
        rows = out[SPOILT : SPOILT + 1] if len(out) == len(BATCH) else out
        (rows if whole else rows.flatten(1)[:, 0]).fill_(value)
        return out

    network.get_submodule(layer).register_forward_hook(spoil)
    found = Predictor(bundle, CPU, network=network).predict(BATCH)
    rows = {row for row, output in enumerate(found) if not output.finite}
    for row in set(range(len(BATCH))) - rows:
        assert_close(require_finite(found[row]), expected[row])
    for row in rows:
        with pytest.raises(NotFinite, match="not finite"):
            require_finite(found[row])
    return rows


def expected_rows(layer: str) -> set[int]:
    match layer.split("."):
        case "roi_head", "mask_head", *_:
            return {row for row, params in enumerate(PARAMS) if params.masks}
        case "roi_head", *_:
            return set(range(len(BATCH)))
        case _:
            return {SPOILT}


@pytest.mark.parametrize("value", [math.nan, -math.nan])
@pytest.mark.parametrize(("family", "layer"), layers(SCORES))
def test_one_score_that_is_nan_spoils_its_own_row_alone(tmp_path: Path, family: str, layer: str, value: float) -> None:
    """A single NaN among the scores that an answer is chosen from shows in its output, and in no other row's."""
    assert spoilt_rows(tiny_bundle(tmp_path, family), layer, value, whole=layer.endswith("conv_logits")) == (
        expected_rows(layer)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("family", "layer"), layers(DELTAS))
def test_boxes_that_are_not_finite_spoil_their_own_row_alone(
    tmp_path: Path, family: str, layer: str, value: float
) -> None:
    """No clipping of boxes turns NaN or infinity into an ordinary coordinate."""
    assert spoilt_rows(tiny_bundle(tmp_path, family), layer, value, whole=True) == expected_rows(layer)


@pytest.mark.parametrize(("family", "layer"), layers(SCORES))
def test_scores_that_overflow_spoil_their_own_row_alone(tmp_path: Path, family: str, layer: str) -> None:
    """Infinity is not taken for the best score."""
    assert spoilt_rows(tiny_bundle(tmp_path, family), layer, math.inf, whole=True) == expected_rows(layer)


@pytest.mark.parametrize("family", list(ARCHITECTURES))
def test_damaged_weights_have_no_reference_answer(tmp_path: Path, family: str) -> None:
    """A bundle whose last layer is NaN cannot be imported, and no precision is selected for it."""
    bundle = damaged_bundle(tmp_path, family)
    with pytest.raises(BundleInvalid, match="not finite"):
        reference_answer(bundle)
    selection = select_precision(bundle, CPU, load_network(bundle))
    assert (selection.precision, selection.trials) == (Precision.EXACT, ())
