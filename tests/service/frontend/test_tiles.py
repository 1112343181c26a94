"""Large pictures in windows, over both transports: what is asked of the worker, what is answered, what is refused."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import PIL.Image
import pytest
import pytest_asyncio

from convmlp.v1 import vision_pb2 as pb
from tests.service.frontend.both_transports import PairAtWork, open_pair
from tests.service.frontend.rest_server import Rest, problem_of
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

WIDTH, HEIGHT = 400, 300
TILES, WINDOWS = "130", 4 * 3
MAX_TILES = 20


def halves(left: int, right: int, form: str = "PNG", **options: Any) -> bytes:  # noqa: ANN401
    """A picture with two grey levels."""
    pixels = np.full((HEIGHT, WIDTH, 3), left, np.uint8)
    pixels[:, WIDTH // 2 :] = right
    return encoded(pixels, form, **options)


def encoded(pixels: np.ndarray[Any, np.dtype[np.uint8]], form: str, **options: Any) -> bytes:  # noqa: ANN401
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


IMAGE = halves(100, 101)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[PairAtWork]:
    async with open_pair(max_tiles=MAX_TILES) as running:
        yield running


async def result(pair: PairAtWork, path: str, content: bytes = IMAGE) -> Any:  # noqa: ANN401
    response = await pair.http.post(path, content=content)
    assert response.status_code == 200, response.text
    return response.json()["results"][0]


async def test_both_transports_answer_alike(pair: PairAtWork) -> None:
    """Boxes of all windows, and of the whole picture, in the frame of the picture."""
    over_http = await result(pair, f"/detect?tiles={TILES}&tile_overlap=0.3")
    request = pb.DetectRequest(image=IMAGE, tiles=TILES, tile_overlap=0.3)
    over_grpc = await pair.rpc.stub.Detect(request)
    plain = await result(pair, "/detect")
    assert len(over_http["detections"]) > len(plain["detections"])
    assert over_http["image"] == plain["image"] == {"width": WIDTH, "height": HEIGHT}
    for one, other in zip(over_http["detections"], over_grpc.detections, strict=True):
        assert one["label"] == other.label
        assert one["box"]["xmax"] == pytest.approx(other.box.xmax, abs=0.01)
    assert max(one["box"]["xmax"] for one in over_http["detections"]) == WIDTH


@pytest.mark.parametrize("query", ["tiles=400x300", "tiles=5000", "tiles=400&tile_overlap=0.7"])
@pytest.mark.parametrize("task", ["detect", "segment"])
async def test_a_window_as_large_as_the_picture_is_the_plain_call(pair: PairAtWork, task: str, query: str) -> None:
    """A single window is the whole picture: one job, and the answer byte for byte."""
    before = len(pair.worker.runner.batches)
    tiled = await pair.http.post(f"/{task}?{query}", content=IMAGE)
    assert [images for _, images in pair.worker.runner.batches[before:]] == [1]
    assert tiled.content == (await pair.http.post(f"/{task}", content=IMAGE)).content


async def test_windows_share_batches_and_count_as_images(pair: PairAtWork) -> None:
    """All jobs of a picture are in flight together; the front-end counts each, and so does the worker's queue."""
    runner, registry = pair.worker.runner, pair.worker.registry
    runner.unblocked.clear()
    before = len(runner.batches)
    asking = asyncio.create_task(pair.http.post(f"/segment?tiles={TILES}", content=IMAGE))
    running = until(lambda: registry.get_sample_value("convmlp_queue_depth", {"model": "fake_segment"}) == 0)
    await until(lambda: pair.rest.registry.get_sample_value("convmlp_in_flight_requests") == WINDOWS)
    await running
    runner.unblocked.set()
    assert (await asking).status_code == 200
    sizes = [images for _, images in runner.batches[before:]]
    assert sum(sizes) == WINDOWS
    assert len(sizes) < WINDOWS
    assert pair.rest.registry.get_sample_value("convmlp_in_flight_requests") == 0


