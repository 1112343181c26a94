"""The published checkpoints, end to end: file → `convmlp models import` → `convmlp … --local --json` → the answer.

The files have the published names, shapes and wrapping, and reproducible weights. The answers must equal those of the
authors' code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch

from model.net.network import build_network
from model.zoo.catalogue import CATALOGUE
from tests import goldens
from tests.service.cli.convmlp_command import convmlp

pytestmark = [
    goldens.requires_goldens,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools' decoder
]

SETTINGS = {"CONVMLP_DEVICE": "cpu", "CONVMLP_PRECISION": "fp32"}


async def test_classifier(tmp_path: Path) -> None:
    """The five best classes, with their probabilities and ImageNet's names, are the authors'."""
    name = "convmlp_s_imagenet"
    labels = (await answer(tmp_path, "classifier", name, "a"))["labels"]
    golden = goldens.load("final/classifier_s_a.json")["top5"]
    assert [one["index"] for one in labels] == [one["index"] for one in golden]
    assert [one["label"] for one in labels] == [CATALOGUE[name].labels[one["index"]] for one in golden]
    expected = np.array([one["probability"] for one in golden])
    assert np.abs([one["score"] for one in labels] - expected).max() < 1e-4 * expected.max()


async def test_retinanet(tmp_path: Path) -> None:
    """The hundred boxes, scores and classes are the authors', in the picture's own pixels."""
    found = (await answer(tmp_path, "retinanet", "retinanet_convmlp_s_coco", "b"))["detections"]
    partners(found, goldens.load("final/retinanet_s_b.json"))
    assert not any("mask" in one for one in found)


async def test_mask_rcnn(tmp_path: Path) -> None:
    """Boxes, scores, classes and masks are the authors', on a picture where rounding decides a tie of NMS."""
    found = (await answer(tmp_path, "maskrcnn", "maskrcnn_convmlp_s_coco", "d"))["detections"]
    golden = goldens.load("final/maskrcnn_s_d.json")
    for one, partner in zip(found, partners(found, golden), strict=True):
        ours, theirs = (pycocotools.mask.decode(mask).astype(bool) for mask in (one["mask"], golden["masks"][partner]))
        # IoU of at least 0.998; but of a mask of less than 500 pixels one may fall either way by rounding alone.
        assert (ours ^ theirs).sum() <= max(1, 0.002 * (ours | theirs).sum())


async def test_semantic_fpn(tmp_path: Path) -> None:
    """The class of each pixel is the authors', of a picture whose levels are no exact doubles of each other."""
    found = (await answer(tmp_path, "semfpn", "sem_fpn_convmlp_s_ade20k", "c"))["segments"]
    expected = goldens.label_map("semfpn_s_c")
    ours = np.full(expected.shape, 255)
    for one in found:
        ours[pycocotools.mask.decode(one["mask"]).astype(bool)] = one["index"]
    assert (ours == expected).mean() >= 0.9999


async def answer(folder: Path, model: str, name: str, picture: str) -> dict[str, Any]:
    """What the command line answers as the published model `name`, whose file the goldens call `model`."""
    published = CATALOGUE[name]
    network = build_network(published.architecture, len(published.labels))
    goldens.fill(network)
    filled = network.state_dict()
    made = goldens.load(f"keys/keys_{model}_s.json")
    tensors = {key: filled[key] for key, _, _ in made["keys"]}
    bare = made["checkpoint"] == "bare state dict"
    file = folder / Path(published.path).name
    torch.save(tensors if bare else {"meta": {}, "state_dict": tensors, "optimizer": {}}, file)
    settings = {**SETTINGS, "CONVMLP_MODELS_DIR": str(folder / "store")}
    imported = await convmlp("models", "import", str(file), "--as", name, environment=settings)
    assert (imported.status, imported.err) == (0, "")
    image = str(goldens.GOLDENS / "images" / f"{picture}.png")
    ran = await convmlp(published.task, image, "--local", "--model", name, "--json", environment=settings)
    assert (ran.status, ran.err) == (0, "")
    document = json.loads(ran.out)
    assert (document["model"], document["task"]) == (name, published.task)
    result: dict[str, Any] = document["results"][0]
    size = goldens.picture_size(picture)
    assert result["image"] == {"width": size.width, "height": size.height}
    return result


def partners(found: list[dict[str, Any]], golden: dict[str, Any]) -> list[int]:
    """Check that both hold the same detections; return, for each of ours, its partner's position."""
    boxes = np.array([[one["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for one in found])
    scores, indices = np.array([one["score"] for one in found]), np.array([one["index"] for one in found])
    expected, labels = np.array(golden["boxes"]), np.array(golden["labels"])
    assert len(boxes) == len(expected)
    far = np.abs(boxes[:, None] - expected[None, :, :4]).max(axis=2)
    far += np.abs(scores[:, None] - expected[None, :, 4])
    far[indices[:, None] != labels[None]] = np.inf
    nearest: list[int] = far.argmin(axis=1).tolist()
    assert sorted(nearest) == list(range(len(expected)))
    assert np.abs(boxes - expected[nearest, :4]).max() <= 0.1
    assert np.abs(scores - expected[nearest, 4]).max() <= 5e-4
    names = CATALOGUE["retinanet_convmlp_s_coco"].labels
    assert all(one["label"] == names[one["index"]] for one in found)
    return nearest
