"""Requests → parameters for the engine; its results → responses."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from google.rpc.status_pb2 import Status

from convmlp.v1 import vision_pb2 as pb
from model.bundle import BundleConfig
from model.postprocess.masks import RLE, EncodedMask, MaskFormat, encode_detection, encode_segments
from model.postprocess.results import postprocess, unit_length
from model.types import (
    ClassifyOutput,
    ClassifyResult,
    Detection,
    DetectResult,
    EmbedOutput,
    RawOutput,
    SegmentResult,
    Size,
    Task,
)
from service.errors import BadParameter
from service.frontend.core.endpoint_parameters import ANALYZE_PARAMETERS
from service.frontend.core.overlay import encode_label_map
from service.frontend.core.parameters import (
    EMBED,
    MAX_MODELS,
    MODELS_EXPECTED,
    PARAMETERS,
    TASKS_EXPECTED,
    PredictParams,
    cached_params,
    distinct,
    require_applicable,
    shown,
)
from service.frontend.core.request_log import RequestRecord

Request = pb.ClassifyRequest | pb.DetectRequest | pb.SegmentRequest | pb.EmbedRequest
Response = pb.ClassifyResponse | pb.DetectResponse | pb.SegmentResponse | pb.EmbedResponse


@dataclass(frozen=True, slots=True)
class PredictMethod:
    """A prediction: `name` is the unary method's; the streaming method's ends with "Stream". `task` is the models',
    `label` names the prediction in metrics and logs."""

    name: str
    task: Task
    label: str
    request: type[Request]
    response: type[Response]

    def error_reply(self, record: RequestRecord, status: Status) -> bytes:
        """The reply to a message of a stream that failed."""
        return self.response(id=record.given_id or record.request_id, error=status).SerializeToString()


METHODS = (
    PredictMethod("Classify", Task.CLASSIFY, Task.CLASSIFY, pb.ClassifyRequest, pb.ClassifyResponse),
    PredictMethod("Detect", Task.DETECT, Task.DETECT, pb.DetectRequest, pb.DetectResponse),
    PredictMethod("Segment", Task.SEGMENT, Task.SEGMENT, pb.SegmentRequest, pb.SegmentResponse),
    PredictMethod("Embed", Task.CLASSIFY, EMBED, pb.EmbedRequest, pb.EmbedResponse),
)

TASKS: dict[Task, pb.Task.ValueType] = {
    Task.CLASSIFY: pb.TASK_CLASSIFY,
    Task.DETECT: pb.TASK_DETECT,
    Task.SEGMENT: pb.TASK_SEGMENT,
}

MASK_FORMATS: dict[int, MaskFormat | None] = {
    pb.MASK_FORMAT_UNSPECIFIED: None,
    pb.MASK_FORMAT_RLE: MaskFormat.RLE,
    pb.MASK_FORMAT_PNG: MaskFormat.PNG,
    pb.MASK_FORMAT_NONE: MaskFormat.NONE,
    pb.MASK_FORMAT_POLYGON: MaskFormat.POLYGON,
}


def read_params(request: Request) -> PredictParams:
    """The parameters in a request.

    Raises:
        BadParameter: a value is out of its range; `field` names the message's field.
    """
    model = request.model or None
    match request:
        case pb.ClassifyRequest():
            return cached_params(model=model, top_k=request.top_k if request.HasField("top_k") else None)
        case pb.DetectRequest():
            return cached_params(
                model=model,
                score_threshold=request.score_threshold if request.HasField("score_threshold") else None,
                max_detections=request.max_detections if request.HasField("max_detections") else None,
                mask_format=_mask_format(request.mask_format),
                classes=tuple(request.classes),
                iou_threshold=request.iou_threshold if request.HasField("iou_threshold") else None,
                agnostic_nms=request.agnostic_nms,
                min_area=request.min_area,
                tiles=request.tiles or None,
                tile_overlap=_tile_overlap(request),
            )
        case pb.SegmentRequest():
            return cached_params(
                model=model,
                mask_format=_mask_format(request.mask_format),
                classes=tuple(request.classes),
                min_area=request.min_area,
                confidence_map=request.confidence_map,
                threshold=request.threshold if request.HasField("threshold") else None,
                tiles=request.tiles or None,
                tile_overlap=_tile_overlap(request),
            )
        case pb.EmbedRequest():
            return cached_params(model=model, embed=True)


def read_analyze_params(request: pb.AnalyzeRequest) -> dict[Task, PredictParams]:
    """The parameters of each task in a request. Raises BadParameter, as `read_params`."""
    mask_format, classes = _mask_format(request.mask_format), tuple(request.classes)
    tiles, tile_overlap = request.tiles or None, _tile_overlap(request)
    return {
        Task.CLASSIFY: cached_params(top_k=request.top_k if request.HasField("top_k") else None),
        Task.DETECT: cached_params(
            score_threshold=request.score_threshold if request.HasField("score_threshold") else None,
            max_detections=request.max_detections if request.HasField("max_detections") else None,
            mask_format=mask_format,
            classes=classes,
            iou_threshold=request.iou_threshold if request.HasField("iou_threshold") else None,
            agnostic_nms=request.agnostic_nms,
            min_area=request.min_area,
            tiles=tiles,
            tile_overlap=tile_overlap,
        ),
        Task.SEGMENT: cached_params(
            mask_format=mask_format,
            classes=classes,
            min_area=request.min_area,
            confidence_map=request.confidence_map,
            threshold=request.threshold if request.HasField("threshold") else None,
            tiles=tiles,
            tile_overlap=tile_overlap,
        ),
    }


_FIELD_TASKS = {name: parameter.tasks for name, parameter in ANALYZE_PARAMETERS.items() if parameter.tasks} | {
    "label_map": PARAMETERS["view"].tasks
}
"""The tasks that have each field of an AnalyzeRequest."""


_DEFAULTS = {name: parameter.schema.get("default") for name, parameter in ANALYZE_PARAMETERS.items()} | {
    "mask_format": pb.MASK_FORMAT_RLE
}


def require_applicable_fields(request: pb.AnalyzeRequest, tasks: Set[Task]) -> None:
    """Raises BadParameter for a field that is set to another value than its default, and that none of the tasks has."""
    given = {field.name for field, value in request.ListFields() if value != _DEFAULTS.get(field.name)}
    require_applicable({name: _FIELD_TASKS[name] for name in given & _FIELD_TASKS.keys()}, tasks)


def named_of(request: pb.AnalyzeRequest) -> tuple[tuple[Task, ...], tuple[str, ...]]:
    """The tasks and the models that a request names; at most one of both has any.

    Raises:
        BadParameter: both are named, one twice, too many, or an unknown task.
    """
    if request.tasks and request.models:
        raise BadParameter("parameters 'tasks' and 'models' exclude each other; give one of them", "models")
    known = {value: task for task, value in TASKS.items()}
    if request.models:
        models = distinct(request.models, MAX_MODELS)
        if models is None:
            given = shown(", ".join(request.models))
            raise BadParameter(f"parameter 'models' is {given}; expected {MODELS_EXPECTED}", "models")
        return (), models
    tasks = tuple(known[value] for value in request.tasks if value in known)
    if len(set(tasks)) < len(request.tasks):
        raise BadParameter(f"parameter 'tasks' is {list(request.tasks)}; expected {TASKS_EXPECTED}", "tasks")
    return tasks, ()


def encode_response(
    mask_format: MaskFormat,
    label_map: bool,
    normalize: bool,
    raw: RawOutput,
    config: BundleConfig,
    size: Size,
) -> Response:
    """A network's output as its task's response; `label_map`: with the label map as PNG; `normalize`: an embedding."""
    if isinstance(raw, EmbedOutput):
        vector = unit_length(raw.embedding) if normalize else raw.embedding
        return pb.EmbedResponse(image=pb.ImageSize(width=size.width, height=size.height), embedding=vector.tolist())
    if not isinstance(raw, ClassifyOutput):
        result = postprocess(raw, config, size)
        assert not isinstance(result, ClassifyResult)
        return response_of(result, mask_format, label_map=label_map)
    # Labels are encoded straight from the arrays; `postprocess` would make an object for each in between.
    names = config.labels
    scored = zip(raw.indices.tolist(), raw.scores.tolist(), strict=True)
    labels = [pb.Label(label=names[index], index=index, score=score) for index, score in scored]
    return pb.ClassifyResponse(image=pb.ImageSize(width=size.width, height=size.height), labels=labels)


def response_of(result: DetectResult | SegmentResult, mask_format: MaskFormat, *, label_map: bool) -> Response:
    """Detections or segments as their response, with encoded masks."""
    image = pb.ImageSize(width=result.size.width, height=result.size.height)
    match result:
        case DetectResult(size=size, detections=detections):
            found = [_detection(detection, size, mask_format) for detection in detections]
            return pb.DetectResponse(image=image, detections=found)
        case SegmentResult(segments=segments):
            parts = [
                pb.Segment(
                    label=segment.label,
                    index=segment.index,
                    area=segment.area,
                    confidence=segment.confidence,
                    mask=_mask(mask),
                )
                for segment, mask in zip(segments, encode_segments(result, mask_format), strict=True)
            ]
            png = encode_label_map(result.label_map) if label_map else b""
            levels = b"" if result.confidence_map is None else encode_label_map(result.confidence_map)
            return pb.SegmentResponse(image=image, segments=parts, label_map_png=png, confidence_map_png=levels)


def _detection(detection: Detection, size: Size, mask_format: MaskFormat) -> pb.Detection:
    box = pb.Box(xmin=detection.box.xmin, ymin=detection.box.ymin, xmax=detection.box.xmax, ymax=detection.box.ymax)
    mask = _mask(encode_detection(detection, size, mask_format))
    return pb.Detection(label=detection.label, index=detection.index, score=detection.score, box=box, mask=mask)


def _mask(mask: EncodedMask) -> pb.Mask | None:
    match mask:
        case None:
            return None
        case RLE(counts=counts):
            return pb.Mask(rle=counts.encode("ascii"))
        case bytes():
            return pb.Mask(png=mask)
        case polygons:
            outlines = [pb.Polygon(coordinates=polygon) for polygon in polygons]
            return pb.Mask(polygons=pb.Polygons(polygons=outlines))


def _mask_format(value: int) -> MaskFormat | None:
    try:
        return MASK_FORMATS[value]
    except KeyError:
        known = ", ".join(pb.MaskFormat.keys())
        raise BadParameter(f"parameter 'mask_format' is {value}; expected one of {known}", "mask_format") from None


def _tile_overlap(request: pb.DetectRequest | pb.SegmentRequest | pb.AnalyzeRequest) -> float | None:
    """Of six decimals: as the caller wrote it, where a float32 is not."""
    return round(request.tile_overlap, 6) if request.HasField("tile_overlap") else None