async def test_label_maps_are_stitched(pair: PairAtWork) -> None:
    """Each pixel has a class by the windows that show it; areas and confidences are those of the stitched map."""
    found = await result(pair, f"/segment?tiles={TILES}")
    pictures = {
        view: np.asarray(
            PIL.Image.open(
                io.BytesIO((await pair.http.post(f"/segment?tiles={TILES}&view={view}", content=IMAGE)).content)
            )
        )
        for view in ("labelmap", "confidence")
    }
    labels = pictures["labelmap"]
    assert labels.shape == (HEIGHT, WIDTH)
    assert (labels[:, :100] == 1).all()
    assert (labels[:, 300:] == 2).all()
    assert {segment["index"]: segment["area"] for segment in found["segments"]} == dict(
        zip(*np.unique(labels, return_counts=True), strict=True)
    )
    for segment in found["segments"]:
        mean = pictures["confidence"][labels == segment["index"]].mean() / 255
        assert segment["confidence"] == pytest.approx(mean, abs=0.01)
    few = await result(pair, f"/segment?tiles={TILES}&classes=dog&mask_format=none")
    assert [segment["label"] for segment in few["segments"]] == ["dog"]


async def test_an_analysis_answers_as_each_endpoint(pair: PairAtWork) -> None:
    """Tiles apply to the tasks that have them; the others get the whole picture."""
    answers = (await result(pair, f"/analyze?tiles={TILES}"))["answers"]
    for task, query in (("classify", ""), ("detect", f"?tiles={TILES}"), ("segment", f"?tiles={TILES}")):
        assert answers[task] == await result(pair, f"/{task}{query}")
    reply = await pair.rpc.stub.Analyze(pb.AnalyzeRequest(image=IMAGE, tiles=TILES))
    assert len(reply.answers[1].detect.detections) == len(answers["detect"]["detections"])


async def test_windows_are_those_of_the_upright_picture(pair: PairAtWork) -> None:
    """EXIF orientation is applied before the picture is cut."""
    pixels = np.asarray(PIL.Image.open(io.BytesIO(IMAGE)))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # shown turned by 90° clockwise
    turned = encoded(np.ascontiguousarray(np.rot90(pixels)), "PNG", exif=exif)
    assert await result(pair, "/detect?tiles=160x100", turned) == await result(pair, "/detect?tiles=160x100")


async def test_tiles_over_open_inference(pair: PairAtWork) -> None:
    """The parameters of an inference request have the same names; a side may be a number."""
    tensor = {"name": "image", "shape": [1, HEIGHT, WIDTH, 3], "datatype": "UINT8"}
    pixels = np.asarray(PIL.Image.open(io.BytesIO(IMAGE))).ravel().tolist()
    request = {"inputs": [tensor | {"data": pixels}], "parameters": {"tiles": 150, "tile_overlap": 0.1}}
    answer = await pair.http.post("/v2/models/fake_detect/infer", json=request)
    assert answer.status_code == 200, answer.text
    outputs = {output["name"]: output for output in answer.json()["outputs"]}
    plain = await result(pair, "/detect?tiles=150&tile_overlap=0.1")
    assert len(outputs["scores"]["data"]) == len(plain["detections"])


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("/detect?tiles=12", 422, "expected auto"),
        ("/detect?tiles=640x", 422, "expected auto"),
        ("/segment?tiles=1x2x3", 422, "expected auto"),
        ("/detect?tiles=", 422, "expected auto"),
        ("/detect?tiles=auto&tile_overlap=0.9", 422, "from 0 to 0.8"),
        ("/detect?tile_overlap=0.2", 422, "needs 'tiles'"),
        ("/classify?tiles=auto", 422, "does not belong to /classify"),
        ("/embed?tiles=auto", 422, "does not belong to /embed"),
        ("/analyze?tasks=classify&tiles=auto", 422, "does not belong to classify"),
        ("/detect?tiles=40", 413, f"{10 * 13} windows; the limit is {MAX_TILES}; use tiles="),
    ],
)
async def test_what_cannot_be_cut_is_refused(pair: PairAtWork, path: str, status: int, detail: str) -> None:
    """A wrong value has the allowed ones; too many windows have their number, the limit, and what to do."""
    response = await pair.http.post(path, content=IMAGE)
    assert response.status_code == status, response.text
    assert detail in problem_of(response.content)["detail"]


