from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.bundle import CONFIG_FILE, WEIGHTS_FILE
from model.net.weights import write_bundle
from model.predictor import reference_answer
from model.verify import Check, Outcome, verify_bundle
from tests.model.tiny_models import ARCHITECTURES, damaged_bundle, metadata, tiny_network

LABELS = ("cat", "dog", "ox", "hen", "pig")


def verified(folder: Path) -> dict[str, Check]:
    return {check.subject: check for check in verify_bundle(folder, torch.device("cpu"))}


def served_bundle(store: Path, family: str, labels: tuple[str, ...] = LABELS) -> Path:
    """With its own answer as the reference."""
    one = replace(metadata(family), labels=labels)
    return write_bundle(store, one, tiny_network(family), reference_answer).folder


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    change(config)
    (folder / CONFIG_FILE).write_text(json.dumps(config))


@pytest.mark.parametrize("family", list(ARCHITECTURES))
def test_a_good_model_has_one_line_for_each_check(tmp_path: Path, family: str) -> None:
    """Files, labels, pipeline, weights, reference answer, and each precision of the device."""
    checks = verified(served_bundle(tmp_path, family))
    assert list(checks)[:6] == ["files", "labels", "pipeline", "weights", "reference", "fp32"]
    assert {check.outcome for check in checks.values()} <= {Outcome.OK, Outcome.NOTE}
    assert checks["reference"].outcome is Outcome.OK
    assert checks["labels"].detail == "5: cat, dog, ox, …"


def test_damaged_files_end_the_checks(tmp_path: Path) -> None:
    """Without valid files there is nothing else to check."""
    folder = served_bundle(tmp_path, "classifier")
    weights = folder / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    checks = verified(folder)
    assert list(checks) == ["files"]
    assert checks["files"].outcome is Outcome.FAILED
    assert "has SHA-256" in checks["files"].detail


def test_weights_that_are_not_finite_fail(tmp_path: Path) -> None:
    """The tensor is named, and no answer is computed."""
    checks = verified(damaged_bundle(tmp_path, "classifier").folder)
    assert list(checks) == ["files", "labels", "pipeline", "weights"]
    assert checks["weights"] == Check(
        "weights", Outcome.FAILED, "head.weight has values that are not finite (NaN or infinity)"
    )


def test_another_answer_than_the_reference_fails(tmp_path: Path) -> None:
    """As after a change of the pipeline in the config."""
    folder = served_bundle(tmp_path, "classifier")

    def shift(config: dict[str, Any]) -> None:
        config["reference"]["labels"][0]["score"] = 0.9

    edit(folder, shift)
    check = verified(folder)["reference"]
    assert check.outcome is Outcome.FAILED
    assert "the reference is 0.900" in check.detail


@pytest.mark.parametrize(
    ("labels", "outcome", "detail"),
    [
        (("cat", " ", "ox", "", "pig"), Outcome.FAILED, "the names of classes 1, 3 are blank"),
        (("crane", "crane", "ox", "hen", "pig"), Outcome.NOTE, "several classes have the name crane"),
        (tuple(f"class {index}" for index in range(5)), Outcome.NOTE, "--labels FILE gives them"),
    ],
)
def test_doubtful_labels_are_shown(tmp_path: Path, labels: tuple[str, ...], outcome: Outcome, detail: str) -> None:
    """Blank names fail. Names that are repeated, as ImageNet has some, or that the import invented are notes."""
    check = verified(served_bundle(tmp_path, "classifier", labels))["labels"]
    assert check.outcome is outcome
    assert detail in check.detail


def test_a_std_of_zero_fails(tmp_path: Path) -> None:
    """It would divide by zero."""
    folder = served_bundle(tmp_path, "classifier")

    def zero(config: dict[str, Any]) -> None:
        config["preprocessing"]["normalisation"]["std"] = [0.0, 1.0, 1.0]

    edit(folder, zero)
    check = verified(folder)["pipeline"]
    assert (check.outcome, "a std must be above 0" in check.detail) == (Outcome.FAILED, True)


def test_an_empty_reference_is_a_note(tmp_path: Path) -> None:
    """Such a reference check cannot find a damaged model."""
    folder = served_bundle(tmp_path, "retinanet")

    def blind(config: dict[str, Any]) -> None:
        config["postprocessing"]["score_threshold"] = 1.0
        config["reference"]["detections"] = []

    edit(folder, blind)
    assert verified(folder)["reference"].outcome is Outcome.NOTE
