"""Roboflow's unmodified `inference_sdk` with API v0, and supervision, which reads its answers."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.clients.conftest import CAT, Expected
from tests.clients.installs import only_if_asked_for, python_environment, run
from tests.e2e.convmlp_process import RunningService, running_service
from tests.fakes import fake_instances
from tests.service.frontend.rest_server import open_rest, picture

pytestmark = only_if_asked_for

PROGRAMS = Path(__file__).parent / "programs"
KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """The service with API keys."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}\n", encoding="ascii")
    with running_service("--api-keys-file", str(keys)) as running:
        yield running


@pytest.fixture(scope="module")
def printed(guarded: RunningService, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the SDK's program prints."""
    folder = tmp_path_factory.mktemp("roboflow")
    other = folder / "other.txt"
    other.write_bytes(b"%PDF-1.7 no picture\n" * 10)
    pictures = folder / "pictures"
    pictures.mkdir()
    shutil.copy(CAT, pictures)
    python = python_environment("inference-sdk")
    arguments = (guarded.url, str(pictures / CAT.name), str(other))
    return dict(json.loads(run([str(python), str(PROGRAMS / "inference_sdk_client.py"), *arguments]).splitlines()[-1]))


def supervised(answer: dict[str, Any], drawn: Path) -> dict[str, Any]:
    """What supervision makes of an answer; it draws it into the file."""
    program = str(PROGRAMS / "supervision_detections.py")
    command = [str(python_environment("supervision")), program, str(CAT), str(drawn)]
    return dict(json.loads(run(command, text=json.dumps(answer))))


def labels_of(answer: dict[str, Any]) -> list[str]:
    return [found["class"] for found in answer["predictions"]]


def test_detection(printed: dict[str, Any], expected: Expected) -> None:
    """Base64, a path, a folder and several images, with and without asyncio: REST's labels and the picture's size."""
    with PIL.Image.open(CAT) as cat:
        size = {"width": cat.width, "height": cat.height}
    ways = ("detected", "asynchronous", "of_a_path", "by_header")
    for answer in (*(printed[way] for way in ways), printed["of_several"][0], printed["of_a_folder"]):
        for one in answer if isinstance(answer, list) else [answer]:
            assert one["image"] == size
            assert labels_of(one)
            assert labels_of(one) == list(expected.detections)[: len(labels_of(one))]
    assert printed["of_several"][1]["image"]["width"] == size["width"] // 2


def test_coordinates_are_scaled_back(printed: dict[str, Any]) -> None:
    """The SDK scales a large picture down, and the answer back to the picture's size."""
    first, scaled = printed["of_a_path"]["predictions"][0], printed["scaled_down"]["predictions"][0]
    assert printed["scaled_down"]["image"] == printed["of_a_path"]["image"]
    assert [scaled[side] for side in ("x", "y")] == pytest.approx([first["x"], first["y"]], rel=0.1)


def test_parameters(printed: dict[str, Any]) -> None:
    """A confidence that nothing reaches leaves nothing."""
    assert all(found["confidence"] > 0.99 for found in printed["confident"]["predictions"])
    assert len(printed["confident"]["predictions"]) <= 1


def test_other_tasks(printed: dict[str, Any], expected: Expected) -> None:
    """A classifier's labels by falling confidence, a segmenter's map of the picture's size, and a drawn answer."""
    assert labels_of(printed["classified"])[: len(expected.labels)] == list(expected.labels)
    assert printed["classified"]["top"] == expected.labels[0]
    segmented = printed["segmented"]["predictions"]
    with (
        PIL.Image.open(CAT) as cat,
        PIL.Image.open(io.BytesIO(base64.b64decode(segmented["segmentation_mask"]))) as map_,
    ):
        assert map_.size == cat.size
        assert printed["visualization"] == ["JPEG", *cat.size]
        indices, counts = np.unique(np.asarray(map_), return_counts=True)
    by_area = [segmented["class_map"][str(index)] for index in indices[np.argsort(-counts)]]
    assert by_area == list(expected.segments)


def test_errors_have_the_services_text(printed: dict[str, Any]) -> None:
    """The SDK's exception has the status and the service's own words."""
    (no_image, no_image_text), (no_model, no_model_text) = printed["errors"]
    assert (no_image, no_model) == (415, 404)
    assert "PDF document" in no_image_text
    assert "nothing" in no_model_text


def test_supervision(printed: dict[str, Any], tmp_path: Path) -> None:
    """`Detections.from_inference` has the boxes by their corners, the confidences and the names; it draws them."""
    answer, found = supervised(printed["detected"], tmp_path / "drawn.jpg"), printed["detected"]["predictions"]
    assert answer["names"] == labels_of(printed["detected"])
    assert answer["confidences"] == pytest.approx([one["confidence"] for one in found])
    assert answer["classes"] == [one["class_id"] for one in found]
    left = [one["x"] - one["width"] / 2 for one in found]
    assert [box[0] for box in answer["boxes"]] == pytest.approx(left)
    with PIL.Image.open(CAT) as cat, PIL.Image.open(tmp_path / "drawn.jpg") as drawn:
        assert drawn.size == cat.size
        assert np.abs(np.asarray(drawn, np.int16) - np.asarray(cat, np.int16)).max() > 100


@pytest.mark.parametrize("mask_format", ["polygon", "rle"])
def test_masks_of_supervision(mask_format: str, tmp_path: Path) -> None:
    """It reads the masks of instances from their outlines and from RLE, to the pixel; no embedded model has masks."""

    async def ask() -> dict[str, Any]:
        async with open_rest(more=[fake_instances()]) as rest:
            query = {"response_mask_format": mask_format}
            image = picture(2, width=96, height=64)
            response = await rest.http.post("/compat/roboflow/fake_instances/1", params=query, content=image)
            return dict(response.json())

    assert supervised(asyncio.run(ask()), tmp_path / "drawn.jpg")["masks"] == [48 * 32, 72 * 48]
