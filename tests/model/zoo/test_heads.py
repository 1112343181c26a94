from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from model.bundle import Bundle
from model.errors import BundleInvalid
from model.net.classifier import top_k_classes
from model.net.network import build_network
from model.net.normalise import Normalise
from model.predictor import Predictor
from model.reference import reference_input
from model.spec import ClassifyPostSpec
from model.types import Batch, ClassifyOutput, DetectOutput, QueryParams, RawOutput, SegmentOutput
from model.zoo.importer import NO_FLAGS, PipelineOptions, import_checkpoint
from model.zoo.pipeline import PipelineParts
from tests.model.tiny_models import ARCHITECTURES, NUM_CLASSES, tiny_network

SIZE = {"resize": 72, "crop": 64}
SIDES = {"long_side": 128, "short_side": 96, "pad_multiple": 32}


def flags(**values: object) -> PipelineOptions:
    return PipelineOptions(flags=PipelineParts(NO_FLAGS.source, **values))  # type: ignore[arg-type]


def imported(
    folder: Path, content: object, options: PipelineOptions, labels: list[str] | None = None
) -> tuple[Bundle, str]:
    torch.save(content, folder / "mine.pth")
    notes: list[str] = []
    path = folder / "mine.pth"
    bundle = import_checkpoint(path, folder / "store", "mine", labels=labels, pipeline=options, on_note=notes.append)
    return bundle, "\n".join(notes)


TEN_LABELS = QueryParams(top_k=10)


def answer(bundle: Bundle, params: QueryParams = TEN_LABELS) -> RawOutput:
    """Of the reference picture."""
    picture = reference_input(bundle.config.preprocessing)
    batch = Batch(np.stack((picture.pixels,)), (picture.geometry,), (params,))
    (output,) = Predictor(bundle, torch.device("cpu")).predict(batch)
    return output


@torch.inference_mode()
def logits_of(family: str, tensors: dict[str, Tensor], bundle: Bundle, rows: int) -> Tensor:
    """Of the network as it was trained, on the reference picture."""
    network = build_network(ARCHITECTURES[family], rows).eval()
    network.load_state_dict(tensors)
    picture = reference_input(bundle.config.preprocessing)
    x = Normalise(bundle.config.preprocessing)(torch.from_numpy(picture.pixels[None]), [picture.geometry.content])
    logits: Tensor = network(x)
    return logits


def single_channel(family: str, layer: str) -> dict[str, Tensor]:
    """A tiny network with one output channel."""
    tensors: dict[str, Tensor] = dict(tiny_network(family).state_dict())
    for name in (f"{layer}.weight", f"{layer}.bias"):
        tensors[name] = tensors[name][1:2].clone()
    return tensors


@pytest.mark.parametrize(
    ("threshold", "beside"),
    [
        (0.5, {}),
        (0.7, {}),
        (0.3, {"config": "model = dict(decode_head=dict(num_classes=2, out_channels=1))"}),
        (0.4, {"config": "model = dict(decode_head=dict(num_classes=2, out_channels=1, threshold=0.4))"}),
    ],
    ids=["default", "flag", "mmseg's default", "mmseg's own"],
)
def test_a_segmenter_of_one_channel_is_its_sigmoid(tmp_path: Path, threshold: float, beside: dict[str, str]) -> None:
    """A pixel is of the class where the resized sigmoid is above the threshold, and background elsewhere."""
    tensors = single_channel("semantic_fpn", "decode_head.conv_seg")
    options = flags(**SIDES, thresholds={"score_threshold": 0.7} if threshold == 0.7 else {})
    bundle, notes = imported(tmp_path, {"state_dict": tensors, "meta": {"CLASSES": ("cat",), **beside}}, options)
    assert bundle.config.labels == ("background", "cat")
    assert f"head: a single output channel: cat is a sigmoid above {threshold:g}, background the rest" in notes
    logits = logits_of("semantic_fpn", tensors, bundle, 1)
    geometry = reference_input(bundle.config.preprocessing).geometry
    at_input = F.interpolate(logits, scale_factor=4, mode="bilinear")
    at_input = at_input[..., : geometry.content.height, : geometry.content.width]
    size = (geometry.original.height, geometry.original.width)
    expected = F.interpolate(at_input, size=size, mode="bilinear")[0, 0].sigmoid().numpy() > threshold
    found = answer(bundle)
    assert isinstance(found, SegmentOutput)
    assert 0.02 < expected.mean() < 0.98
    assert (found.label_map == expected).mean() > 0.9999
    again = import_checkpoint(bundle.weights_path, tmp_path / "store", "again")
    assert again.config.pixel_threshold == bundle.config.pixel_threshold == threshold
    other = answer(again, QueryParams(threshold=0.45))
    assert isinstance(other, SegmentOutput)
    expected = F.interpolate(at_input, size=size, mode="bilinear")[0, 0].sigmoid().numpy() > 0.45
    assert (other.label_map == expected).mean() > 0.9999


