from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import msgspec
import numpy as np
import pytest

from convmlp.v1 import vision_pb2
from convmlp_client.convert import result_from_json
from convmlp_client.geometry import Box, ImageSize
from convmlp_client.masks import Mask
from convmlp_client.results import (
    Classification,
    Detection,
    Detections,
    Embedding,
    Label,
    Meta,
    Result,
    Segment,
    Segmentation,
    Task,
)
from convmlp_client.transport.grpc_messages import TaskResponse, result_from_message
from model.postprocess.masks import MaskFormat
from model.types import Box as ServedBox
from model.types import ClassifyOutput, ClassifyResult, DetectResult, EmbedOutput, SegmentResult, Size, SoftMask
from model.types import Detection as ServedDetection
from model.types import Label as ServedLabel
from model.types import Result as Served
from model.types import Segment as ServedSegment
from model.types import Task as ServedTask
from service.frontend.api.rest.schemas import encode_embedding, encode_output, encode_result
from service.frontend.core.parameters import VectorEncoding
from tests.fakes import fake_bundle

LABEL_MAP = np.array([[0, 0, 0, 2], [0, 2, 2, 2]], np.uint8)
SOFT = SoftMask(np.full((28, 28), 5, np.float32), 0.5)
SERVED: dict[Task, Served] = {
    Task.CLASSIFY: ClassifyResult(Size(2, 4), (ServedLabel("cat", 7, 0.123456789), ServedLabel("dog", 0, 1.0))),
    Task.DETECT: DetectResult(
        Size(2, 4),
        (
            ServedDetection("cat", 7, 0.75, ServedBox(0.123, 0.0, 3.0, 2.0), SOFT),
            ServedDetection("dog", 0, 0.5, ServedBox(0.0, 0.0, 1.0, 1.0), None),
        ),
    ),
    Task.SEGMENT: SegmentResult(Size(2, 4), LABEL_MAP, (ServedSegment("a", 0, 4, 0.75), ServedSegment("b", 2, 4, 0.5))),
}
VECTOR = np.array([0.1, -2.5, 3], np.float32)
READ = [*SERVED, Task.EMBED]
META = {task: Meta("model", task, "id", {"total": 1.5}) for task in Task}


def rest_answer(task: Task, mask_format: MaskFormat = MaskFormat.RLE) -> bytes:
    """The JSON that the service writes for `SERVED`."""
    config = fake_bundle(ServedTask.CLASSIFY).config
    if task is Task.EMBED:
        return encode_embedding(False, VectorEncoding.JSON, EmbedOutput(VECTOR), config, Size(2, 4))
    served = SERVED[task]
    if not isinstance(served, ClassifyResult):
        return encode_result(served, mask_format)
    scores = np.array([label.score for label in served.labels], np.float32)
    raw = ClassifyOutput(np.array([label.index for label in served.labels]), scores)
    names = {label.index: label.label for label in served.labels}
    labels = tuple(names.get(index, "") for index in range(max(names) + 1))
    return encode_output(mask_format, raw, config.model_copy(update={"labels": labels}), served.size)


def read(task: Task, mask_format: MaskFormat = MaskFormat.RLE) -> Result:
    return result_from_json(rest_answer(task, mask_format), META[task])


@pytest.mark.parametrize("encoding", list(VectorEncoding))
def test_vectors_are_read(encoding: VectorEncoding) -> None:
    """Numbers and base64 give the service's float32 back, bit for bit."""
    config = fake_bundle(ServedTask.CLASSIFY).config
    answer = encode_embedding(False, encoding, EmbedOutput(VECTOR), config, Size(2, 4))
    result = result_from_json(answer, META[Task.EMBED])
    assert isinstance(result, Embedding)
    assert result.vector.dtype == np.float32
    assert np.array_equal(result.vector, VECTOR)
    with pytest.raises(msgspec.ValidationError, match="multiple of 4"):
        result_from_json(b'{"image": {"width": 4, "height": 2}, "embedding": "AAA="}', META[Task.EMBED])


def test_labels_are_read() -> None:
    """A REST response gives labels in their order."""
    assert read(Task.CLASSIFY) == Classification(
        ImageSize(4, 2), (Label("cat", 7, 0.123457), Label("dog", 0, 1.0)), META[Task.CLASSIFY]
    )


def test_detections_are_read() -> None:
    """A REST response gives boxes and masks; `mask` is None if there is none."""
    result = read(Task.DETECT)
    assert isinstance(result, Detections)
    first, second = result.detections
    assert (first.label, first.index, first.score, first.box) == ("cat", 7, 0.75, Box(0.12, 0, 3, 2))
    assert first.mask is not None
    assert first.mask.to_array().shape == (2, 4)
    assert second == Detection("dog", 0, 0.5, Box(0, 0, 1, 1), None)


@pytest.mark.parametrize("mask_format", [MaskFormat.RLE, MaskFormat.PNG, MaskFormat.POLYGON])
def test_segments_are_read(mask_format: MaskFormat) -> None:
    """In each mask format the segments give the service's label map back."""
    result = read(Task.SEGMENT, mask_format)
    assert isinstance(result, Segmentation)
    assert [(one.label, one.index, one.area) for one in result.segments] == [("a", 0, 4), ("b", 2, 4)]
    np.testing.assert_array_equal(result.label_map(), LABEL_MAP)
    assert result.label_map().dtype == np.uint8


