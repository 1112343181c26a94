"""Several models on one image, over both transports: each answer is that of its own endpoint."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import jsonschema  # type: ignore[import-untyped]
import msgspec
import numpy as np
import PIL.Image
import pytest
import pytest_asyncio

from convmlp.v1 import vision_pb2 as pb
from model.containers.header import ImageFormat
from model.decode import DecodeLimits, decode_picture, read_header
from model.preprocess import content_size, prepare_picture
from model.spec import CenterCropSpec, KeepRatioSpec, Preprocessing
from model.types import ModelInput, Task
from service.frontend.core.analysis import decodings_of, prepare_for_all
from tests.service.frontend.both_transports import PairAtWork, open_pair
from tests.service.frontend.rest_server import picture, problem_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

TASKS = tuple(task.value for task in Task)
IMAGE = picture(77, width=90)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[PairAtWork]:
    async with open_pair() as running:
        yield running


@contextmanager
def broken_detector(pair: PairAtWork) -> Iterator[None]:
    """The device fails at every batch of the detector."""

    def takes(model: str, images: int, lanes: int) -> None:  # noqa: ARG001
        if model == "fake_detect":
            raise RuntimeError("the device failed")

    pair.worker.runner.takes = takes
    try:
        yield
    finally:
        pair.worker.runner.takes = None


async def analyze(pair: PairAtWork, query: str = "", content: bytes = IMAGE, **options: Any) -> Any:  # noqa: ANN401
    response = await pair.http.post(f"/analyze{query}", content=content, **options)
    assert response.status_code == 200, response.text
    return response.json()


class Answers(msgspec.Struct):
    """The JSON of an analysis, whose answers are left as they are encoded."""

    answers: dict[str, msgspec.Raw]


class Document(msgspec.Struct):
    results: list[Answers]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"classify": "top_k=2"},
        {"detect": "score_threshold=0.7&max_detections=1", "segment": ""},
        {"detect": "mask_format=png", "segment": "mask_format=png"},
        {"segment": "masks=false", "detect": "masks=false", "classify": ""},
    ],
)
async def test_each_answer_is_its_endpoint_s_own(pair: PairAtWork, parameters: Mapping[str, str]) -> None:
    """Byte for byte, with the parameters that its task has; `models` names who answered."""
    tasks = tuple(parameters) or TASKS
    query = "&".join(["tasks=" + ",".join(tasks), *dict.fromkeys(text for text in parameters.values() if text)])
    response = await pair.http.post(f"/analyze?{query}", content=IMAGE)
    answers = msgspec.json.decode(response.content, type=Document).results[0].answers
    assert list(answers) == list(tasks)
    for task in tasks:
        alone = await pair.http.post(f"/{task}?{parameters.get(task, '')}", content=IMAGE)
        (expected,) = msgspec.json.decode(alone.content)["results"]
        assert bytes(answers[task]) == msgspec.json.encode(expected)
    document = response.json()
    assert document["task"] == "analyze"
    assert document["models"] == {task: f"fake_{task}" for task in tasks}
    assert document["results"][0]["image"] == {"width": 90, "height": 60}
    assert {part.split(";")[0] for part in response.headers["server-timing"].split(", ")} == {
        *("decode", "queue", "infer", "post", "total", "batch")
    }


async def test_grpc_gives_the_answers_of_its_methods(pair: PairAtWork) -> None:
    """Each answer equals that of the unary method, but for the ids and the timings."""
    stub = pair.rpc.stub
    request = pb.AnalyzeRequest(id="one", image=IMAGE, top_k=2, max_detections=1, label_map=True)
    reply = await stub.Analyze(request)
    assert (reply.id, reply.image.width, reply.image.height) == ("one", 90, 60)
    assert [answer.model for answer in reply.answers] == [f"fake_{task}" for task in TASKS]
    expected = [
        await stub.Classify(pb.ClassifyRequest(image=IMAGE, top_k=2)),
        await stub.Detect(pb.DetectRequest(image=IMAGE, max_detections=1)),
        await stub.Segment(pb.SegmentRequest(image=IMAGE, label_map=True)),
    ]
    for answer, alone in zip(reply.answers, expected, strict=True):
        found = getattr(answer, answer.WhichOneof("result") or "")
        assert found.timings.infer_ms > 0
        for message in (found, alone):
            message.ClearField("id")
            message.ClearField("timings")
        assert found == alone
    assert reply.timings.total_ms > 0


async def test_a_stream_of_analyses(pair: PairAtWork) -> None:
    """Each reply has its request's id; the reply to a message that fails has its error, and the stream goes on."""
    sent = [
        pb.AnalyzeRequest(id="good", image=IMAGE, top_k=2),
        pb.AnalyzeRequest(id="no picture", image=b"no picture"),
        pb.AnalyzeRequest(id="other", image=IMAGE, tasks=[pb.TASK_CLASSIFY], classes=["cat"]),
        pb.AnalyzeRequest(id="last", image=IMAGE, tasks=[pb.TASK_DETECT]),
    ]
    replies = {reply.id: reply async for reply in pair.rpc.stub.AnalyzeStream(iter(sent))}
    assert set(replies) == {request.id for request in sent}
    errors = {name: reply.error.code for name, reply in replies.items() if reply.HasField("error")}
    assert errors == dict.fromkeys(["no picture", "other"], grpc.StatusCode.INVALID_ARGUMENT.value[0])
    assert [answer.WhichOneof("result") for answer in replies["good"].answers] == list(TASKS)
    alone = await pair.rpc.stub.Analyze(sent[0])
    assert replies["good"].answers[0].classify.labels == alone.answers[0].classify.labels


