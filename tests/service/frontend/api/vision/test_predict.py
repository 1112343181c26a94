"""Unary predictions: answers of each task in every form."""

from __future__ import annotations

import io

import cv2
import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco

from convmlp.v1 import vision_pb2 as pb
from model.types import BoolArray, Task
from tests.service.frontend.both_transports import open_pair
from tests.service.frontend.grpc_server import RpcWithWorker, refusal, request_id, rich
from tests.service.frontend.rest_server import picture

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # The decoder of pycocotools, with NumPy 2.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

FORMATS = {"rle": pb.MASK_FORMAT_RLE, "png": pb.MASK_FORMAT_PNG, "polygon": pb.MASK_FORMAT_POLYGON}


def decoded(mask: pb.Mask, size: pb.ImageSize) -> BoolArray:
    """A mask in any encoding, bool (height, width)."""
    match mask.WhichOneof("encoding"):
        case "rle":
            return np.asarray(coco.decode({"size": [size.height, size.width], "counts": mask.rle})).astype(bool)
        case "png":
            png = PIL.Image.open(io.BytesIO(mask.png))
            assert (png.format, png.mode, png.size) == ("PNG", "L", (size.width, size.height))
            pixels: BoolArray = np.asarray(png) == 255
            return pixels
        case "polygons":
            # Twice the size, so that OpenCV's filling, which includes the outline, is distinguishable from it.
            canvas = np.zeros((2 * size.height + 1, 2 * size.width + 1), np.uint8)
            for polygon in mask.polygons.polygons:
                corners = np.array(polygon.coordinates, np.int32).reshape(-1, 1, 2)
                cv2.fillPoly(canvas, [2 * corners], 1)
            return canvas[1::2, 1::2].astype(bool)
    raise AssertionError("there is no mask")


async def test_classify(rpc: RpcWithWorker) -> None:
    """The requested number of labels by descending score, with the image's size."""
    reply = await rpc.stub.Classify(pb.ClassifyRequest(image=picture(7, width=90, height=50), top_k=3))
    assert reply.model == "fake_classify"
    assert (reply.image.width, reply.image.height) == (90, 50)
    received = [(row.label, row.index, row.score) for row in reply.labels]
    assert received == [("grey 7", 7, 0.5), ("grey 8", 8, 0.25), ("grey 9", 9, 0.125)]
    assert not reply.HasField("error")


async def test_defaults_are_the_services(rpc: RpcWithWorker) -> None:
    """Parameters have REST's defaults: five labels, the model's threshold, RLE."""
    classified = await rpc.stub.Classify(pb.ClassifyRequest(image=picture()))
    assert len(classified.labels) == 5
    detected = await rpc.stub.Detect(pb.DetectRequest(image=picture()))
    assert [row.mask.WhichOneof("encoding") for row in detected.detections] == ["rle", "rle"]


async def test_detect_without_masks(rpc: RpcWithWorker) -> None:
    """Boxes are in pixels of the image; without masks the field is not set."""
    request = pb.DetectRequest(image=picture(2, width=96, height=64), mask_format=pb.MASK_FORMAT_NONE)
    reply = await rpc.stub.Detect(request)
    received = [
        (row.label, row.index, round(row.score, 6), (row.box.xmin, row.box.ymin, row.box.xmax, row.box.ymax))
        for row in reply.detections
    ]
    assert received == [("cat", 0, 0.9, (0, 0, 48, 32)), ("dog", 1, 0.6, (24, 16, 96, 64))]
    assert not any(row.HasField("mask") for row in reply.detections)


@pytest.mark.parametrize(
    ("parameters", "count"),
    [({"score_threshold": 0.7}, 1), ({"max_detections": 1}, 1), ({"score_threshold": 0.95}, 0), ({}, 2)],
)
async def test_detect_parameters(rpc: RpcWithWorker, parameters: dict[str, float], count: int) -> None:
    """The threshold and the number of detections reach the worker."""
    request = pb.DetectRequest(image=picture(), **parameters)  # type: ignore[arg-type]
    assert len((await rpc.stub.Detect(request)).detections) == count