def test_a_classifier_of_one_channel_is_its_sigmoid(tmp_path: Path) -> None:
    """Two labels, whose scores add up to 1; never one label with score 1.0."""
    tensors = single_channel("classifier", "head")
    bundle, notes = imported(tmp_path, {"state_dict": tensors, "classes": ["cat"]}, flags(**SIZE))
    assert bundle.config.labels == ("not cat", "cat")
    assert "a single output channel: cat is a sigmoid, not cat the rest" in notes
    score = logits_of("classifier", tensors, bundle, 1).sigmoid().item()
    found = answer(bundle)
    assert isinstance(found, ClassifyOutput)
    scores = dict(zip(found.indices.tolist(), found.scores.tolist(), strict=True))
    assert scores == pytest.approx({1: score, 0: 1 - score}, abs=1e-5)
    bundle, _ = imported(tmp_path, {"state_dict": tensors}, flags(**SIZE), labels=["dog", "cat"])
    assert bundle.config.labels == ("dog", "cat")
    with pytest.raises(BundleInvalid, match=r"3 labels are given; .* has 2 classes"):
        imported(tmp_path, {"state_dict": tensors}, flags(**SIZE), labels=["a", "b", "c"])


def test_a_multi_label_classifier_returns_all_labels_above_its_threshold(tmp_path: Path) -> None:
    """Scores are sigmoids, each of its own; a threshold may leave none. The reference check compares them all."""
    tensors = dict(tiny_network("classifier").state_dict())
    bundle, notes = imported(tmp_path, {"state_dict": tensors}, flags(**SIZE, activation="sigmoid"))
    assert bundle.config.postprocessing == ClassifyPostSpec(activation="sigmoid", score_threshold=0.5)
    assert "any number of labels above 0.5" in notes
    expected = logits_of("classifier", tensors, bundle, NUM_CLASSES).sigmoid()[0]
    found = answer(bundle)
    assert isinstance(found, ClassifyOutput)
    assert sorted(found.indices.tolist()) == (expected > 0.5).nonzero().flatten().tolist()
    np.testing.assert_allclose(found.scores, expected[torch.from_numpy(found.indices)], atol=1e-5)
    assert 0 < len(found.indices) < NUM_CLASSES
    assert bundle.config.reference.task == "classify"
    assert len(bundle.config.reference.labels) == NUM_CLASSES
    thresholds = {"score_threshold": math.nextafter(float(expected.max()), 1)}
    bundle, _ = imported(tmp_path, {"state_dict": tensors}, flags(**SIZE, activation="sigmoid", thresholds=thresholds))
    found = answer(bundle)
    assert isinstance(found, ClassifyOutput)
    assert len(found.indices) <= 1
    assert found.finite


def test_a_number_that_is_not_finite_passes_every_threshold() -> None:
    """So that the answer is an error, and not an empty list."""
    spec = ClassifyPostSpec(activation="sigmoid", score_threshold=0.5)
    (found,) = top_k_classes(torch.tensor([[torch.nan, -3.0]]), [QueryParams()], spec)
    assert not found.finite


def test_class_agnostic_masks_and_boxes_are_repeated(tmp_path: Path) -> None:
    """Each class has the rows that all share; the answer has masks."""
    tensors = dict(tiny_network("mask_rcnn").state_dict())
    tensors["roi_head.mask_head.conv_logits.weight"] = tensors["roi_head.mask_head.conv_logits.weight"][:1]
    tensors["roi_head.mask_head.conv_logits.bias"] = tensors["roi_head.mask_head.conv_logits.bias"][:1]
    tensors["roi_head.bbox_head.fc_reg.weight"] = tensors["roi_head.bbox_head.fc_reg.weight"][:4]
    tensors["roi_head.bbox_head.fc_reg.bias"] = tensors["roi_head.bbox_head.fc_reg.bias"][:4]
    bundle, notes = imported(tmp_path, {"state_dict": tensors}, flags(**SIDES))
    assert "head: the masks do not depend on the class; they are repeated for each of the 5" in notes
    assert "head: the boxes do not depend on the class; they are repeated for each of the 5" in notes
    found = safetensors.torch.load_file(bundle.weights_path)
    for name in ("roi_head.mask_head.conv_logits.weight", "roi_head.bbox_head.fc_reg.bias"):
        rows = found[name].unflatten(0, (NUM_CLASSES, -1))
        assert torch.equal(rows, tensors[name][None].expand_as(rows))
    detections = answer(bundle)
    assert isinstance(detections, DetectOutput)
    assert detections.mask_logits is not None
    assert len(detections.mask_logits) > 0


@pytest.mark.parametrize("family", ["retinanet", "mask_rcnn"])
def test_a_detector_of_one_class_is_served(tmp_path: Path, family: str) -> None:
    """Its scores are sigmoids, or softmax against background."""
    torch.manual_seed(3)
    tensors = build_network(ARCHITECTURES[family], 1).state_dict()
    bundle, _ = imported(tmp_path, {"state_dict": tensors, "meta": {"CLASSES": ("cat",)}}, flags(**SIDES))
    assert bundle.config.labels == ("cat",)


def test_a_wrong_threshold_of_one_channel_is_refused(tmp_path: Path) -> None:
    """0 and 1 have no logit."""
    tensors = single_channel("semantic_fpn", "decode_head.conv_seg")
    options = flags(thresholds={"score_threshold": 1.0})
    with pytest.raises(BundleInvalid, match=r"single output channel is 1; expected one from 0\.001 to 0\.999"):
        imported(tmp_path, {"state_dict": tensors}, options)
