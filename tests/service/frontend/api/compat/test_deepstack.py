"""DeepStack's API as its clients call it; the requests of programs that are on no package registry are written out."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest
import pytest_asyncio

from model.types import Task
from service.frontend.api.compat.deepstack import DeepStackDetection
from service.frontend.http.fields import MAX_PARTS, MAX_TEXT_BYTES
from tests.fakes import fake_bundle, fake_instances
from tests.service.frontend.rest_server import Rest, open_rest, oversized_png, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREFIX = "/compat/deepstack"
DETECTION = f"{PREFIX}/v1/vision/detection"
SCENE = f"{PREFIX}/v1/vision/scene"
IMAGE = picture(2, width=97, height=65)
CAT = {"label": "cat", "confidence": 0.9, "x_min": 0, "y_min": 0, "x_max": 48, "y_max": 32}
DOG = {"label": "dog", "confidence": 0.6, "x_min": 24, "y_min": 16, "x_max": 97, "y_max": 65}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Rest]:
    """A front-end with a model for each task, two versions of a further detector, and one with masks."""
    more = [fake_instances(), fake_bundle(Task.DETECT, "cars"), fake_bundle(Task.DETECT, "cars@2")]
    async with open_rest(more=more) as running:
        yield running


async def send(rest: Rest, path: str = DETECTION, image: bytes = IMAGE, **fields: str) -> httpx2.Response:
    """As `requests.post(url, files={"image": image}, data=fields)` sends it."""
    return await rest.http.post(path, files={"image": image}, data=fields)


async def predictions(rest: Rest, path: str = DETECTION, **fields: str) -> list[dict[str, Any]]:
    response = await send(rest, path, IMAGE, **fields)
    assert response.status_code == 200, response.text
    return list(response.json()["predictions"])


async def test_detection(served: Rest) -> None:
    """Objects by falling confidence, their boxes as whole numbers, and CodeProject.AI's members beside them."""
    response = await send(served)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert answer["success"] is True
    assert answer["predictions"] == [CAT, DOG]
    assert (answer["count"], answer["code"], answer["message"]) == (2, 200, "Found cat, dog")
    assert {type(answer[name]) for name in ("inferenceMs", "processMs", "analysisRoundTripMs")} == {int}
    assert 0 <= answer["inferenceMs"] <= answer["processMs"] <= answer["analysisRoundTripMs"] + 1
    msgspec.convert(answer, DeepStackDetection)


@pytest.mark.parametrize(
    ("min_confidence", "expected"), [("0.7", [CAT]), ("0.95", []), ("0", [CAT, DOG]), ("1", []), ("0.40", [CAT, DOG])]
)
async def test_min_confidence(served: Rest, min_confidence: str, expected: list[Any]) -> None:
    """The form's field bounds the confidence, and in the query string it does as well; the form counts."""
    assert await predictions(served, min_confidence=min_confidence) == expected
    assert await predictions(served, f"{DETECTION}?min_confidence={min_confidence}") == expected
    assert await predictions(served, f"{DETECTION}?min_confidence=0.95", min_confidence=min_confidence) == expected


async def test_the_default_is_deepstack_s(served: Rest) -> None:
    """Without `min_confidence` it is 0.4, and not the model's own, which is lower."""
    await predictions(served)
    assert served.worker.runner.params[-1].score_threshold == 0.4


@pytest.mark.parametrize("path", ["detection", "detection/", "custom/cars", "custom/cars/", "custom/cars@2"])
async def test_paths(served: Rest, path: str) -> None:
    """With a slash at the end and without, and with a model's name as DeepStack names custom models."""
    assert await predictions(served, f"{PREFIX}/v1/vision/{path}") == [CAT, DOG]
    name = path.removeprefix("custom/").strip("/") if "custom" in path else "fake_detect"
    assert served.worker.runner.batches[-1][0] == name


async def test_parameters_of_the_query(served: Rest) -> None:
    """A URL may choose the model, the classes and the number of objects; what it has beyond that is ignored."""
    assert await predictions(served, f"{DETECTION}?model=cars&max_detections=1&camera=entrance") == [CAT]
    assert served.worker.runner.batches[-1][0] == "cars"
    large = picture(2, 512, 384)
    before = len(served.worker.runner.params)
    assert (await send(served, f"{DETECTION}?tiles=256x256", large)).status_code == 200
    assert len(served.worker.runner.params) > before + 2, "windows"
    response = await send(served, f"{DETECTION}?classes=cow")
    assert response.status_code == 422
    assert "'cow'" in response.json()["error"]


async def test_other_fields_are_ignored(served: Rest) -> None:
    """`api_key` and any other field, long ones too, before the image and behind it."""
    fields = {"api_key": "", "admin_key": "none", "typedict": "x" * 100_000}
    assert await predictions(served, **fields) == [CAT, DOG]
    body = served.http.build_request("POST", DETECTION, files=[("extra", b"\xff\x00"), ("image", IMAGE)])
    assert (await served.http.send(body)).json()["predictions"] == [CAT, DOG]


@pytest.mark.parametrize("body", [IMAGE, base64.b64encode(IMAGE)])
async def test_a_body_that_is_the_image(served: Rest, body: bytes) -> None:
    """The image alone is answered as well, as bytes or as base64."""
    response = await served.http.post(DETECTION, content=body)
    assert response.json()["predictions"] == [CAT, DOG]


