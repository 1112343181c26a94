"""Questions → gRPC requests, and gRPC responses → results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convmlp.v1 import vision_pb2 as pb
from convmlp_client.errors import BadParameter
from convmlp_client.geometry import Box, ImageSize
from convmlp_client.masks import Mask
from convmlp_client.parameters import Question
from convmlp_client.results import (
    Classification,
    Detection,
    Detections,
    Label,
    Meta,
    Model,
    Result,
    Segment,
    Segmentation,
    Task,
)

Request = pb.ClassifyRequest | pb.DetectRequest | pb.SegmentRequest
Response = pb.ClassifyResponse | pb.DetectResponse | pb.SegmentResponse

REQUESTS: Mapping[Task, type[Request]] = {
    Task.CLASSIFY: pb.ClassifyRequest,
    Task.DETECT: pb.DetectRequest,
    Task.SEGMENT: pb.SegmentRequest,
}
MASK_FORMATS: Mapping[str, int] = {
    "rle": pb.MASK_FORMAT_RLE,
    "png": pb.MASK_FORMAT_PNG,
    "polygon": pb.MASK_FORMAT_POLYGON,
    "none": pb.MASK_FORMAT_NONE,
}
TASKS: Mapping[int, Task] = {
    pb.TASK_CLASSIFY: Task.CLASSIFY,
    pb.TASK_DETECT: Task.DETECT,
    pb.TASK_SEGMENT: Task.SEGMENT,
}


def request_of(question: Question[Result], image: bytes, request_id: str) -> Request:
    """The request for one image.

    Raises:
        BadParameter: a value that its field cannot hold.
    """
    request = REQUESTS[question.task](id=request_id, image=image)
    for name, value in _fields(question.parameters).items():
        try:
            setattr(request, name, value)
        except (TypeError, ValueError) as error:
            raise BadParameter(f"parameter {name!r} is {value!r}, which cannot be sent: {error}") from error
    return request


def result_of(response: Response) -> Result:
    """The answer that a response holds."""
    spent = response.timings
    timings_ms = {
        "decode": spent.decode_ms,
        "queue": spent.queue_ms,
        "infer": spent.infer_ms,
        "post": spent.post_ms,
        "total": spent.total_ms,
    }
    told = {stage: round(ms, 2) for stage, ms in timings_ms.items()} if response.HasField("timings") else {}
    match response:
        case pb.ClassifyResponse():
            return classification_from_message(response, Meta(response.model, Task.CLASSIFY, response.id, told))
        case pb.DetectResponse():
            return detections_from_message(response, Meta(response.model, Task.DETECT, response.id, told))
        case pb.SegmentResponse():
            return segmentation_from_message(response, Meta(response.model, Task.SEGMENT, response.id, told))


def classification_from_message(message: pb.ClassifyResponse, meta: Meta) -> Classification:
    """A gRPC answer's labels."""
    labels = (Label(row.label, row.index, _score(row.score)) for row in message.labels)
    return Classification(_size(message.image), tuple(labels), meta)


def detections_from_message(message: pb.DetectResponse, meta: Meta) -> Detections:
    """A gRPC answer's detections."""
    size = _size(message.image)
    detections = (
        Detection(row.label, row.index, _score(row.score), _box(row.box), _mask_from_message(row.mask, size))
        for row in message.detections
    )
    return Detections(size, tuple(detections), meta)


def segmentation_from_message(message: pb.SegmentResponse, meta: Meta) -> Segmentation:
    """A gRPC answer's segments."""
    size = _size(message.image)
    segments = (Segment(row.label, row.index, row.area, _mask_from_message(row.mask, size)) for row in message.segments)
    return Segmentation(size, tuple(segments), meta)


def _mask_from_message(mask: pb.Mask, size: ImageSize) -> Mask | None:
    match mask.WhichOneof("encoding"):
        case "rle":
            # Latin-1 takes any byte: what is not COCO's text is told when the mask is decoded.
            return Mask(size, mask.rle.decode("latin-1"))
        case "png":
            return Mask(size, mask.png)
        case "polygons":
            return Mask(size, tuple(tuple(polygon.coordinates) for polygon in mask.polygons.polygons))
        case _:
            return None


def _size(size: pb.ImageSize) -> ImageSize:
    return ImageSize(size.width, size.height)


# REST writes scores with six significant digits and coordinates with two decimals; gRPC sends them as float32, whose
# further digits say nothing. So both transports give equal results.


def _score(score: float) -> float:
    return float(f"{score:.6g}")


def _box(box: pb.Box) -> Box:
    return Box(*(round(side, 2) for side in (box.xmin, box.ymin, box.xmax, box.ymax)))


def model_of(message: pb.Model) -> Model:
    """Raises KeyError where the model is of a task that this version does not know."""
    return Model(
        name=message.name,
        task=TASKS[message.task],
        default=message.is_default,
        ready=message.ready,
        device=message.device,
        precision=message.precision,
        labels=tuple(message.labels),
        weights_sha256=message.weights_sha256,
    )


def _fields(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as the messages have them: there `masks` is one of the mask formats."""
    fields = dict(parameters)
    masks = fields.pop("masks", True)
    if "mask_format" in fields:
        name = fields["mask_format"]
        if name not in MASK_FORMATS:
            raise BadParameter(f"parameter 'mask_format' is {name!r}; expected one of {', '.join(MASK_FORMATS)}")
        fields["mask_format"] = MASK_FORMATS[name]
    if not masks:
        fields["mask_format"] = pb.MASK_FORMAT_NONE
    return fields
