"""DeepStack's unmodified SDK, and `deepstack-python`, the library of its Home Assistant integration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from tests.clients.conftest import CAT, Expected
from tests.clients.installs import only_if_asked_for, python_environment, run
from tests.e2e.convmlp_process import RunningService, running_service

pytestmark = only_if_asked_for

PROGRAM = Path(__file__).parent / "programs/deepstack_clients.py"


@pytest.fixture(scope="module")
def at_root() -> Iterator[RunningService]:
    """The service with DeepStack's API at the root, too: the integration takes a host and a port."""
    with running_service("--deepstack-at-root") as running:
        yield running


@pytest.fixture(scope="module")
def printed(at_root: RunningService, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program prints."""
    other = tmp_path_factory.mktemp("deepstack") / "other.jpg"
    other.write_bytes(b"no picture")
    python = python_environment("deepstack")
    return dict(json.loads(run([str(python), str(PROGRAM), at_root.url, str(CAT), str(other)]).splitlines()[-1]))


def test_detection(printed: dict[str, Any], expected: Expected) -> None:
    """Files, bytes, Pillow's pictures and arrays: REST's labels in whole pixels; the SDK draws them."""
    for way in ("detected", "of_pillow", "of_bytes", "of_an_array", "home_assistant", "home_assistant_custom"):
        rows = printed[way]
        assert rows
        assert [row["label"] for row in rows] == list(expected.detections)[: len(rows)]
        assert {type(row[side]) for row in rows for side in ("x_min", "y_min", "x_max", "y_max")} == {int}
        assert all(row["confidence"] >= 0.4 for row in rows)
    assert printed["of_bytes"] == printed["detected"]
    with PIL.Image.open(CAT) as cat:
        assert printed["drawn_size"] == list(cat.size)


def test_min_confidence(printed: dict[str, Any]) -> None:
    """A custom model is one of ours by its name; a confidence that few objects have leaves few."""
    assert all(row["confidence"] > 0.99 for row in printed["custom"])


def test_scene(printed: dict[str, Any], expected: Expected) -> None:
    """A scene is the classifier's best label."""
    assert printed["scene"]["label"] == printed["home_assistant_scene"]["label"] == expected.labels[0]
    assert 0 < printed["scene"]["confidence"] <= 1


def test_errors(printed: dict[str, Any]) -> None:
    """The statuses are those that the clients have words for, as far as they have any."""
    no_picture, no_model, home_assistant = printed["errors"]
    assert no_picture == "Invalid image"
    assert "404" in no_model
    assert home_assistant.startswith("Bad url supplied")
