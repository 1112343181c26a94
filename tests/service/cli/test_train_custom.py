"""`convmlp train custom`: from data of one's own to a model that answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner, Result

from model.bundle import Bundle, read_bundle
from model.families.hvt import HVTSpec
from model.predictor import Predictor, predict_image
from model.spec import CenterCropSpec
from model.types import QueryParams, Task
from service.cli.train import train_app
from tests.model.tiny_models import tiny_bundle
from tests.service.evaluation.data_sets import (
    HEIGHT,
    WIDTH,
    write_class_folders,
    write_csv,
    write_instances,
    write_mask,
    write_picture,
)

Flags = list[str | Path]


def train(folder: Path, *arguments: str | Path) -> Result:
    """A training of one epoch, whose results are in `folder`/out."""
    given = ("custom", "--as", "mine", "--out", folder / "out", "--epochs", "1", "--threads", "1", *arguments)
    return CliRunner().invoke(train_app, [str(one) for one in given], env={"NO_COLOR": "1", "COLUMNS": "200"})


def trained(folder: Path, *arguments: str | Path) -> Bundle:
    """The bundle of a training, which answers a picture."""
    ran = train(folder, *arguments)
    assert ran.exit_code == 0, ran.output
    bundle = read_bundle(folder / "out/bundles/mine")
    picture = write_picture(folder / "any.png").read_bytes()
    predict_image(Predictor(bundle, torch.device("cpu")), bundle.config, picture, QueryParams())
    return bundle


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_a_folder_for_each_class_trains_a_classifier(tmp_path: Path) -> None:
    """From scratch on any backbone; the fifth picture of each class is held out, as the figures have it."""
    data = write_class_folders(tmp_path / "data", {"cat": 5, "dog": 6})
    config = trained(tmp_path, "--data", data, "--backbone", "hvt").config
    assert (config.task, config.labels) == (Task.CLASSIFY, ("cat", "dog"))
    assert isinstance(config.architecture.backbone, HVTSpec)
    assert config.accuracy is not None
    assert config.accuracy.measured_on.startswith("2 pictures: every fifth picture of a class of data; ")
    assert set(config.accuracy.metrics) == {"top1", "top5", "ece"}
    assert config.source.description == "trained from scratch on data by `convmlp train custom`"


def test_a_training_starts_from_a_model(tmp_path: Path, store: Path) -> None:
    """With its backbone's weights and its licence; folders `train` and `val` are the parts; a map gives classes."""
    start = tiny_bundle(store, "classifier")
    write_class_folders(tmp_path / "data/train", {"cat": 2, "dog": 2, "puppy": 1})
    write_class_folders(tmp_path / "data/val", {"dog": 1, "cat": 1})
    (tmp_path / "map.json").write_text(json.dumps({"puppy": "dog"}))
    (tmp_path / "labels.txt").write_text("dog\ncat\n")
    flags: Flags = ["--from", "tiny", "--models-dir", store, "--labels", tmp_path / "labels.txt"]
    flags += ["--map", tmp_path / "map.json", "--input-size", "32", "--stop-after", "0"]
    bundle = trained(tmp_path, "--data", tmp_path / "data", *flags)
    config = bundle.config
    assert config.labels == ("dog", "cat")
    assert isinstance(config.preprocessing, CenterCropSpec)
    assert config.preprocessing.crop == 32
    assert config.accuracy is not None
    assert config.accuracy.measured_on.startswith("2 pictures: the validation pictures of data; ")
    assert config.architecture == start.config.architecture
    assert config.source.licence == start.config.source.licence
    assert "from tiny: " in config.source.description
    tensors, before = (safetensors.torch.load_file(one.weights_path) for one in (bundle, start))
    name = "tokenizer.block.0.weight"
    assert np.array_equal(tensors[name].float().numpy(), before[name].half().float().numpy())


def boxes(*found: tuple[str, int]) -> list[dict[str, Any]]:
    return [{"label": label, "bbox": [x, 4, 12, 14]} for label, x in found]


