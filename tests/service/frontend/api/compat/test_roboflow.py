"""Roboflow's API v0 as its clients call it: bodies, parameters, and the answer of each task."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import cv2
import httpx2
import msgspec
import numpy as np
import PIL.Image
import pytest
import pytest_asyncio

from model.bundle import Bundle
from model.postprocess.masks import RegionMask
from model.spec import ClassifyPostSpec
from model.types import BoolArray, Size, Task
from service.frontend.api.compat.roboflow.answers import (
    RoboflowClassification,
    RoboflowDetection,
    RoboflowLabels,
    RoboflowSegmentation,
    outline,
)
from service.frontend.http.fields import MAX_QUERY_FIELDS
from tests.fakes import fake_bundle, fake_instances
from tests.service.frontend.rest_server import Rest, open_rest, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREFIX = "/compat/roboflow"
IMAGE = picture(2, width=96, height=64)
BASE64 = base64.b64encode(IMAGE)
CAT = {"x": 24.0, "y": 16.0, "width": 48.0, "height": 32.0, "confidence": 0.9, "class": "cat", "class_id": 0}
DOG = {"x": 60.0, "y": 40.0, "width": 72.0, "height": 48.0, "confidence": 0.6, "class": "dog", "class_id": 1}
URL_ENCODED = {"Content-Type": "application/x-www-form-urlencoded"}


def multi_label() -> Bundle:
    bundle = fake_bundle(Task.CLASSIFY, "several")
    config = bundle.config.model_copy(update={"postprocessing": ClassifyPostSpec(activation="sigmoid")})
    return replace(bundle, config=config)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Rest]:
    """A front-end with models of all tasks, one with masks, and a second version of a detector."""
    more = [fake_instances(), fake_bundle(Task.DETECT, "fake_detect@2"), multi_label()]
    async with open_rest(more=more) as running:
        yield running


async def send(rest: Rest, model: str = "fake_detect/1", **query: str) -> httpx2.Response:
    """As `inference_sdk` sends it: base64 in the place of a form, and the key among the parameters."""
    params = {"api_key": "any", **query}
    return await rest.http.post(f"{PREFIX}/{model}", params=params, content=BASE64, headers=URL_ENCODED)


async def ask(rest: Rest, model: str = "fake_detect/1", **query: str) -> dict[str, Any]:
    response = await send(rest, model, **query)
    assert response.status_code == 200, response.text
    return dict(response.json())


def without_ids(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The predictions; each has an id of its own."""
    ids = {found["detection_id"] for found in answer["predictions"]}
    assert len(ids) == len(answer["predictions"])
    return [{name: value for name, value in found.items() if name != "detection_id"} for found in answer["predictions"]]


def mask_of(points: list[dict[str, int]], size: Size) -> BoolArray:
    """A polygon as supervision fills it."""
    canvas = np.zeros((size.height, size.width), np.uint8)
    corners = np.round([[point["x"], point["y"]] for point in points]).astype(np.int32)
    return np.asarray(cv2.fillPoly(canvas, [corners], 1) > 0, np.bool_)


async def test_detection(served: Rest) -> None:
    """Boxes by their centres, with the picture's size, the request's id and the time."""
    response = await send(served)
    answer = response.json()
    assert without_ids(answer) == [CAT, DOG]
    assert answer["image"] == {"width": 96, "height": 64}
    assert answer["inference_id"] == response.headers["x-request-id"]
    assert 0 < answer["time"] < 60
    assert response.headers["content-type"] == "application/json"
    msgspec.convert(answer, RoboflowDetection)


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [
        ("70", [CAT]),
        ("0.7", [CAT]),
        ("1", [CAT, DOG]),
        ("0", [CAT, DOG]),
        ("95", []),
        ("100", []),
        ("default", [CAT, DOG]),
    ],
)
async def test_confidence(served: Rest, confidence: str, expected: list[Any]) -> None:
    """It is a fraction below 1, and in percent from 1 on."""
    assert without_ids(await ask(served, confidence=confidence)) == expected


async def test_parameters_reach_the_model(served: Rest) -> None:
    """Names are Roboflow's, and so are the defaults."""
    await ask(served)
    params = served.worker.runner.params[-1]
    assert (params.score_threshold, params.iou_threshold, params.max_detections) == (0.4, 0.3, 300)
    await ask(
        served, confidence="default", overlap="50", max_detections="7", class_agnostic_nms="true", classes="dog,cat"
    )
    params = served.worker.runner.params[-1]
    assert (params.score_threshold, params.iou_threshold, params.max_detections) == (None, 0.5, 7)
    assert (params.agnostic_nms, params.classes) == (True, (0, 1))


