"""`convmlp models quantize`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from model.net.cpu.int8 import int8_accelerates
from model.net.weights import write_bundle
from model.predictor import reference_answer
from service.cli.app import app
from tests.model.tiny_models import NUM_CLASSES, metadata, tiny_bundle, tiny_network

pytestmark = pytest.mark.skipif(not int8_accelerates(), reason="this CPU has no instructions for products of bytes")


def models(store: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments], env={"CONVMLP_MODELS_DIR": str(store), "COLUMNS": "200"})


def test_a_model_is_quantised_with_a_folder_of_pictures(tmp_path: Path) -> None:
    """The new model is in the store, with its figures; what exists is not replaced unasked; float weights export."""
    store, pictures = tmp_path / "store", tmp_path / "pictures"
    pictures.mkdir()
    for number in range(6):
        noise = Image.effect_noise((120, 90), 40 + 20 * number)
        Image.merge("RGB", (noise, noise.rotate(90), noise.rotate(180))).save(pictures / f"{number}.png")
    palette = tuple((index, 0, 9) for index in range(NUM_CLASSES))
    coloured = replace(metadata("classifier"), palette=palette)
    write_bundle(store, coloured, tiny_network("classifier"), reference_answer)
    made = models(store, "quantize", "tiny", "--pictures", str(pictures), "--min-agreement", "0.5", "--allow")
    assert made.exit_code == 0, made.output
    assert "agreement with float32: top1 " in made.stdout
    assert "on 3 pictures" in made.stdout
    assert "quantisation" in models(store, "show", "tiny_int8").stdout
    shown = json.loads(models(store, "show", "tiny_int8", "--json").stdout)
    assert (shown["precision"], shown["quantisation"]["pictures"]) == ("int8", 3)
    assert shown["palette"] == [list(colour) for colour in palette]
    again = models(store, "quantize", "tiny", "--pictures", str(pictures))
    assert again.exit_code == 1
    assert "--force replaces it" in again.stderr
    twice = models(store, "quantize", "tiny_int8", "--as", "other", "--pictures", str(pictures))
    assert "has int8 weights already" in twice.stderr
    file = tmp_path / "tiny.pth"
    assert models(store, "export", "tiny_int8", str(file)).exit_code == 0
    tensors = torch.load(file, weights_only=True)
    assert not any(tensor.dtype == torch.int8 for tensor in tensors.values())
    weights = store / "tiny_int8" / "model.safetensors"
    refused = models(store, "import", str(weights), "--as", "copied")
    assert "int8 weights, which are not imported" in refused.stderr


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    """The message has the number that was found."""
    tiny_bundle(tmp_path / "store", "classifier")
    (tmp_path / "empty").mkdir()
    found = models(tmp_path / "store", "quantize", "tiny", "--pictures", str(tmp_path / "empty"))
    assert found.exit_code == 1
    assert "found 0" in found.stderr


def test_a_name_that_no_model_can_have_is_refused_first(tmp_path: Path) -> None:
    """Before any picture is read: a name with a path would lead out of the store."""
    tiny_bundle(tmp_path / "store", "classifier")
    found = models(tmp_path / "store", "quantize", "tiny", "--as", "../tiny", "--pictures", str(tmp_path))
    assert found.exit_code == 2
    assert "--as" in found.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]
