"""The four families against the outputs of the authors' models, with reproducible weights.

Inputs are preprocessed, so that only networks and test-time procedures are compared. Bounds are a few times float32's
rounding, as measured when the goldens were made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch

from model.families.classifier import ClassifierSpec
from model.families.convmlp import CONVMLP_SIZES
from model.families.mask_rcnn import MaskRCNNSpec
from model.families.retinanet import RetinaNetSpec
from model.families.semantic_fpn import SemanticFPNSpec
from model.net.classifier import top_k_classes
from model.net.convmlp import ConvMLPClassifier
from model.net.detections import BatchGeometry
from model.net.label_maps import label_maps
from model.net.mask_rcnn import MaskRCNN, make_proposals, mask_rcnn_detections
from model.net.network import build_network
from model.net.retinanet import RetinaNet, retinanet_detections
from model.net.semantic_fpn import SemanticFPN
from model.postprocess.masks import paste_mask
from model.spec import DetectPostSpec
from model.types import Box, DetectOutput, Geometry, QueryParams, Size, SoftMask
from tests import goldens

pytestmark = goldens.requires_goldens

SMALL = CONVMLP_SIZES["s"]
TIE = 0.001
"""Distance of a probability from the threshold that rounding can cross."""


@pytest.fixture(scope="module")
def classifier() -> ConvMLPClassifier:
    network = build_network(ClassifierSpec(backbone=SMALL), 1000).eval()
    goldens.fill(network)
    assert isinstance(network, ConvMLPClassifier)
    return network


@pytest.fixture(scope="module")
def retinanet() -> RetinaNet:
    network = build_network(RetinaNetSpec(backbone=SMALL), 80).eval()
    goldens.fill(network)
    assert isinstance(network, RetinaNet)
    return network


@pytest.fixture(scope="module")
def mask_rcnn() -> MaskRCNN:
    network = build_network(MaskRCNNSpec(backbone=SMALL), 80).eval()
    goldens.fill(network)
    assert isinstance(network, MaskRCNN)
    return network


@pytest.fixture(scope="module")
def semantic_fpn() -> SemanticFPN:
    network = build_network(SemanticFPNSpec(backbone=SMALL), 150).eval()
    goldens.fill(network)
    assert isinstance(network, SemanticFPN)
    return network


@torch.inference_mode()
@pytest.mark.parametrize("picture", ["a", "b"])
def test_classifier(picture: str, classifier: ConvMLPClassifier) -> None:
    """All thousand logits, and the five best classes with their probabilities, equal the authors'."""
    golden = goldens.load(f"final/classifier_s_{picture}.json")
    logits = classifier(goldens.network_input("cls", picture))
    expected = torch.tensor(golden["logits"])
    assert (logits[0] - expected).abs().max() / expected.abs().max() < 1e-4
    (best,) = top_k_classes(logits, [QueryParams()])
    assert best.indices.tolist() == [one["index"] for one in golden["top5"]]
    np.testing.assert_allclose(best.scores, [one["probability"] for one in golden["top5"]], atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("picture", ["a", "b", "d"])
def test_retinanet(picture: str, retinanet: RetinaNet) -> None:
    """Boxes, scores and classes equal the authors', under their default and other test settings."""
    golden = goldens.load(f"final/retinanet_s_{picture}.json")
    logits, deltas = retinanet(goldens.network_input("det", picture))
    geometry = goldens.detection_geometry(picture)
    for settings, expected in [("", golden), *golden["variants"].items()]:
        params, spec = parsed(settings)
        (output,) = retinanet_detections(logits, deltas, [geometry], [params], spec)
        matched(output, expected)


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decoder
@pytest.mark.parametrize("picture", ["a", "b", "d"])
def test_mask_rcnn(picture: str, mask_rcnn: MaskRCNN) -> None:
    """Proposals, boxes, scores, classes and masks equal the authors'; all but masks under other test settings too.

    A mask's pixels may differ only where its probability ties with the threshold within rounding.
    """
    golden = goldens.load(f"final/maskrcnn_s_{picture}.json")
    pyramid, logits, deltas = mask_rcnn(goldens.network_input("det", picture))
    geometry = goldens.detection_geometry(picture)
    proposals, filled = make_proposals(
        logits, deltas, BatchGeometry.of([geometry], torch.device("cpu")), DetectPostSpec()
    )
    expected_proposals = np.load(goldens.GOLDENS / "proposals" / f"maskrcnn_s_{picture}.npz")["proposals"]
    assert int(filled.sum()) == len(expected_proposals)
    distances = torch.cdist(proposals[0], torch.from_numpy(expected_proposals[:, :4]), p=torch.inf)
    assert (distances.amin(dim=0) > 0.1).sum() <= 2
    for settings, expected in [("", golden), *golden["variants"].items()]:
        params, spec = parsed(settings)
        (output,) = mask_rcnn_detections(mask_rcnn.roi_head, pyramid, logits, deltas, [geometry], [params], spec)
        partners = matched(output, expected)
        if output.mask_logits is None:
            continue
        for mask, box, partner in zip(output.mask_logits, output.boxes, partners, strict=True):
            where = Box(*box.tolist()), geometry.original
            surely, perhaps = (
                paste_mask(SoftMask(mask, spec.mask_threshold + margin), *where).full_mask() for margin in (TIE, -TIE)
            )
            theirs = pycocotools.mask.decode(expected["masks"][partner]).astype(bool)
            assert not (surely & ~theirs).any()
            assert not (theirs & ~perhaps).any()


@torch.inference_mode()
@pytest.mark.parametrize("picture", ["a", "b", "c"])
def test_semantic_fpn(picture: str, semantic_fpn: SemanticFPN) -> None:
    """The label map of 150 classes equals the authors', except pixels where two classes tie within rounding."""
    x = goldens.network_input("seg", picture)
    size = Size(x.shape[2], x.shape[3])
    (output,) = label_maps(semantic_fpn(x), size, [Geometry(goldens.picture_size(picture), size)], [QueryParams()])
    assert (output.label_map == goldens.label_map(f"semfpn_s_{picture}")).mean() >= 0.9999


def parsed(settings: str) -> tuple[QueryParams, DetectPostSpec]:
    """`score_thr=0.3` or `nms_iou=0.3,max_per_img=300` → parameters; empty: the defaults."""
    values = dict(one.split("=") for one in settings.split(",") if one)
    threshold, most, iou = values.pop("score_thr", None), values.pop("max_per_img", "100"), values.pop("nms_iou", "0.5")
    assert values == {}
    return (
        QueryParams(
            score_threshold=None if threshold is None else float(threshold),
            max_detections=int(most),
            masks=settings == "",
        ),
        DetectPostSpec(nms_iou=float(iou)),
    )


def matched(output: DetectOutput, expected: dict[str, Any]) -> list[int]:
    """Check that two lists hold the same detections; return, for each of ours, its partner's position."""
    boxes, labels = np.array(expected["boxes"]).reshape(-1, 5), np.array(expected["labels"])
    assert len(output.boxes) == len(boxes)
    far = np.abs(output.boxes[:, None] - boxes[None, :, :4]).max(axis=2)
    far += np.abs(output.scores[:, None] - boxes[None, :, 4])
    far[output.classes[:, None] != labels[None]] = np.inf
    partners: list[int] = far.argmin(axis=1).tolist()
    assert sorted(partners) == list(range(len(boxes)))
    assert np.abs(output.boxes - boxes[partners, :4]).max() < 0.1
    assert np.abs(output.scores - boxes[partners, 4]).max() < 5e-4
    return partners