async def test_versions(served: Rest) -> None:
    """MODEL/1 is the model without a version in its name, and MODEL/2 is MODEL@2."""
    for path, name in (("fake_detect/1", "fake_detect"), ("fake_detect/2", "fake_detect@2")):
        await ask(served, path)
        assert served.worker.runner.batches[-1][0] == name


@pytest.mark.parametrize(
    "more",
    [
        {"content": IMAGE, "headers": {"Content-Type": "image/png"}},
        {"content": BASE64},
        {"content": b"data:image/png;base64," + BASE64},
        {"files": {"file": IMAGE}},
        {"files": {"image": IMAGE}, "data": {"name": "picture.png"}},
    ],
)
async def test_forms_of_the_body(served: Rest, more: dict[str, Any]) -> None:
    """Base64 under any Content-Type, the bytes, and a form as the hosted API takes it."""
    response = await served.http.post(f"{PREFIX}/fake_detect/1", **more)
    assert response.status_code == 200, response.text
    assert without_ids(response.json()) == [CAT, DOG]


async def test_instances(served: Rest) -> None:
    """A detector with masks gives each object's outline, which fills to its mask, or the mask as COCO's RLE."""
    size = Size(64, 96)
    outlined = await ask(served, "fake_instances/1")
    msgspec.convert(outlined, RoboflowDetection)
    whole = await ask(served, "fake_instances/1", response_mask_format="rle")
    response = await served.http.post("/detect?model=fake_instances&mask_format=png", content=IMAGE)
    for points, rle, other in zip(
        outlined["predictions"], whole["predictions"], response.json()["results"][0]["detections"], strict=True
    ):
        with PIL.Image.open(io.BytesIO(base64.b64decode(other["mask"]))) as image:
            expected = np.asarray(image) > 0
        assert expected.any()
        assert points["mask_format"] == "polygon"
        assert np.array_equal(mask_of(points["points"], size), expected)
        assert (rle["mask_format"], rle["rle"]["size"]) == ("rle", [64, 96])
        assert "points" not in rle


def region(rows: list[str]) -> RegionMask:
    """A mask from its picture, two pixels from the top and three from the left."""
    pixels = np.array([[mark == "#" for mark in row] for row in rows], np.bool_)
    return RegionMask(2, 3, pixels, Size(12, 14))


@pytest.mark.parametrize(
    ("rows", "filled"),
    [
        (["#"], ["#"]),
        (["##"], ["##"]),
        (["####", "#..#", "#..#", "####"], ["####", "####", "####", "####"]),
        (["##....", "##..##", "....##", "...###"], ["......", "....##", "....##", "...###"]),
        ([".#.", "###", ".#."], [".#.", "###", ".#."]),
    ],
)
async def test_outlines(rows: list[str], filled: list[str]) -> None:
    """An outline is of the largest part, fills to exactly that and its holes, and has at least three points."""
    points = outline(region(rows))
    assert len(points) >= 3
    assert np.array_equal(
        mask_of([{"x": int(point.x), "y": int(point.y)} for point in points], Size(12, 14)), region(filled).full_mask()
    )


async def test_no_outline_without_a_pixel() -> None:
    """A mask without a pixel has no outline."""
    assert outline(region(["..", ".."])) == []


async def test_classification(served: Rest) -> None:
    """All classes by falling confidence, and the best beside them."""
    answer = await ask(served, "fake_classify/1")
    assert (answer["top"], answer["confidence"]) == ("grey 2", 0.5)
    assert len(answer["predictions"]) == 256
    assert answer["predictions"][1] == {"class": "grey 3", "class_id": 3, "confidence": 0.25}
    msgspec.convert(answer, RoboflowClassification)


async def test_labels_that_do_not_exclude_each_other(served: Rest) -> None:
    """A classifier by sigmoid has each class by its name, and those above the threshold are the predicted ones."""
    answer = await ask(served, "several/1", confidence="20")
    assert answer["predicted_classes"] == ["grey 2", "grey 3"]
    assert answer["predictions"]["grey 4"] == {"confidence": 0.125, "class_id": 4}
    msgspec.convert(answer, RoboflowLabels)