async def test_too_many_windows_over_grpc(pair: PairAtWork) -> None:
    """The same refusal, as INVALID_ARGUMENT; auto never has too many."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await pair.rpc.stub.Detect(pb.DetectRequest(image=IMAGE, tiles="40"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"the limit is {MAX_TILES}" in (refused.value.details() or "")
    assert (await pair.rpc.stub.Segment(pb.SegmentRequest(image=IMAGE, tiles="auto"))).segments


async def test_a_window_that_fails_costs_only_its_picture(pair: PairAtWork) -> None:
    """The error names the window; the other image of the request has its answer, and nothing stays in progress."""
    pair.worker.runner.not_finite = {200}
    try:
        files = [("image", halves(100, 200)), ("image", IMAGE)]
        response = await pair.http.post(f"/detect?tiles={TILES}", files=files)
    finally:
        pair.worker.runner.not_finite = ()
    failed, good = response.json()["results"]
    assert failed["error"]["status"] == 500
    assert good == await result(pair, f"/detect?tiles={TILES}")
    await until(lambda: pair.rest.registry.get_sample_value("convmlp_in_flight_requests") == 0)


async def test_windows_of_a_request_that_ended_never_run(pair: PairAtWork) -> None:
    """At the deadline the jobs that wait are cancelled at the worker."""
    runner, registry = pair.worker.runner, pair.worker.registry
    depth = {"model": "fake_detect"}
    runner.unblocked.clear()
    before = len(runner.batches) + 1
    holding = asyncio.create_task(pair.http.post("/detect", content=IMAGE))
    await until(lambda: len(runner.batches) == before)  # on the device: windows are due sooner, and would be first
    headers = {"X-Request-Timeout-Ms": "700"}
    late = await pair.http.post(f"/detect?tiles={TILES}", content=IMAGE, headers=headers)
    assert late.status_code == 504, late.text
    await until(lambda: registry.get_sample_value("convmlp_queue_depth", depth) == 0)
    runner.unblocked.set()
    assert (await holding).status_code == 200
    assert (await pair.http.post("/detect", content=IMAGE)).status_code == 200
    ran = sum(images for _, images in runner.batches[before:])
    assert ran < WINDOWS


@pytest.mark.settings(rate_limit_per_s=0.1, rate_limit_burst=2)
async def test_a_rate_counts_windows(fresh_rest: Rest) -> None:
    """A picture in 12 windows, and as a whole, counts as 13 images of its caller."""
    first = await fresh_rest.http.post(f"/detect?tiles={TILES}", content=IMAGE)
    assert first.status_code == 200
    refused = await fresh_rest.http.post("/detect", content=IMAGE)
    assert refused.status_code == 429
    assert 10 * (WINDOWS - 1) <= int(refused.headers["retry-after"]) <= 10 * (WINDOWS + 1)


@pytest.mark.settings(max_decoded_bytes=1_000_000)
async def test_windows_that_do_not_fit_into_memory_are_refused(fresh_rest: Rest) -> None:
    """The error has the bytes that windows take, and the limit; larger tiles of the same picture are answered."""
    refused = await fresh_rest.http.post("/detect?tiles=60&tile_overlap=0", content=halves(1, 2))
    assert refused.status_code == 413
    assert "to cut the image into windows takes up to" in problem_of(refused.content)["detail"]
    assert (await fresh_rest.http.post("/detect?tiles=200", content=IMAGE)).status_code == 200