async def test_custom_models(served: Rest) -> None:
    """The list that Blue Iris asks for has the detectors' names; CodeProject.AI takes GET and POST."""
    for method in ("GET", "POST"):
        for path in ("/v1/vision/custom/list", "/v1/vision/custom/list/"):
            response = await served.http.request(method, f"{PREFIX}{path}")
            assert response.json() == {"models": ["fake_detect", "fake_instances", "cars"], "success": True}


async def test_status(served: Rest) -> None:
    """Blue Iris asks for updates: there is none."""
    assert (await served.http.get(f"{PREFIX}/v1/status/ping")).json() == {"success": True}
    assert (await served.http.get(f"{PREFIX}/v1/status/updateavailable")).json()["updateAvailable"] is False


async def test_scene(served: Rest) -> None:
    """A scene is a classifier's most probable label."""
    answer = (await send(served, SCENE, picture(7))).json()
    assert (answer["success"], answer["label"], answer["confidence"]) == (True, "grey 7", 0.5)


async def test_what_frigate_sends(served: Rest) -> None:
    """Frigate's detector plugin posts a JPEG and an empty key, and reads rows up to the first of less than 0.4."""
    image = picture(2, 320, 320, "JPEG")
    answer = (await send(served, image=image, api_key="")).json()
    labels, detections = {0: "cat", 1: "dog"}, np.zeros((20, 6), np.float32)
    for row, found in enumerate(answer["predictions"]):
        assert found["confidence"] >= 0.4
        (label,) = [index for index, name in labels.items() if name == found["label"].lower()]
        box = [found[side] / 320 for side in ("y_min", "x_min", "y_max", "x_max")]
        detections[row] = [label, float(found["confidence"]), *box]
    assert detections[:2].tolist() == pytest.approx(
        np.array([[0, 0.9, 0, 0, 0.5, 0.5], [1, 0.6, 0.25, 0.25, 1, 1]]), abs=1e-6
    )
    assert not detections[2:].any()


@pytest.mark.parametrize(
    ("image", "fields", "path", "status", "words"),
    [
        (b"%PDF-1.7", {}, DETECTION, 400, "PDF document"),
        (IMAGE[:60], {}, DETECTION, 400, "truncated|corrupt|decode"),
        (b"", {}, DETECTION, 400, "image"),
        (oversized_png(30_000, 30_000), {}, DETECTION, 400, "megapixels|pixels"),
        (IMAGE, {"min_confidence": "1.5"}, DETECTION, 422, "'min_confidence' is '1.5'; expected a number from 0 to 1"),
        (IMAGE, {"min_confidence": "40%"}, DETECTION, 422, "'min_confidence' is '40%'"),
        (IMAGE, {"min_confidence": "nan"}, DETECTION, 422, "nan"),
        (IMAGE, {"min_confidence": "9" * (MAX_TEXT_BYTES + 1)}, DETECTION, 400, "min_confidence"),
        (IMAGE, {}, f"{PREFIX}/v1/vision/custom/nothing", 404, "no model 'nothing'"),
        (IMAGE, {}, f"{PREFIX}/v1/vision/custom/fake_segment", 422, "fake_segment"),
        (IMAGE, {}, f"{DETECTION}?max_detections=0", 422, "max_detections"),
        (IMAGE, {}, f"{PREFIX}/v1/vision/face", 404, "there is nothing at"),
        (IMAGE, {f"field{n}": "" for n in range(MAX_PARTS)}, DETECTION, 400, f"{MAX_PARTS} parts"),
    ],
)
async def test_errors(served: Rest, image: bytes, fields: dict[str, str], path: str, status: int, words: str) -> None:
    """An error has DeepStack's members, and its status is one that the clients read: of an image always 400."""
    response = await send(served, path, image, **fields)
    answer = response.json()
    assert response.status_code == answer["code"] == answer["status"] == status, answer
    assert response.headers["content-type"] == "application/json"
    assert answer["success"] is False
    assert re.search(words, answer["error"])
    assert answer["error"] == answer["detail"]


async def test_one_image(served: Rest) -> None:
    """A form with no image, or with two, is refused with what is expected."""
    for files, words in (
        ([("picture", IMAGE)], "no image; send it as the part `image`"),
        ([("image", IMAGE), ("image", IMAGE)], "more than 1 image;"),
    ):
        response = await served.http.post(DETECTION, files=files)
        assert response.status_code == 400
        assert words in response.json()["error"]


@pytest.mark.settings(deepstack_at_root=True)
async def test_at_the_root(fresh_rest: Rest) -> None:
    """With the setting, clients that take a host and a port find the paths there, and errors in the same form."""
    assert await predictions(fresh_rest, "/v1/vision/detection") == [CAT, DOG]
    assert (await fresh_rest.http.post("/v1/vision/custom/list")).json()["models"] == ["fake_detect"]
    assert (await send(fresh_rest, "/v1/vision/face")).json()["success"] is False
    assert await predictions(fresh_rest) == [CAT, DOG]


async def test_not_at_the_root(served: Rest) -> None:
    """Without it they are below the prefix only."""
    assert (await send(served, "/v1/vision/detection")).status_code == 404