async def test_semantic_segmentation(served: Rest) -> None:
    """Class indices and confidences of each pixel as PNGs, and the class of each index."""
    answer = await ask(served, "fake_segment/1")
    msgspec.convert(answer, RoboflowSegmentation)
    found = answer["predictions"]
    assert found["class_map"] == {"0": "background", "1": "cat", "2": "dog"}
    for name in ("segmentation_mask", "confidence_mask"):
        with PIL.Image.open(io.BytesIO(base64.b64decode(found[name]))) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (96, 64))
    label_map = (await served.http.post("/segment?view=labelmap", content=IMAGE)).content
    assert base64.b64decode(found["segmentation_mask"]) == label_map


@pytest.mark.parametrize("model", ["fake_classify/1", "fake_detect/1", "fake_instances/1", "fake_segment/1"])
async def test_drawn(served: Rest, model: str) -> None:
    """`format=image` gives a JPEG with the answer drawn on it, `image_and_json` the same beside the answer."""
    drawn = await send(served, model, format="image")
    assert drawn.headers["content-type"] == "image/jpeg"
    with PIL.Image.open(io.BytesIO(drawn.content)) as image:
        assert (image.format, image.size) == ("JPEG", (96, 64))
    both = await ask(served, model, format="image_and_json")
    assert base64.b64decode(both["visualization"]) == drawn.content
    assert "predictions" in both


@pytest.mark.parametrize(
    ("model", "query", "body", "status", "words"),
    [
        ("fake_detect/1", {}, b"", 400, "empty"),
        ("fake_detect/1", {}, b"%PDF-1.7", 415, "PDF document"),
        ("fake_detect/1", {}, BASE64[:-1], 400, "not valid base64"),
        ("fake_detect/1", {}, IMAGE[:60], 400, "truncated|corrupt|decode"),
        ("fake_detect/1", {"confidence": "101"}, BASE64, 422, "'101'; expected a number from 0 to 1, or a percentage"),
        ("fake_detect/1", {"confidence": "high"}, BASE64, 422, "'high'"),
        ("fake_detect/1", {"confidence": "nan"}, BASE64, 422, "'nan'"),
        ("fake_detect/1", {"confidence": "-5"}, BASE64, 422, "'-5'"),
        ("fake_detect/1", {"overlap": "1e9"}, BASE64, 422, "overlap"),
        ("fake_detect/1", {"max_detections": "0"}, BASE64, 422, "max_detections"),
        ("fake_detect/1", {"format": "video"}, BASE64, 422, "json, image, image_and_json"),
        ("fake_detect/1", {"image_type": "numpy"}, BASE64, 422, "expected base64"),
        ("fake_detect/1", {"classes": "cow"}, BASE64, 422, "'cow'"),
        ("fake_classify/1", {"classes": "cow"}, BASE64, 422, "for detectors"),
        ("fake_detect/3", {}, BASE64, 404, "fake_detect"),
        ("nothing/1", {}, BASE64, 404, "nothing"),
        ("infer/object_detection", {}, BASE64, 404, r"select_api_v0\(\)"),
        ("fake_detect/1", {f"p{n}": "" for n in range(MAX_QUERY_FIELDS + 1)}, BASE64, 422, "query string"),
        ("fake_detect/1", {"image": "http://example.org/a.jpg"}, b"", 422, "does not fetch"),
    ],
)
async def test_errors(served: Rest, model: str, query: dict[str, str], body: bytes, status: int, words: str) -> None:
    """An error is JSON with the text in `message`, which the SDK shows."""
    response = await served.http.post(f"{PREFIX}/{model}", params=query, content=body, headers=URL_ENCODED)
    answer = json.loads(response.content)
    assert response.status_code == answer["status"] == status, answer
    assert response.headers["content-type"] == "application/json"
    assert re.search(words, answer["message"])


async def test_get_needs_a_url(served: Rest) -> None:
    """GET has no body: without `image` it is refused, with what is expected."""
    response = await served.http.get(f"{PREFIX}/fake_detect/1")
    assert response.status_code == 400
    assert "empty" in response.json()["message"]


async def test_requests_are_counted(served: Rest) -> None:
    """A request is counted under its model and task, whatever the API."""
    metric = 'convmlp_requests_total{model="fake_detect@2",outcome="ok",task="detect",transport="rest"}'
    before = await served.count(metric)
    await ask(served, "fake_detect/2")
    assert await served.count(metric) == before + 1
