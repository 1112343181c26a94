"""Answers in all their forms, over real connections."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import httpx2
import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco

from model.reference import REFERENCE_PICTURE
from model.types import BoolArray, Task
from tests.model.heif_files import irot, rewritten
from tests.model.heif_files import picture as heif_picture
from tests.model.picture_files import PHOTO, encoded
from tests.model.tiff_files import tiff
from tests.service.frontend.rest_server import Rest, picture
from tests.waiting import until

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # The decoder of pycocotools, with NumPy 2.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]


async def only_result(rest: Rest, path: str, body: bytes) -> dict[str, Any]:
    response = await rest.http.post(path, content=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    (result,) = response.json()["results"]
    return dict(result)


def opened(response: httpx2.Response) -> PIL.Image.Image:
    assert response.status_code == 200, response.text
    return PIL.Image.open(io.BytesIO(response.content))


def decoded(mask: Any, mask_format: str, height: int, width: int) -> BoolArray:  # noqa: ANN401
    """A mask in JSON as bool (height, width)."""
    if mask_format == "rle":
        assert mask["size"] == [height, width]
        return np.asarray(coco.decode(mask)).astype(bool)
    if mask_format == "png":
        png = PIL.Image.open(io.BytesIO(base64.b64decode(mask, validate=True)))
        assert (png.format, png.mode, png.size) == ("PNG", "L", (width, height))
        assert set(np.unique(np.asarray(png))) <= {0, 255}
        return np.asarray(png) > 0
    filled = np.zeros((height, width), np.uint8)
    for polygon in mask:
        # Outlines run along the pixels' edges; a filled polygon of OpenCV's has its last row and column inside.
        x, y = np.array(polygon).reshape(-1, 2).T
        filled[y.min() : y.max(), x.min() : x.max()] = 1
    return filled.astype(bool)


async def test_classify(rest: Rest) -> None:
    """Labels by falling score, as many as asked for, with the picture's own size."""
    result = await only_result(rest, "/classify?top_k=3", picture(7, width=90, height=50))
    assert result == {
        "image": {"width": 90, "height": 50},
        "labels": [
            {"label": "grey 7", "index": 7, "score": 0.5},
            {"label": "grey 8", "index": 8, "score": 0.25},
            {"label": "grey 9", "index": 9, "score": 0.125},
        ],
    }


async def test_detect_without_masks(rest: Rest) -> None:
    """Boxes in pixels of the picture; without masks where none were requested."""
    result = await only_result(rest, "/detect?mask_format=none", picture(2, width=96, height=64))
    assert result == {
        "image": {"width": 96, "height": 64},
        "detections": [
            {"label": "cat", "index": 0, "score": 0.9, "box": {"xmin": 0.0, "ymin": 0.0, "xmax": 48.0, "ymax": 32.0}},
            {"label": "dog", "index": 1, "score": 0.6, "box": {"xmin": 24.0, "ymin": 16.0, "xmax": 96.0, "ymax": 64.0}},
        ],
    }
    assert result == await only_result(rest, "/detect?masks=false", picture(2, width=96, height=64))


@pytest.mark.parametrize(
    ("query", "count"), [("score_threshold=0.7", 1), ("max_detections=1", 1), ("score_threshold=0.95", 0)]
)
async def test_detect_parameters(rest: Rest, query: str, count: int) -> None:
    """Threshold and limit of detections reach the worker."""
    assert len((await only_result(rest, f"/detect?{query}", picture()))["detections"]) == count


@pytest.mark.parametrize("mask_format", ["rle", "png", "polygon"])
async def test_detect_masks(rest: Rest, mask_format: str) -> None:
    """A detection's mask, in each format, fills its box where the network set it."""
    result = await only_result(rest, f"/detect?mask_format={mask_format}", picture(width=80, height=40))
    expected = np.zeros((40, 80), bool)
    expected[10:40, 20:80] = True
    assert np.array_equal(decoded(result["detections"][1]["mask"], mask_format, 40, 80), expected)


@pytest.mark.parametrize("mask_format", ["rle", "png", "polygon"])
async def test_segment_masks(rest: Rest, mask_format: str) -> None:
    """Segments by falling area; their masks, in each format, cover every pixel once."""
    result = await only_result(rest, f"/segment?mask_format={mask_format}", picture(3, width=81, height=60))
    assert [(row["index"] > 0, row["area"]) for row in result["segments"]] == [(True, 41 * 60), (False, 40 * 60)]
    masks = [decoded(row["mask"], mask_format, 60, 81) for row in result["segments"]]
    assert np.array_equal(masks[0], np.broadcast_to(np.arange(81) >= 40, (60, 81)))
    assert np.array_equal(np.sum(masks, axis=0), np.ones((60, 81)))