async def test_models_name_the_answers(pair: PairAtWork) -> None:
    """`models` answers by the models' names, in their order; tasks and models exclude each other."""
    document = await analyze(pair, "?models=fake_segment,fake_classify")
    assert document["models"] == {"fake_segment": "fake_segment", "fake_classify": "fake_classify"}
    assert list(document["results"][0]["answers"]) == ["fake_segment", "fake_classify"]
    reply = await pair.rpc.stub.Analyze(pb.AnalyzeRequest(image=IMAGE, models=["fake_segment", "fake_classify"]))
    assert [answer.WhichOneof("result") for answer in reply.answers] == ["segment", "classify"]


@pytest.mark.parametrize("form", ["multipart", "json"])
async def test_images_come_in_every_form(pair: PairAtWork, form: str) -> None:
    """Several images, one of them bad: it has an error, the others their answers, in upload order."""
    images = [picture(10), b"no picture", picture(30)]
    options: dict[str, Any] = (
        {"files": [("image", image) for image in images]}
        if form == "multipart"
        else {"json": {"images": [base64.b64encode(image).decode() for image in images]}}
    )
    response = await pair.http.post("/analyze?tasks=classify,detect", **options)
    first, second, third = response.json()["results"]
    assert [one["answers"]["classify"]["labels"][0]["index"] for one in (first, third)] == [10, 30]
    assert second["error"]["status"] in (400, 415)


async def test_a_failure_costs_only_its_place(pair: PairAtWork) -> None:
    """The model that fails has an error in its place; the others answer. If all fail, the request does."""
    with broken_detector(pair):
        answers = (await analyze(pair))["results"][0]["answers"]
        assert answers["detect"]["error"]["status"] == 500
        assert answers["detect"]["error"]["instance"].startswith("/analyze#")
        assert (answers["classify"]["labels"][0]["index"], len(answers["segment"]["segments"])) == (77, 2)
        reply = await pair.rpc.stub.Analyze(pb.AnalyzeRequest(image=IMAGE))
        assert [answer.WhichOneof("result") for answer in reply.answers] == ["classify", "error", "segment"]
        assert reply.answers[1].error.code == grpc.StatusCode.INTERNAL.value[0]
        alone = await pair.http.post("/analyze?tasks=detect", content=IMAGE)
        assert (alone.status_code, problem_of(alone.content)["status"]) == (500, 500)
        drawn = await pair.http.post("/analyze", content=IMAGE, headers={"Accept": "image/png"})
        assert drawn.status_code == 500  # a drawing cannot show that a part is missing


