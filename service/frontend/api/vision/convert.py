"""Requests to what the engine is asked, and its results to responses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from convmlp.v1 import vision_pb2 as pb
from model.bundle import BundleConfig
from model.postprocess.masks import RLE, EncodedMask, MaskFormat, encode_detection, encode_segments
from model.postprocess.results import postprocess
from model.types import ClassifyResult, Detection, DetectResult, RawOutput, Result, SegmentResult, Size, Task
from service.errors import BadParameter, BadRequest
from service.frontend.core.overlay import encode_label_map
from service.frontend.core.parameters import PredictParams, parse_params

Request = pb.ClassifyRequest | pb.DetectRequest | pb.SegmentRequest
Response = pb.ClassifyResponse | pb.DetectResponse | pb.SegmentResponse


@dataclass(frozen=True, slots=True)
class Method:
    """A prediction: `name` is the unary method's, with "Stream" behind it the streaming one's."""

    name: str
    task: Task
    request: type[Request]
    response: type[Response]


METHODS = (
    Method("Classify", Task.CLASSIFY, pb.ClassifyRequest, pb.ClassifyResponse),
    Method("Detect", Task.DETECT, pb.DetectRequest, pb.DetectResponse),
    Method("Segment", Task.SEGMENT, pb.SegmentRequest, pb.SegmentResponse),
)

MASK_FORMATS: dict[int, MaskFormat | None] = {
    pb.MASK_FORMAT_UNSPECIFIED: None,
    pb.MASK_FORMAT_RLE: MaskFormat.RLE,
    pb.MASK_FORMAT_PNG: MaskFormat.PNG,
    pb.MASK_FORMAT_NONE: MaskFormat.NONE,
    pb.MASK_FORMAT_POLYGON: MaskFormat.POLYGON,
}


def parse(kind: type[Request], data: bytes) -> Request:
    """Raises BadRequest: the bytes are not such a message."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise BadRequest(
            f"the request is not a message {kind.DESCRIPTOR.full_name}; make it by the service's vision.proto"
        ) from None


def asked_of(request: Request) -> PredictParams:
    """What a request asks of its image.

    Raises:
        BadParameter: a value is out of its range; its `field` is the message's.
    """
    model = request.model or None
    match request:
        case pb.ClassifyRequest():
            return parse_params(model=model, top_k=request.top_k if request.HasField("top_k") else None)
        case pb.DetectRequest():
            return parse_params(
                model=model,
                score_threshold=request.score_threshold if request.HasField("score_threshold") else None,
                max_detections=request.max_detections if request.HasField("max_detections") else None,
                mask_format=_mask_format(request.mask_format),
            )
        case pb.SegmentRequest():
            return parse_params(model=model, mask_format=_mask_format(request.mask_format))


def encoder_of(request: Request, mask_format: MaskFormat) -> Callable[[RawOutput, BundleConfig, Size], Response]:
    """What makes an output the response that a request asks for; it does not hold the request."""
    label_map = isinstance(request, pb.SegmentRequest) and request.label_map
    return lambda raw, config, size: response_of(postprocess(raw, config, size), mask_format, label_map=label_map)


def response_of(result: Result, mask_format: MaskFormat, *, label_map: bool) -> Response:
    """A result as its task's response, its masks and where asked for its label map encoded."""
    image = pb.ImageSize(width=result.size.width, height=result.size.height)
    match result:
        case ClassifyResult(labels=labels):
            rows = (pb.Label(label=row.label, index=row.index, score=row.score) for row in labels)
            return pb.ClassifyResponse(image=image, labels=rows)
        case DetectResult(size=size, detections=detections):
            found = (_detection(row, size, mask_format) for row in detections)
            return pb.DetectResponse(image=image, detections=found)
        case SegmentResult(segments=segments):
            masks = encode_segments(result, mask_format)
            parts = (
                pb.Segment(label=row.label, index=row.index, area=row.area, mask=_mask(mask))
                for row, mask in zip(segments, masks, strict=True)
            )
            png = encode_label_map(result.label_map) if label_map else b""
            return pb.SegmentResponse(image=image, segments=parts, label_map_png=png)


def _detection(row: Detection, size: Size, mask_format: MaskFormat) -> pb.Detection:
    box = pb.Box(xmin=row.box.xmin, ymin=row.box.ymin, xmax=row.box.xmax, ymax=row.box.ymax)
    mask = _mask(encode_detection(row, size, mask_format))
    return pb.Detection(label=row.label, index=row.index, score=row.score, box=box, mask=mask)


def _mask(mask: EncodedMask) -> pb.Mask | None:
    match mask:
        case None:
            return None
        case RLE(counts=counts):
            return pb.Mask(rle=counts.encode("ascii"))
        case bytes():
            return pb.Mask(png=mask)
        case polygons:
            outlines = (pb.Polygon(coordinates=polygon) for polygon in polygons)
            return pb.Mask(polygons=pb.Polygons(polygons=outlines))


def _mask_format(value: int) -> MaskFormat | None:
    try:
        return MASK_FORMATS[value]
    except KeyError:
        known = ", ".join(pb.MaskFormat.keys())
        raise BadParameter(f"parameter 'mask_format' is {value}; expected one of {known}", "mask_format") from None