async def test_segment_without_masks(rest: Rest) -> None:
    """Names and areas alone, where no masks are asked for."""
    result = await only_result(rest, "/segment?masks=false", picture(3))
    assert [sorted(row) for row in result["segments"]] == [["area", "confidence", "index", "label"]] * 2


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize(("accept", "form"), [("image/png", "PNG"), ("image/jpeg", "JPEG"), ("image/webp", "WEBP")])
async def test_overlay(rest: Rest, task: Task, accept: str, form: str) -> None:
    """`Accept` gets the picture itself, of its own size, with something drawn on it."""
    body = REFERENCE_PICTURE.read_bytes()
    drawn = await rest.http.post(f"/{task}", content=body, headers={"Accept": accept})
    assert drawn.headers["content-type"] == accept
    assert drawn.headers["vary"] == "Accept"
    image, plain = opened(drawn), PIL.Image.open(REFERENCE_PICTURE)
    assert (image.format, image.size) == (form, plain.size)
    difference = np.abs(np.asarray(image.convert("RGB"), int) - np.asarray(plain.convert("RGB"), int)).max(axis=2)
    changed = (difference > 40).mean()
    assert 0.005 < changed < 0.9


async def test_overlay_of_a_bad_image(rest: Rest) -> None:
    """The error of an overlay is problem+json, whatever `Accept` is."""
    response = await rest.http.post("/detect", content=b"%PDF", headers={"Accept": "image/png"})
    assert (response.status_code, response.headers["content-type"]) == (415, "application/problem+json")


@pytest.mark.parametrize("path", ["/classify", "/detect", "/segment", "/analyze", "/embed"])
async def test_nothing_acceptable_is_406(rest: Rest, path: str) -> None:
    """The problem names what is offered, before the body is read."""
    response = await rest.http.post(path, content=b"", headers={"Accept": "text/html, image/*;q=0"})
    assert (response.status_code, response.headers["content-type"]) == (406, "application/problem+json")
    problem = response.json()
    assert problem["type"] == "/problems/not-acceptable"
    assert "what is offered: application/json" in problem["detail"]
    assert ("image/png" in problem["detail"]) == (path != "/embed")


@pytest.mark.parametrize(
    ("path", "accept", "advice"),
    [
        ("/detect", "image/png", "or accept application/json"),
        ("/segment?view=labelmap", "application/json", "or leave `view` out and accept application/json"),
    ],
)
async def test_picture_of_several_images_is_refused(rest: Rest, path: str, accept: str, advice: str) -> None:
    """A picture is the answer to one image only: several are refused, and the advice leads to an answer."""
    files = [("image", picture()), ("image", picture())]
    response = await rest.http.post(path, files=files, headers={"Accept": accept})
    assert response.status_code == 422
    assert response.json()["detail"].endswith(f"send them one by one, {advice}")
    task, _, _ = path.partition("?")
    response = await rest.http.post(task, files=files, headers={"Accept": "application/json"})
    assert len(response.json()["results"]) == 2


async def test_label_map(rest: Rest) -> None:
    """`view=labelmap` is an 8-bit PNG with the class index of each pixel, whatever `Accept` is."""
    body = picture(width=81, height=60)
    result = await only_result(rest, "/segment?masks=false", body)
    expected = np.where(np.arange(81) >= 40, result["segments"][0]["index"], 0)
    for accept in ("*/*", "image/jpeg"):
        response = await rest.http.post("/segment?view=labelmap", content=body, headers={"Accept": accept})
        assert response.headers["content-type"] == "image/png"
        image = opened(response)
        assert (image.mode, image.size) == ("L", (81, 60))
        assert np.array_equal(np.asarray(image), np.broadcast_to(expected, (60, 81)))


async def test_overlay_is_upright(rest: Rest) -> None:
    """The overlay of a picture with an EXIF orientation is drawn upright."""
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (80, 40), (50, 60, 70)).save(file, "JPEG", exif=exif)
    response = await rest.http.post("/segment", content=file.getvalue(), headers={"Accept": "image/png"})
    assert opened(response).size == (40, 80)


async def test_model_may_be_named(rest: Rest) -> None:
    """Naming the default model changes nothing."""
    named = await rest.http.post("/classify?model=fake_classify", content=picture())
    assert named.json() == (await rest.http.post("/classify", content=picture())).json()


