"""gRPC requests from parameters, and results from gRPC responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convmlp.v1 import vision_pb2 as pb
from convmlp_client.errors import BadParameter
from convmlp_client.geometry import Box, ImageSize
from convmlp_client.images import ImageUrl
from convmlp_client.masks import Mask
from convmlp_client.parameters import PredictParams
from convmlp_client.results import (
    AnyResult,
    Classification,
    Detection,
    Detections,
    Embedding,
    Label,
    Meta,
    Model,
    Result,
    Segment,
    Segmentation,
    Task,
)

Request = pb.ClassifyRequest | pb.DetectRequest | pb.SegmentRequest | pb.EmbedRequest | pb.AnalyzeRequest
TaskResponse = pb.ClassifyResponse | pb.DetectResponse | pb.SegmentResponse | pb.EmbedResponse
Response = TaskResponse | pb.AnalyzeResponse

REQUESTS: Mapping[Task, type[Request]] = {
    Task.CLASSIFY: pb.ClassifyRequest,
    Task.DETECT: pb.DetectRequest,
    Task.SEGMENT: pb.SegmentRequest,
    Task.EMBED: pb.EmbedRequest,
    Task.ANALYZE: pb.AnalyzeRequest,
}
MASK_FORMATS: Mapping[str, int] = {
    "rle": pb.MASK_FORMAT_RLE,
    "png": pb.MASK_FORMAT_PNG,
    "polygon": pb.MASK_FORMAT_POLYGON,
    "none": pb.MASK_FORMAT_NONE,
}
TASKS: Mapping[pb.Task.ValueType, Task] = {
    pb.TASK_CLASSIFY: Task.CLASSIFY,
    pb.TASK_DETECT: Task.DETECT,
    pb.TASK_SEGMENT: Task.SEGMENT,
}


_TASK_VALUES: Mapping[str, pb.Task.ValueType] = {task.value: value for value, task in TASKS.items()}


def request_message(params: PredictParams[AnyResult], image: bytes, request_id: str) -> Request:
    """The request for one image.

    Raises:
        BadParameter: a value does not fit its field.
    """
    request = REQUESTS[params.task](id=request_id)
    _set_image(request, image)
    fields = _fields(params.values)
    if isinstance(request, pb.AnalyzeRequest):
        request.tasks.extend(map(_task_value, fields.pop("tasks", ())))
        request.models.extend(fields.pop("models", ()))
    _set_fields(request, fields)
    return request


def _set_image(request: Request, image: bytes) -> None:
    if isinstance(image, ImageUrl):
        request.image_url = image.decode()
    else:
        request.image = image


def result_from_message(response: TaskResponse) -> Result:
    """The result in a response."""
    rounded = timings_of(response)
    size = ImageSize(response.image.width, response.image.height)

    def meta(task: Task) -> Meta:
        return Meta(response.model, task, response.id, rounded, response.precision)

    match response:
        case pb.ClassifyResponse():
            labels = (Label(row.label, row.index, _score(row.score)) for row in response.labels)
            return Classification(size, tuple(labels), meta(Task.CLASSIFY))
        case pb.DetectResponse():
            detections = (
                Detection(row.label, row.index, _score(row.score), _box(row.box), _mask(row.mask, size))
                for row in response.detections
            )
            return Detections(size, tuple(detections), meta(Task.DETECT))
        case pb.SegmentResponse():
            segments = (
                Segment(row.label, row.index, row.area, _score(row.confidence), _mask(row.mask, size))
                for row in response.segments
            )
            return Segmentation(size, tuple(segments), meta(Task.SEGMENT), response.confidence_map_png or None)
        case pb.EmbedResponse():
            vector = np.array(response.embedding, np.float32)
            return Embedding(size, vector, meta(Task.EMBED))


def model_from_message(message: pb.Model) -> Model:
    """Raises KeyError for a task that is not in `TASKS`."""
    return Model(
        name=message.name,
        task=TASKS[message.task],
        default=message.is_default,
        ready=message.ready,
        device=message.device,
        precision=message.precision,
        labels=tuple(message.labels),
        weights_sha256=message.weights_sha256,
        embedding_dimension=message.embedding_dimension if message.HasField("embedding_dimension") else None,
        version=message.version,
        share=message.share,
        score_threshold=message.score_threshold or None,
        palette=tuple((one.red, one.green, one.blue) for one in message.palette) or None,
    )


def _task_value(task: str) -> pb.Task.ValueType:
    if task not in _TASK_VALUES:
        expected = ", ".join(_TASK_VALUES)
        raise BadParameter(f"parameter 'tasks' has {task!r}; expected some of {expected}, each once")
    return _TASK_VALUES[task]


def _set_fields(request: Request, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        try:
            if name == "classes":
                getattr(request, name).extend(value)
            else:
                setattr(request, name, value)
        except (TypeError, ValueError) as error:
            raise BadParameter(f"parameter {name!r} is {value!r}, which cannot be sent: {error}") from error


def timings_of(response: Response) -> dict[str, float]:
    """Milliseconds by stage; empty where there are none."""
    timings = response.timings
    timings_ms = {
        "decode": timings.decode_ms,
        "queue": timings.queue_ms,
        "infer": timings.infer_ms,
        "post": timings.post_ms,
        "total": timings.total_ms,
    }
    return {stage: round(ms, 2) for stage, ms in timings_ms.items()} if response.HasField("timings") else {}


def _fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as fields of the messages, where `masks=False` is a mask format."""
    fields = dict(parameters)
    masks = fields.pop("masks", True)
    if "classes" in fields:
        fields["classes"] = fields["classes"].split(",")
    if "mask_format" in fields:
        name = fields["mask_format"]
        if name not in MASK_FORMATS:
            raise BadParameter(f"parameter 'mask_format' is {name!r}; expected one of {', '.join(MASK_FORMATS)}")
        fields["mask_format"] = MASK_FORMATS[name]
    if not masks:
        fields["mask_format"] = pb.MASK_FORMAT_NONE
    return fields


def _mask(mask: pb.Mask, size: ImageSize) -> Mask | None:
    match mask.WhichOneof("encoding"):
        case "rle":
            # Latin-1 decodes any byte, so malformed run lengths raise when the mask is decoded, as over REST.
            return Mask(size, mask.rle.decode("latin-1"))
        case "png":
            return Mask(size, mask.png)
        case "polygons":
            return Mask(size, tuple(tuple(polygon.coordinates) for polygon in mask.polygons.polygons))
        case _:
            return None


# REST has scores with six significant digits and coordinates with two decimals. gRPC has float32. Rounding makes the
# results of both equal.


def _score(score: float) -> float:
    return float(f"{score:.6g}")


def _box(box: pb.Box) -> Box:
    return Box(*(round(side, 2) for side in (box.xmin, box.ymin, box.xmax, box.ymax)))