@pytest.mark.parametrize("mask_format", FORMATS)
async def test_detect_masks(rpc: RpcWithWorker, mask_format: str) -> None:
    """A detection's mask, in each format, has the pixels of the network's mask."""
    request = pb.DetectRequest(image=picture(width=80, height=40), mask_format=FORMATS[mask_format])
    reply = await rpc.stub.Detect(request)
    expected = np.zeros((40, 80), bool)
    expected[10:40, 20:80] = True
    assert np.array_equal(decoded(reply.detections[1].mask, reply.image), expected)


@pytest.mark.parametrize("mask_format", FORMATS)
async def test_segment_masks(rpc: RpcWithWorker, mask_format: str) -> None:
    """Segments come by descending area; their masks, in each format, cover every pixel once."""
    request = pb.SegmentRequest(image=picture(3, width=81, height=60), mask_format=FORMATS[mask_format])
    reply = await rpc.stub.Segment(request)
    assert [(row.index > 0, row.area) for row in reply.segments] == [(True, 41 * 60), (False, 40 * 60)]
    masks = [decoded(row.mask, reply.image) for row in reply.segments]
    assert np.array_equal(masks[0], np.broadcast_to(np.arange(81) >= 40, (60, 81)))
    assert np.array_equal(np.sum(masks, axis=0), np.ones((60, 81)))
    assert not reply.label_map_png