async def test_server_timing(rest: Rest) -> None:
    """Server-Timing names all stages in ms, the total is no less than any of them, and the batch has its size."""
    for accept in ("*/*", "image/png"):
        response = await rest.http.post("/classify", content=picture(), headers={"Accept": accept})
        *durations_ms, batch = response.headers["server-timing"].split(", ")
        assert batch == "batch;desc=1"
        stages = dict(part.split(";dur=") for part in durations_ms)
        assert list(stages) == ["decode", "queue", "infer", "post", "total"]
        durations = {name: float(value) for name, value in stages.items()}
        assert all(0 <= value <= durations["total"] for value in durations.values())
        assert durations["decode"] > 0


async def test_an_answer_has_the_precision_of_its_model(rest: Rest) -> None:
    """Whatever its form, an answer names the precision that the model has in /models; an error has none."""
    (model,) = (one for one in (await rest.http.get("/models")).json()["models"] if one["name"] == "fake_classify")
    for files, accept in ((1, "*/*"), (1, "image/png"), (3, "*/*")):
        upload = [("image", picture())] * files
        response = await rest.http.post("/classify", files=upload, headers={"Accept": accept})
        assert response.headers["x-model-precision"] == model["precision"] == "fp32"
    refused = await rest.http.post("/classify", content=b"no image")
    assert "x-model-precision" not in refused.headers


@pytest.mark.parametrize("given", ["abc", "a b", "x" * 128, "!~"])
async def test_request_id_of_the_caller_is_kept(rest: Rest, given: str) -> None:
    """A sane X-Request-Id comes back, on good answers and on bad ones."""
    for body in (picture(), b"%PDF"):
        response = await rest.http.post("/classify", content=body, headers={"X-Request-Id": given})
        assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "caf\xe9"])
async def test_request_id_is_made(rest: Rest, given: str | None) -> None:
    """Without a sane X-Request-Id each request gets a new one."""
    headers = httpx2.Headers([] if given is None else [(b"X-Request-Id", given.encode("latin-1"))])
    responses = [await rest.http.post("/classify", content=picture(), headers=headers) for _ in range(2)]
    ids = {response.headers["x-request-id"] for response in responses}
    assert len(ids) == 2
    assert all(len(value) == 32 for value in ids)


async def test_long_deadline_is_cut(rest: Rest) -> None:
    """A long deadline is cut to the service's own rather than refused."""
    response = await rest.http.post("/classify", content=picture(), headers={"X-Request-Timeout-Ms": "1000000"})
    assert response.status_code == 200


async def test_caller_who_leaves_withdraws_its_job(fresh_rest: Rest) -> None:
    """A connection that breaks while its job waits takes the job out of the worker's queue."""
    batches = fresh_rest.worker.runner.batches
    before = len(batches)
    fresh_rest.worker.runner.unblocked.clear()
    first = asyncio.create_task(fresh_rest.http.post("/classify", content=picture(1)))
    await until(lambda: len(batches) != before)
    body = picture(2)
    _, writer = await asyncio.open_connection("127.0.0.1", fresh_rest.port)
    writer.write(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await fresh_rest.until_waiting(1)
    writer.close()
    cancelled = 'convmlp_requests_total{model="fake_classify",outcome="cancelled",task="classify",transport="rest"}'
    await fresh_rest.until(cancelled, 1)
    await fresh_rest.until_waiting(0)  # the word of it has come to the worker, who may go on now
    last = asyncio.create_task(fresh_rest.http.post("/classify", content=picture(3)))
    await fresh_rest.until("convmlp_in_flight_requests", 2)
    fresh_rest.worker.runner.unblocked.set()
    assert [(await task).status_code for task in (first, last)] == [200, 200]
    assert batches[before:] == [("fake_classify", 1)] * 2


@pytest.mark.parametrize("form", ["bytes", "form", "JSON"])
@pytest.mark.parametrize(
    "data",
    [
        rewritten(heif_picture("blocks"), [irot(1)]),
        encoded(PHOTO.resize((96, 64)), "AVIF"),
        encoded(PHOTO.resize((96, 64)), "TIFF", compression="tiff_lzw"),
        tiff(np.zeros((96, 64, 3), np.uint8), order=">", tags={274: (6,)}),
    ],
    ids=["heic", "avif", "tiff", "turned tiff"],
)
async def test_pictures_of_phones_and_scanners_are_answered(rest: Rest, data: bytes, form: str) -> None:
    """HEIC, AVIF and TIFF, however they are sent. Their sizes are upright."""
    bodies: dict[str, dict[str, Any]] = {
        "bytes": {"content": data, "headers": {"Content-Type": "application/octet-stream"}},
        "form": {"files": {"image": data}},
        "JSON": {"json": {"image": base64.b64encode(data).decode()}},
    }
    response = await rest.http.post("/classify", **bodies[form])
    assert response.status_code == 200, response.text
    assert response.json()["results"][0]["image"] == {"width": 96, "height": 64}