async def test_the_longest_job_is_sent_first() -> None:
    """Where the device computes one job after the other, the model that has taken longest begins."""
    began: list[str] = []

    def takes(model: str, images: int, lanes: int) -> None:  # noqa: ARG001
        began.append(model)
        time.sleep({"fake_segment": 0.08, "fake_detect": 0.04}.get(model, 0.0))

    async with open_pair() as pair:
        pair.worker.runner.takes = takes
        await analyze(pair)
        began.clear()
        await analyze(pair)
    assert began == ["fake_segment", "fake_detect", "fake_classify"]


async def test_a_bad_image_is_the_request_s_error(pair: PairAtWork) -> None:
    """It is decoded once, and refused once, as by the other endpoints."""
    for image in (b"no picture", IMAGE[:60], b""):
        alone = await pair.http.post("/classify", content=image)
        together = await pair.http.post("/analyze", content=image)
        assert together.status_code == alone.status_code
        assert problem_of(together.content)["detail"] == problem_of(alone.content)["detail"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await pair.rpc.stub.Analyze(pb.AnalyzeRequest(image=IMAGE[:60]))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("?tasks=classify,fly", 422, "classify, detect, segment"),
        ("?tasks=classify,classify", 422, "each once"),
        ("?tasks=", 422, "classify, detect, segment"),
        ("?models=fake_detect,", 422, "names of models"),
        ("?models=fake_detect&tasks=detect", 422, "exclude each other"),
        ("?models=nothing", 404, "fake_classify"),
        ("?tasks=classify&score_threshold=0.5", 422, "'score_threshold' does not belong to classify"),
        ("?view=labelmap", 422, "does not belong to /analyze"),
        ("?top_k=0", 422, "top_k"),
    ],
)
async def test_bad_parameters_are_named(pair: PairAtWork, query: str, status: int, words: str) -> None:
    """The error names the value, and what is expected."""
    response = await pair.http.post(f"/analyze{query}", content=IMAGE)
    assert response.status_code == status
    assert words in problem_of(response.content)["detail"]


@pytest.mark.parametrize(
    "fields",
    [
        {"tasks": [pb.TASK_CLASSIFY, pb.TASK_CLASSIFY]},
        {"tasks": [pb.TASK_UNSPECIFIED]},
        {"tasks": [pb.TASK_CLASSIFY], "models": ["fake_classify"]},
        {"models": ["fake_classify", ""]},
        {"top_k": 0},
        {"mask_format": 9},
        {"tasks": [pb.TASK_CLASSIFY], "classes": ["cat"]},
        {"tasks": [pb.TASK_CLASSIFY], "label_map": True},
        {"models": ["fake_segment"], "agnostic_nms": True},
        {"tasks": [pb.TASK_DETECT, pb.TASK_SEGMENT], "top_k": 3},
    ],
)
async def test_grpc_refuses_the_same(pair: PairAtWork, fields: dict[str, Any]) -> None:
    """INVALID_ARGUMENT, before the image is decoded."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await pair.rpc.stub.Analyze(pb.AnalyzeRequest(image=IMAGE, **fields))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_defaults_of_other_tasks_change_nothing(pair: PairAtWork) -> None:
    """Generated clients send the defaults of the document, whatever the tasks."""
    document = (await pair.http.get("/openapi.json")).json()
    parameters = document["paths"]["/analyze"]["post"]["parameters"]
    defaults = {one["name"]: one["schema"]["default"] for one in parameters if "default" in one["schema"]}
    texts = {name: str(value).lower() for name, value in defaults.items()}
    assert {"top_k", "max_detections", "agnostic_nms", "mask_format"} <= texts.keys()
    for more in ({"tasks": "classify"}, {"tasks": "segment"}, {"models": "fake_detect"}):
        response = await pair.http.post("/analyze", params={**texts, **more}, content=IMAGE)
        assert response.status_code == 200, response.text
    request = pb.AnalyzeRequest(
        image=IMAGE, tasks=[pb.TASK_SEGMENT], top_k=5, max_detections=100, mask_format=pb.MASK_FORMAT_RLE
    )
    assert (await pair.rpc.stub.Analyze(request)).answers[0].WhichOneof("result") == "segment"


async def test_all_answers_are_drawn_on_one_picture(pair: PairAtWork) -> None:
    """The drawing differs from the image, and from that of each task alone: it has them all."""
    image = picture(77, width=320, height=240)
    pictures = []
    for path in ("/analyze", *(f"/{task}" for task in TASKS)):
        response = await pair.http.post(path, content=image, headers={"Accept": "image/png"})
        assert response.headers["content-type"] == "image/png"
        pictures.append(np.asarray(PIL.Image.open(io.BytesIO(response.content))).astype(int))
    together, *alone = [one != 77 for one in pictures]
    for one in alone:
        assert one.any()
        assert (together & one).sum() >= 0.95 * one.sum()
        assert together.sum() > one.sum()


async def test_answers_count_as_images(pair: PairAtWork) -> None:
    """Each model's answer is an image in progress, and the request is one of the task `analyze`."""
    labels = {"stage": "decode", "task": "analyze"}
    before = pair.rest.registry.get_sample_value("convmlp_stage_duration_seconds_count", labels)
    pair.worker.runner.unblocked.clear()
    sending = asyncio.create_task(analyze(pair))
    while pair.rest.registry.get_sample_value("convmlp_in_flight_requests") != 3:
        await asyncio.sleep(0.005)
    pair.worker.runner.unblocked.set()
    await sending
    assert pair.rest.registry.get_sample_value("convmlp_in_flight_requests") == 0
    assert pair.rest.engine.threads.held_bytes == 0
    assert pair.rest.registry.get_sample_value("convmlp_stage_duration_seconds_count", labels) == (before or 0) + 1
    sample = {"transport": "rest", "task": "analyze", "model": "", "outcome": "ok"}
    assert (pair.rest.registry.get_sample_value("convmlp_requests_total", sample) or 0) >= 1


