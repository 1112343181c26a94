"""Files that the trainers' own savers write. tests/model/zoo has the same structures without the trainers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from model.spec import CenterCropSpec, DetectPostSpec, KeepRatioSpec
from model.zoo.importer import import_checkpoint
from tests.clients.installs import ROOT, only_if_asked_for, python_packages, run
from tests.model.tiny_models import NUM_CLASSES, tiny_network

COMMON = ("pyyaml==6.0.4", "fsspec==2026.9.0", "tqdm==4.70.1")
PACKAGES = {
    "timm": ("timm==1.0.31",),
    "lightning": ("pytorch-lightning==2.6.6", "lightning-utilities==0.15.3", "torchmetrics==1.9.0", *COMMON),
    "mmengine": (
        *("mmengine==0.10.7", "addict==2.4.0", "yapf==0.43.0", "termcolor==3.3.0", "platformdirs==4.14.8"),
        *("rich==15.0.0", "markdown-it-py==4.3.0", "mdurl==0.1.2", "pygments==2.21.0", "matplotlib==3.11.2"),
        *("contourpy==1.3.3", "cycler==0.12.1", "fonttools==4.68.0", "kiwisolver==1.5.1", "pyparsing==3.3.3"),
        *("python-dateutil==4.0.0", "six==1.17.0", "pyyaml==6.0.4"),
    ),
}
"""Without torch and numpy, which are this environment's."""

pytestmark = only_if_asked_for


def saved(trainer: str, folder: Path) -> None:
    """Run the trainer's saver, which writes into the folder."""
    packages = python_packages(*PACKAGES[trainer])
    script = ROOT / f"tests/trainers/savers/{trainer}_saver.py"
    run([sys.executable, str(script), str(folder)], folder, environment={"PYTHONPATH": f"{packages}:{ROOT}"})


def test_timms_files_are_served(tmp_path: Path) -> None:
    """CheckpointSaver's file, which ends in .pth.tar: its arguments' sizes, and the average unless raw is asked for."""
    saved("timm", tmp_path)
    bundle = import_checkpoint(tmp_path / "last.pth.tar", tmp_path / "store", "mine")
    assert bundle.config.preprocessing == CenterCropSpec(resize_shorter=213, crop=192)
    biases = {}
    for weights in ("raw", "ema", None):
        bundle = import_checkpoint(tmp_path / "last.pth.tar", tmp_path / "store", "mine", weights=weights)
        biases[weights] = safetensors.torch.load_file(bundle.weights_path)["head.bias"]
    assert torch.equal(biases["raw"], tiny_network("classifier").state_dict()["head.bias"])
    assert torch.equal(biases["ema"], torch.ones(NUM_CLASSES))
    assert torch.equal(biases[None], biases["ema"])


@pytest.mark.parametrize("name", ["plain", "average"])
def test_lightnings_files_are_served(tmp_path: Path, name: str) -> None:
    """The network in a module with a loss that has weights, dates and paths among the hyperparameters; its average."""
    saved("lightning", tmp_path)
    notes: list[str] = []
    bundle = import_checkpoint(tmp_path / f"{name}.ckpt", tmp_path / "store", "mine", on_note=notes.append)
    assert bundle.config.labels == tuple("abcde")
    assert "names: the prefix model. is removed" in notes
    assert "left out: 1 tensors that no answer needs (criterion.weight)" in notes
    average = "weights: state_dict, averaged (EMA); --weights raw takes current_model_state"
    assert (average in notes) == (name == "average")


def test_mmengines_files_are_served(tmp_path: Path) -> None:
    """Class names and colours of its data set; sizes, normalisation and thresholds of its configuration; of the weights
    the average.

    Its hook exchanges both sets of weights when it saves.
    """
    saved("mmengine", tmp_path)
    file = tmp_path / "epoch_1.pth"
    config = import_checkpoint(file, tmp_path / "store", "mine").config
    assert config.labels == tuple("abcde")
    assert config.palette == tuple((120, 20, level) for level in range(5))
    assert isinstance(config.preprocessing, KeepRatioSpec)
    assert (config.preprocessing.long_side, config.preprocessing.short_side) == (640, 480)
    assert config.preprocessing.normalisation.mean == (1.0, 2.0, 3.0)
    assert config.postprocessing == DetectPostSpec(score_threshold=0.2, nms_iou=0.4, candidates_per_level=100)
    before = tiny_network("retinanet").state_dict()["bbox_head.retina_cls.bias"]
    moved = {}
    for weights in ("raw", "ema"):
        bundle = import_checkpoint(file, tmp_path / "store", "mine", weights=weights)
        moved[weights] = (before - safetensors.torch.load_file(bundle.weights_path)["bbox_head.retina_cls.bias"]).mean()
    assert moved["raw"] > moved["ema"] > 0