async def test_label_map(rpc: RpcWithWorker) -> None:
    """The label map comes as a PNG if requested, with masks or without."""
    request = pb.SegmentRequest(image=picture(3, width=81, height=60), mask_format=pb.MASK_FORMAT_NONE, label_map=True)
    reply = await rpc.stub.Segment(request)
    assert not any(row.HasField("mask") for row in reply.segments)
    image = PIL.Image.open(io.BytesIO(reply.label_map_png))
    assert (image.format, image.mode) == ("PNG", "L")
    expected = np.where(np.arange(81) >= 40, reply.segments[0].index, 0)
    assert np.array_equal(np.asarray(image), np.broadcast_to(expected, (60, 81)))


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_answers_are_upright(rpc: RpcWithWorker, orientation: int) -> None:
    """An image with an EXIF orientation is answered upright: its size, and the right half of the segments."""
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.new("RGB", (80, 40), (51, 51, 51)).save(file, "JPEG", exif=exif)
    reply = await rpc.stub.Segment(pb.SegmentRequest(image=file.getvalue()))
    width, height = (80, 40) if orientation < 5 else (40, 80)
    assert (reply.image.width, reply.image.height) == (width, height)
    right = next(row for row in reply.segments if row.index)
    expected = np.broadcast_to(np.arange(width) >= width // 2, (height, width))
    assert np.array_equal(decoded(right.mask, reply.image), expected)


async def test_answers_equal_rests() -> None:
    """gRPC and REST give the same answers, to REST's digits."""
    image = picture(9, width=97, height=61, form="JPEG")
    async with open_pair() as pair:
        (labels,) = (await pair.http.post("/classify", content=image)).json()["results"]
        classified = await pair.rpc.stub.Classify(pb.ClassifyRequest(image=image))
        assert [(row.label, row.index) for row in classified.labels] == [
            (row["label"], row["index"]) for row in labels["labels"]
        ]
        np.testing.assert_allclose(
            [row.score for row in classified.labels], [row["score"] for row in labels["labels"]], rtol=1e-5
        )
        (found,) = (await pair.http.post("/detect", content=image)).json()["results"]
        detected = await pair.rpc.stub.Detect(pb.DetectRequest(image=image))
        for row, expected in zip(detected.detections, found["detections"], strict=True):
            assert row.mask.rle.decode() == expected["mask"]["counts"]
            box = (row.box.xmin, row.box.ymin, row.box.xmax, row.box.ymax)
            np.testing.assert_allclose(box, list(expected["box"].values()), atol=0.01)
        (parts,) = (await pair.http.post("/segment?mask_format=polygon", content=image)).json()["results"]
        segmented = await pair.rpc.stub.Segment(pb.SegmentRequest(image=image, mask_format=pb.MASK_FORMAT_POLYGON))
        assert [
            (row.label, row.area, [list(polygon.coordinates) for polygon in row.mask.polygons.polygons])
            for row in segmented.segments
        ] == [(row["label"], row["area"], row["mask"]) for row in parts["segments"]]
        png = (await pair.http.post("/segment?view=labelmap", content=image)).content
        assert (await pair.rpc.stub.Segment(pb.SegmentRequest(image=image, label_map=True))).label_map_png == png


async def test_timings(rpc: RpcWithWorker) -> None:
    """A reply has the milliseconds of each stage. The trailing metadata agree with REST's headers."""
    call = rpc.stub.Classify(pb.ClassifyRequest(image=picture()))
    timings = (await call).timings
    stages = [timings.decode_ms, timings.queue_ms, timings.infer_ms, timings.post_ms]
    assert all(0 <= stage <= timings.total_ms for stage in stages)
    assert timings.decode_ms > 0
    received = dict(await call.trailing_metadata())["server-timing"]
    assert dict(await call.trailing_metadata())["x-model-precision"] == "fp32"
    assert isinstance(received, str)
    *parts, batch = received.split(", ")
    assert batch == "batch;desc=1"
    durations = dict(part.split(";dur=") for part in parts)
    assert list(durations) == ["decode", "queue", "infer", "post", "total"]
    assert float(durations["decode"]) == pytest.approx(timings.decode_ms, abs=0.006)


@pytest.mark.parametrize(
    ("message", "metadata", "reply", "logged"),
    [
        ("mine", "call", "mine", "mine"),
        ("", "call", "call", "call"),
        ("héron.jpg", "call", "héron.jpg", "call"),
        ("x" * 128, "call", "x" * 128, "x" * 128),
    ],
)
async def test_ids(rpc: RpcWithWorker, message: str, metadata: str, reply: str, logged: str) -> None:
    """A reply has its message's id, else its call's; metadata have the one that logs may have."""
    request = pb.ClassifyRequest(id=message, image=picture())
    call = rpc.stub.Classify(request, metadata=(("x-request-id", metadata),))
    assert (await call).id == reply
    assert dict(await call.trailing_metadata())["x-request-id"] == logged
    request.image = b"%PDF"
    error = await refusal(rpc.stub.Classify(request, metadata=(("x-request-id", metadata),)))
    assert dict(error.trailing_metadata())["x-request-id"] == request_id(rich(error)) == logged


@pytest.mark.parametrize("metadata", [(), (("x-request-id", "x" * 129),)])
async def test_a_new_id_where_none_is_valid(rpc: RpcWithWorker, metadata: tuple[tuple[str, str], ...]) -> None:
    """A call without a valid id gets a new one."""
    replies = [await rpc.stub.Classify(pb.ClassifyRequest(image=picture()), metadata=metadata) for _ in range(2)]
    assert len({reply.id for reply in replies}) == 2
    assert all(len(reply.id) == 32 for reply in replies)


@pytest.mark.parametrize("task", Task)
async def test_outcomes_are_counted(fresh_rpc: RpcWithWorker, task: Task) -> None:
    """Metrics count answers and each kind of error separately, without labels that a client can choose."""
    request_of = {Task.CLASSIFY: pb.ClassifyRequest, Task.DETECT: pb.DetectRequest, Task.SEGMENT: pb.SegmentRequest}
    ask = {
        Task.CLASSIFY: fresh_rpc.stub.Classify,
        Task.DETECT: fresh_rpc.stub.Detect,
        Task.SEGMENT: fresh_rpc.stub.Segment,
    }[task]
    request = request_of[task](image=picture())
    await ask(request)  # type: ignore[operator]
    request.image = b"%PDF"
    await refusal(ask(request))  # type: ignore[operator]
    request.model = "invented"
    await refusal(ask(request))  # type: ignore[operator]
    assert fresh_rpc.outcomes(task, "ok") == 1
    assert fresh_rpc.outcomes(task, "unsupported-format") == 1
    assert fresh_rpc.outcomes(task, "model-not-found", model="") == 1
    assert fresh_rpc.count("convmlp_request_duration_seconds_count", transport="grpc", task=task) == 3
    assert fresh_rpc.count("convmlp_model_request_duration_seconds_count", model=f"fake_{task}") == 1
    assert fresh_rpc.in_flight == 0