SPECS: tuple[Preprocessing, ...] = (
    CenterCropSpec(resize_shorter=36, crop=32),
    KeepRatioSpec(long_side=96, short_side=64, pad_multiple=32),
    KeepRatioSpec(long_side=64, short_side=48),
)
LIMITS = DecodeLimits(max_bytes=1 << 20, max_pixels=1 << 20)


def encoded(form: str, mode: str = "RGB") -> bytes:
    """A picture without two equal columns."""
    y, x = np.mgrid[0:150, 0:200]
    pixels = PIL.Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    pixels.save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("form", "mode", "times"), [("PNG", "RGB", 1), ("JPEG", "RGB", 1), ("JPEG", "CMYK", 2)])
async def test_inputs_equal_those_of_each_model_alone(form: str, mode: str, times: int, fast: bool) -> None:
    """An image is decoded once, or once for each reader where readers see other pixels, or scale (`--fast-decode`)."""
    image = encoded(form, mode)
    header = read_header(image, LIMITS)
    whole = (None,) * len(SPECS)
    decodings = decodings_of(SPECS, whole, header, fast=fast)
    assert len(decodings) == (len(SPECS) if fast and header.format is ImageFormat.JPEG else times)
    inputs = prepare_for_all(image, SPECS, whole, decodings, LIMITS, header, fast, lambda: None)
    for spec, found in zip(SPECS, inputs, strict=True):
        needed = partial(content_size, spec=spec) if fast else None
        alone = prepare_picture(decode_picture(image, LIMITS, needed, header, spec.reader), spec)
        assert isinstance(found, ModelInput)
        assert np.array_equal(found.pixels, alone.pixels)
        assert found.geometry == alone.geometry


async def test_the_document_describes_it(pair: PairAtWork) -> None:
    """OpenAPI has the operation with an example that its schema accepts."""
    document = (await pair.http.get("/openapi.json")).json()
    content = document["paths"]["/analyze"]["post"]["responses"]["200"]["content"]["application/json"]
    schema = {**content["schema"], "components": document["components"]}
    jsonschema.validate(content["example"], schema)
    jsonschema.validate(json.loads((await pair.http.post("/analyze", content=IMAGE)).content), schema)
