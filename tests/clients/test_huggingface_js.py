"""Hugging Face's unmodified client for JavaScript, from npm."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from tests.clients.conftest import CAT, Expected
from tests.clients.installs import node_modules, run
from tests.e2e.convmlp_process import RunningService

PROGRAM = Path(__file__).parent / "programs/huggingface.mjs"


@pytest.fixture(scope="module")
def printed(service: RunningService, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program prints."""
    folder = tmp_path_factory.mktemp("huggingface")
    (folder / "node_modules").symlink_to(node_modules("@huggingface/inference") / "node_modules")
    shutil.copy(PROGRAM, folder)
    other = folder / "picture.jpg"
    other.write_bytes(b"no picture")
    return dict(json.loads(run(["node", PROGRAM.name, service.url, str(CAT), str(other)], folder)))


def test_image_classification(printed: dict[str, Any], expected: Expected) -> None:
    """Five labels by falling score."""
    assert [row["label"] for row in printed["classified"]] == list(expected.labels)


def test_object_detection(printed: dict[str, Any], expected: Expected) -> None:
    """Labels by falling score, with boxes of whole pixels."""
    assert [row["label"] for row in printed["detected"]] == list(expected.detections)
    assert {type(side) for row in printed["detected"] for side in row["box"].values()} == {int}


def test_image_segmentation(printed: dict[str, Any], expected: Expected) -> None:
    """The client checks the form of segments: a score is a number, or is left out as here. Masks are pictures."""
    assert [row["label"] for row in printed["segmented"]] == list(expected.segments)
    with PIL.Image.open(CAT) as cat:
        for row in printed["segmented"]:
            assert "score" not in row
            with PIL.Image.open(io.BytesIO(base64.b64decode(row["mask"]))) as mask:
                assert (mask.mode, mask.size) == ("L", cat.size)


def test_errors_have_the_services_text(printed: dict[str, Any]) -> None:
    """The client's exception has the service's own words."""
    assert "image format is not supported" in printed["failed"]
