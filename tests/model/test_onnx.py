"""ONNX files answer as the service does, in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from model.bundle import Bundle, find_bundle, read_bundle
from model.errors import NotFinite
from model.families.registry import Architecture
from model.families.semantic_fpn import SemanticFPNSpec
from model.families.upernet import UPerNetSpec
from model.net.network import build_network
from model.net.weights import write_bundle
from model.onnx.check import compare
from model.onnx.export import export_onnx
from model.onnx.graphs import ClassifierGraph, MaskRCNNGraph
from model.reference import REFERENCE_PICTURE, ClassifyReference
from model.spec import DetectPostSpec, KeepRatioSpec
from model.types import Task
from tests.model.tiny_backbones import BACKBONES, tiny_backbone_bundle
from tests.model.tiny_models import (
    NUM_CLASSES,
    REFERENCES,
    damaged_bundle,
    metadata,
    tiny_bundle,
    tiny_network,
)

DOCS = Path(__file__).resolve().parents[2] / "docs/models.md"
LIMITS = {"scores": 1e-4, "boxes, px": 0.01, "masks": 1e-3, "share of pixels": 1e-3}
"""float32 in another order of operations."""
SEGMENTERS: dict[str, tuple[Architecture, int]] = {
    "semantic_fpn on hire_mlp": (SemanticFPNSpec(backbone=BACKBONES["hire_mlp"], fpn_channels=8, head_channels=8), 32),
    "upernet on repmlpnet": (UPerNetSpec(backbone=BACKBONES["repmlpnet"], head_channels=8), 64),
}


def bundle_of(kind: str, store: Path) -> Bundle:
    """A tiny model: of a family on ConvMLP, a classifier on another backbone, or a segmenter."""
    if kind in BACKBONES:
        return tiny_backbone_bundle(store, kind)
    if kind not in SEGMENTERS:
        return tiny_bundle(store, kind)
    architecture, multiple = SEGMENTERS[kind]
    torch.manual_seed(5)
    described = dataclasses.replace(
        metadata("semantic_fpn"),
        architecture=architecture,
        preprocessing=KeepRatioSpec(long_side=128, short_side=96, pad_multiple=multiple),
    )
    network = build_network(architecture, NUM_CLASSES).eval()
    return write_bundle(store, described, network, lambda _: REFERENCES[Task.SEGMENT])


@pytest.mark.parametrize("kind", ["classifier", "cmt", "hvt", "retinanet", "mask_rcnn", *SEGMENTERS])
def test_an_exported_model_answers_as_the_service(kind: str, tmp_path: Path) -> None:
    """Of each family and backbone, alone, in batches and in other sizes: equal up to rounding; and the file has the
    model's labels, pipeline, licence and hash."""
    bundle = bundle_of(kind, tmp_path)
    file = tmp_path / "out.onnx"
    differences = export_onnx(bundle, file)
    assert differences.mismatch is None
    assert differences.largest
    assert {name: value for name, value in differences.largest.items() if value > LIMITS[name]} == {}
    stored = onnx.load(file)
    onnx.checker.check_model(stored, full_check=True)
    config = bundle.config
    props = {prop.key: prop.value for prop in stored.metadata_props}
    assert json.loads(props["labels"]) == list(config.labels)
    assert type(config.preprocessing).model_validate_json(props["preprocessing"]) == config.preprocessing
    assert type(config.postprocessing).model_validate_json(props["postprocessing"]) == config.postprocessing
    assert (props["licence"], props["weights_sha256"]) == (config.source.licence, config.weights_sha256)


def test_a_picture_without_detections_is_answered(tmp_path: Path) -> None:
    """No region reaches the mask head, and the outputs have no rows."""
    described = dataclasses.replace(
        metadata("mask_rcnn"), postprocessing=DetectPostSpec(score_threshold=1.0, candidates_per_level=200)
    )
    bundle = write_bundle(tmp_path, described, tiny_network("mask_rcnn"), lambda _: REFERENCES[Task.DETECT])
    assert export_onnx(bundle, tmp_path / "out.onnx").largest == {}
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
    outputs = session.run(None, {"image": np.zeros((1, 33, 70, 3), np.uint8), "size": np.array((66, 140))})
    assert [output.shape for output in outputs] == [(0, 4), (0,), (0,), (0, 28, 28)]
    assert tuple(output.name for output in session.get_outputs()) == MaskRCNNGraph.signature.outputs


def test_other_answers_are_noticed(tmp_path: Path) -> None:
    """The check compares: the file of other weights does not pass."""

    def written(name: str, network: nn.Module) -> Bundle:
        return write_bundle(tmp_path / name, metadata("classifier"), network, lambda _: ClassifyReference(labels=()))

    network = tiny_network("classifier")
    mine = written("mine", network)
    with torch.no_grad():
        network.head.bias.add_(torch.arange(NUM_CLASSES))  # type: ignore[operator, union-attr]
    others = written("others", network)
    export_onnx(others, tmp_path / "others.onnx")
    differences = compare((tmp_path / "others.onnx").read_bytes(), mine, ClassifierGraph.signature)
    assert differences.mismatch is not None
    assert differences.largest["scores"] > 0.05


def test_damaged_weights_leave_no_file(tmp_path: Path) -> None:
    """An output that is not finite ends the export; an earlier file stays as it was."""
    file = tmp_path / "out.onnx"
    file.write_bytes(b"earlier")
    with pytest.raises(NotFinite):
        export_onnx(damaged_bundle(tmp_path, "classifier"), file)
    assert file.read_bytes() == b"earlier"


def test_the_example_of_the_docs_runs(tmp_path: Path) -> None:
    """With ONNX Runtime, NumPy and Pillow alone it prints the model's own answer to the reference picture."""
    (script,) = re.findall(r"```python\n(.*?onnxruntime.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    bundle = read_bundle(find_bundle("convmlp_pets_breed", None))
    export_onnx(bundle, tmp_path / "breed.onnx")
    command = [sys.executable, "-c", script, str(tmp_path / "breed.onnx"), str(REFERENCE_PICTURE)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    reference = bundle.config.reference
    assert isinstance(reference, ClassifyReference)
    assert ran.stdout.splitlines() == [
        f"{label.score:.2f} {bundle.config.labels[label.index]}" for label in reference.labels[:3]
    ]
