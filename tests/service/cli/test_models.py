from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from model.bundle import WEIGHTS_FILE, bundle_names, read_bundle
from model.zoo.catalogue import CATALOGUE
from service.cli.app import app
from tests.model.tiny_models import tiny_bundle


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder with one bundle, `tiny`."""
    tiny_bundle(tmp_path, "retinanet")
    return tmp_path


def models(*arguments: str, store: Path | None = None) -> Result:
    return CliRunner().invoke(app, ["models", *arguments], env={"CONVMLP_MODELS_DIR": str(store) if store else None})


def test_list_has_the_embedded_models_and_those_of_the_folder(store: Path) -> None:
    """Without a folder, the store has only the embedded models."""
    assert [line.split()[0] for line in models("list", store=store).stdout.splitlines()] == [
        "name",
        *bundle_names(store),
    ]
    assert [line.split()[0] for line in models("list").stdout.splitlines()] == ["name", *bundle_names(None)]
    assert "tiny" in bundle_names(store)


def test_a_row_describes_the_model(store: Path) -> None:
    """It has task, network, size and the first figure, and fits into a terminal of 80 columns."""
    (row,) = [line for line in models("list", store=store).stdout.splitlines() if line.startswith("tiny")]
    assert row.split()[1:5] == ["detect", "retinanet", "convmlp", "custom"]
    for listed in (models("list"), models("list", "--available")):
        assert max(map(len, listed.stdout.splitlines())) <= 80


def test_json_is_the_bundles_own_config(store: Path) -> None:
    """`show --json` prints the config as it is in the bundle, `list --json` those of all models."""
    config = json.loads(read_bundle(store / "tiny").config.model_dump_json())
    shown = json.loads(models("show", "tiny", "--json", store=store).stdout)
    assert shown.pop("folder") == str(store / "tiny")
    assert shown == {key: value for key, value in config.items() if key not in ("format", "reference")}
    listed = json.loads(models("list", "--json", store=store).stdout)["models"]
    assert [one["name"] for one in listed] == bundle_names(store)


def test_show_prints_labels_source_and_hash(store: Path) -> None:
    """The table has what a user must know before using a model."""
    shown = models("show", "tiny", store=store).stdout
    for text in ("class 0, class 1, class 2", "CC0-1.0", "nobody", read_bundle(store / "tiny").config.weights_sha256):
        assert text in shown


def test_an_unknown_model_is_an_error(store: Path) -> None:
    """The message lists the known models; the exit status is 1."""
    shown = models("show", "unknown", store=store)
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert "there is no model 'unknown' in the store; known: " in shown.stderr
    assert "tiny" in shown.stderr


def test_a_damaged_model_hides_no_other(store: Path) -> None:
    """A model with damaged weights is reported on stderr and by the exit status; the others are listed."""
    with (store / "tiny" / WEIGHTS_FILE).open("ab") as file:
        file.write(b"!")
    listed = models("list", store=store)
    assert listed.exit_code == 1
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["name", *bundle_names(None)]
    assert "has SHA-256" in listed.stderr


def test_the_published_models_of_all_families_are_listed() -> None:
    """With accuracy, parameters, GMACs and size, as their authors publish them; as JSON with source and remarks."""
    table = models("list", "--available").stdout.splitlines()
    assert [line.split()[0] for line in table] == ["name", *CATALOGUE]
    (row,) = [line for line in table if line.startswith("cmt_small ")]
    assert row.split() == ["cmt_small", "classify", "top1", "0.835", "26.26", "4", "105"]
    listed = {one["name"]: one for one in json.loads(models("list", "--available", "--json").stdout)["models"]}
    assert listed.keys() == CATALOGUE.keys()
    assert "25.1 million" in listed["cmt_small"]["accuracy"]["measured_on"]
    assert listed["hire_mlp_tiny"]["source"]["url"].endswith("/releases/download/log/hire_mlp_tiny.pth")
