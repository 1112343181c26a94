"""The other backbones' published checkpoints, end to end: file → `convmlp models import` → `convmlp classify`.

The files are wrapped as the authors publish them, with reproducible weights. The answers must equal those of the
authors' code.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.zoo.catalogue import CATALOGUE
from tests import goldens
from tests.goldens import System
from tests.service.cli.convmlp_command import convmlp

pytestmark = goldens.requires_families

SETTINGS = {"CONVMLP_DEVICE": "cpu", "CONVMLP_PRECISION": "fp32"}


def other(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that would give another answer."""
    return {key: tensor.flip(0) if tensor.ndim else tensor for key, tensor in tensors.items()}


def file_of(system: str, tensors: dict[str, Tensor]) -> object:
    """What the authors' training script saves; the weights that they do not evaluate are others."""
    training = {"optimizer": {"state": {}, "param_groups": []}, "lr_scheduler": {}, "epoch": 299}
    args = argparse.Namespace(model=system, lr=0.001)
    match system:
        case "hire_mlp":
            return {"model": tensors, "model_ema": other(tensors), "args": args, **training}
        case "cmt":
            return {"model": other(tensors), "model_ema": tensors, "args": args, **training}
        case "hvt":
            return {"model": tensors, "scaler": {}, "args": args, **training}
        case _:
            return tensors


@pytest.mark.parametrize(
    ("system", "variant", "name", "file"),
    [
        ("cmt", "cmt_ti", "cmt_tiny", "cmt_tiny.pth"),
        ("cmt", "cmt_s", "cmt_small", "cmt_small.pth"),
        ("hire_mlp", "hire_mlp_tiny", "hire_mlp_tiny", "hire_mlp_tiny.pth"),
        ("repmlpnet", "RepMLPNet-T224", "repmlpnet_t224", "RepMLPNet-T224-train.pth"),
        ("hvt", "hvt_ti_1", "hvt_ti_1", "hvt_ti_1.pth"),
        ("hvt", "scale_hvt_ti_4", "scale_hvt_ti_4", "scale_hvt_ti_4.pth"),
    ],
)
async def test_the_answer_is_the_authors(system: str, variant: str, name: str, file: str, tmp_path: Path) -> None:
    """The twenty best classes, with their probabilities and ImageNet's names, of two pictures."""
    source = System(system)
    torch.save(file_of(system, source.tensors(variant)), tmp_path / file)
    settings = {**SETTINGS, "CONVMLP_MODELS_DIR": str(tmp_path / "store")}
    imported = await convmlp("models", "import", str(tmp_path / file), "--as", name, environment=settings)
    assert imported.status == 0, imported.err
    images = [str(goldens.GOLDENS / "images" / f"{picture}.png") for picture in "ac"]
    ran = await convmlp(
        "classify", *images, "--local", "--model", name, "--top-k", "20", "--json", environment=settings
    )
    assert (ran.status, ran.err) == (0, "")
    for picture, result in zip("ac", json.loads(ran.out)["results"], strict=True):
        labels = result["labels"]
        golden = source.json(f"final/{variant}_{picture}.json")["top20"]
        assert [one["index"] for one in labels] == [one["index"] for one in golden]
        assert [one["label"] for one in labels] == [CATALOGUE[name].labels[one["index"]] for one in golden]
        expected = np.array([one["probability"] for one in golden])
        assert np.abs([one["score"] for one in labels] - expected).max() < 1e-4 * expected.max()