@pytest.mark.parametrize("mask_format", list(MaskFormat))
@pytest.mark.parametrize("task", READ)
def test_to_dict_equals_the_rest_api(task: Task, mask_format: MaskFormat) -> None:
    """`to_dict` as JSON equals the service's JSON, byte for byte."""
    assert msgspec.json.encode(read(task, mask_format).to_dict()) == rest_answer(task, mask_format)


@pytest.mark.parametrize("task", READ)
def test_unknown_members_are_ignored(task: Task) -> None:
    """Members that a newer service may add are ignored at every depth."""

    def with_news(value: object) -> object:
        if isinstance(value, dict):
            return {"new": [1], **{name: with_news(one) for name, one in value.items()}}
        return [with_news(one) for one in value] if isinstance(value, list) else value

    answer = json.loads(rest_answer(task))
    assert result_from_json(json.dumps(with_news(answer)).encode(), META[task]) == read(task)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b'{"image": {"width": 4, "height": 2}}',
        b'{"image": {"width": 4}, "detections": []}',
        b'{"image": {"width": 4, "height": 2}, "detections": [{"label": "a", "index": 0, "score": 1}]}',
        b'{"image": {"width": 4, "height": 2}, "detections": [{"label": "a", "index": 0, "score": "1", "box": null}]}',
        b'{"image": {"width": 4, "height": 2}, "detections": [{"label": "a", "index": 0, "score": 1, '
        b'"box": {"xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1}, "mask": {"size": [4, 2], "counts": "08"}}]}',
    ],
)
def test_malformed_results_are_an_error(answer: bytes) -> None:
    """Incomplete results and masks of another image size raise DecodeError."""
    with pytest.raises(msgspec.DecodeError):
        result_from_json(answer, META[Task.DETECT])


def as_message(mask: Mask | None) -> vision_pb2.Mask | None:
    if mask is None:
        return None
    match mask.data:
        case str(counts):
            return vision_pb2.Mask(rle=counts.encode())
        case bytes(png):
            return vision_pb2.Mask(png=png)
        case polygons:
            parts = [vision_pb2.Polygon(coordinates=[int(one) for one in polygon]) for polygon in polygons]
            return vision_pb2.Mask(polygons=vision_pb2.Polygons(polygons=parts))


def from_message(message: TaskResponse) -> Result:
    message.model, message.id = "model", "id"
    result = result_from_message(message)
    return dataclasses.replace(result, meta=dataclasses.replace(result.meta, timings_ms={"total": 1.5}))


@pytest.mark.parametrize("mask_format", list(MaskFormat))
def test_both_transports_give_equal_results(mask_format: MaskFormat) -> None:
    """A gRPC message, which has float32, gives the same result as REST's decimals, masks included."""
    size = vision_pb2.ImageSize(width=4, height=2)
    labels, found, parts = (read(task, mask_format) for task in SERVED)
    assert isinstance(labels, Classification)
    assert isinstance(found, Detections)
    assert isinstance(parts, Segmentation)
    rows = [vision_pb2.Label(label=one.label, index=one.index, score=one.score) for one in labels.labels]
    assert from_message(vision_pb2.ClassifyResponse(image=size, labels=rows)) == labels
    boxed = [
        vision_pb2.Detection(
            label=one.label,
            index=one.index,
            score=one.score,
            box=vision_pb2.Box(xmin=one.box.xmin, ymin=one.box.ymin, xmax=one.box.xmax, ymax=one.box.ymax),
            mask=as_message(one.mask),
        )
        for one in found.detections
    ]
    assert from_message(vision_pb2.DetectResponse(image=size, detections=boxed)) == found
    segments = [
        vision_pb2.Segment(
            label=one.label, index=one.index, area=one.area, confidence=one.confidence, mask=as_message(one.mask)
        )
        for one in parts.segments
    ]
    assert from_message(vision_pb2.SegmentResponse(image=size, segments=segments)) == parts


def test_label_map_dtype_and_errors() -> None:
    """Class indices above 255 make the label map uint16. Missing masks and indices above 65535 raise ValueError."""
    mask = Mask.from_array(np.ones((2, 4), np.bool_))

    def of(index: int, mask: Mask | None) -> Segmentation:
        return Segmentation(ImageSize(4, 2), (Segment("a", index, 8, 0.5, mask),), META[Task.SEGMENT])

    assert (of(300, mask).label_map() == np.full((2, 4), 300, np.uint16)).all()
    assert of(300, mask).label_map().dtype == np.uint16
    with pytest.raises(ValueError, match="no masks; request them"):
        of(0, None).label_map()
    with pytest.raises(ValueError, match="class index 70000"):
        of(70_000, mask).label_map()


@pytest.mark.parametrize("task", READ)
def test_results_are_immutable_values(task: Task) -> None:
    """Results can be compared, copied and pickled, and cannot be changed."""
    result = read(task)
    assert pickle.loads(pickle.dumps(result)) == copy.deepcopy(result) == result
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.meta = META[Task.DETECT]  # type: ignore[misc]