def test_coco_instances_train_a_detector(tmp_path: Path, store: Path) -> None:
    """Several objects a picture, none in another; crowds are no objects to find. A classifier gives the backbone."""
    tiny_bundle(store, "classifier")
    objects = {f"{number}.png": boxes(("cat", 2), ("dog", 22)) for number in range(5)}
    objects["4.png"] = []
    objects["3.png"][0]["iscrowd"] = 1
    for name in objects:
        write_picture(tmp_path / name, 40)
    data = write_instances(tmp_path / "instances.json", objects, ["cat", "dog"])
    validation = write_instances(tmp_path / "val.json", {"0.png": objects["0.png"]}, ["cat", "dog"])
    flags: Flags = ["--validation", validation, "--from", "tiny", "--models-dir", store, "--input-size", "64"]
    config = trained(tmp_path, "--data", data, *flags).config
    assert (config.task, config.labels, config.architecture.family) == (Task.DETECT, ("cat", "dog"), "retinanet")
    assert config.accuracy is not None
    assert {"ap50", "ap50_cat", "ap50_dog"} <= set(config.accuracy.metrics)


def test_masks_train_a_segmenter(tmp_path: Path, store: Path) -> None:
    """The values are the classes, 255 is left out; it starts from a segmenter with its heads. A training resumes."""
    tiny_bundle(store, "semantic_fpn")
    for number in range(4):
        write_picture(tmp_path / f"data/images/{number}.jpg", 40)
        values = np.zeros((HEIGHT, WIDTH), np.uint8)
        values[:, 20:], values[0] = 2, 255
        write_mask(tmp_path / f"data/masks/{number}.png", values)
    flags: Flags = ["--data", tmp_path / "data", "--from", "tiny", "--models-dir", store, "--input-size", "64"]
    config = trained(tmp_path, *flags).config
    assert (config.task, config.labels) == (Task.SEGMENT, ("class 0", "class 1", "class 2"))
    assert config.accuracy is not None
    assert "miou" in config.accuracy.metrics
    log = (tmp_path / "out/mine/log.jsonl").read_text()
    assert log.count("\n") == 1
    assert trained(tmp_path, *flags).config == config
    assert (tmp_path / "out/mine/log.jsonl").read_text() == log


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--from", "tiny", "--backbone", "cmt"], 2, "--from and --backbone exclude each other"),
        (["--size", "s"], 2, "--size s needs --backbone"),
        (["--as", "a/b"], 2, "is not a valid model name"),
        (["--from", "nobody"], 1, "there is no model 'nobody' in the store"),
        (["--backbone", "vgg"], 1, "there is no backbone 'vgg'"),
        (["--backbone", "cmt", "--input-size", "100"], 1, "takes inputs of 96 x 96 px only, not of 100 x 100 px"),
        (["--from", "convmlp_pets_heads"], 1, "is for detect; expected a model for classify, or a classifier"),
        (["--task", "segment"], 1, "has no folders of pictures and masks"),
    ],
)
def test_what_cannot_be_trained_is_refused(flags: list[str], status: int, message: str, tmp_path: Path) -> None:
    """Before anything is trained, in words."""
    data = write_class_folders(tmp_path / "data", {"cat": 2, "dog": 2})
    ran = train(tmp_path, "--data", data, *flags)
    assert ran.exit_code == status
    assert message in " ".join(ran.stderr.split())
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_learnt_from_are_refused(tmp_path: Path) -> None:
    """The message names the file and what is wrong with it."""
    one_class = write_class_folders(tmp_path / "one", {"cat": 2})
    torn = write_class_folders(tmp_path / "torn", {"cat": 2, "dog": 2})
    (torn / "dog/0.png").write_bytes(b"no picture")
    write_picture(tmp_path / "a.png")
    tags = write_csv(tmp_path / "tags.csv", [["a.png", "cat|dog"]])
    for data, message in (
        (one_class, "has 1 class; training needs two or more"),
        (torn, "torn/dog/0.png: "),
        (tags, "has pictures of several labels, or of none; training takes one for each"),
    ):
        ran = train(tmp_path, "--data", data)
        assert ran.exit_code == 1
        assert message in ran.stderr
