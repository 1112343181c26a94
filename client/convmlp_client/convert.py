"""What REST and gRPC answer → results. Fields that this version does not know are passed over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from convmlp_client.geometry import Box, ImageSize
from convmlp_client.masks import Mask
from convmlp_client.results import (
    Classification,
    Detection,
    Detections,
    Label,
    Meta,
    Result,
    Segment,
    Segmentation,
    Task,
)

if TYPE_CHECKING:
    from convmlp.v1 import vision_pb2


class _RLE(msgspec.Struct):
    size: tuple[int, int]
    counts: str


_MaskJSON = _RLE | bytes | list[list[int | float]] | None


class _DetectionJSON(msgspec.Struct):
    label: str
    index: int
    score: float
    box: Box
    mask: _MaskJSON = None


class _SegmentJSON(msgspec.Struct):
    label: str
    index: int
    area: int
    mask: _MaskJSON = None


class _ClassificationJSON(msgspec.Struct):
    image: ImageSize
    labels: tuple[Label, ...]


class _DetectionsJSON(msgspec.Struct):
    image: ImageSize
    detections: list[_DetectionJSON]


class _SegmentationJSON(msgspec.Struct):
    image: ImageSize
    segments: list[_SegmentJSON]


def result_from_json(data: bytes | msgspec.Raw, meta: Meta) -> Result:
    """One place of a REST answer's `results`, of the task of `meta`.

    Raises:
        msgspec.DecodeError: it is not JSON, or has another form (`msgspec.ValidationError`).
    """
    match meta.task:
        case Task.CLASSIFY:
            labels = msgspec.json.decode(data, type=_ClassificationJSON)
            return Classification(labels.image, labels.labels, meta)
        case Task.DETECT:
            found = msgspec.json.decode(data, type=_DetectionsJSON)
            detections = (
                Detection(row.label, row.index, row.score, row.box, _mask_from_json(row.mask, found.image))
                for row in found.detections
            )
            return Detections(found.image, tuple(detections), meta)
        case Task.SEGMENT:
            parts = msgspec.json.decode(data, type=_SegmentationJSON)
            segments = (
                Segment(row.label, row.index, row.area, _mask_from_json(row.mask, parts.image))
                for row in parts.segments
            )
            return Segmentation(parts.image, tuple(segments), meta)


def classification_from_message(message: vision_pb2.ClassifyResponse, meta: Meta) -> Classification:
    """A gRPC answer's labels."""
    labels = (Label(row.label, row.index, _score(row.score)) for row in message.labels)
    return Classification(_size(message.image), tuple(labels), meta)


def detections_from_message(message: vision_pb2.DetectResponse, meta: Meta) -> Detections:
    """A gRPC answer's detections."""
    size = _size(message.image)
    detections = (
        Detection(row.label, row.index, _score(row.score), _box(row.box), _mask_from_message(row.mask, size))
        for row in message.detections
    )
    return Detections(size, tuple(detections), meta)


def segmentation_from_message(message: vision_pb2.SegmentResponse, meta: Meta) -> Segmentation:
    """A gRPC answer's segments."""
    size = _size(message.image)
    segments = (Segment(row.label, row.index, row.area, _mask_from_message(row.mask, size)) for row in message.segments)
    return Segmentation(size, tuple(segments), meta)


def _mask_from_json(mask: _MaskJSON, size: ImageSize) -> Mask | None:
    match mask:
        case None:
            return None
        case _RLE():
            if mask.size != (size.height, size.width):
                raise msgspec.ValidationError(f"a mask has the size {mask.size}, not its picture's - at `$.mask.size`")
            return Mask(size, mask.counts)
        case bytes():
            return Mask(size, mask)
        case _:
            return Mask(size, tuple(tuple(polygon) for polygon in mask))


def _mask_from_message(mask: vision_pb2.Mask, size: ImageSize) -> Mask | None:
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


def _size(size: vision_pb2.ImageSize) -> ImageSize:
    return ImageSize(size.width, size.height)


# REST writes scores with six significant digits and coordinates with two decimals; gRPC sends them as float32, whose
# further digits say nothing. So both transports give equal results.


def _score(score: float) -> float:
    return float(f"{score:.6g}")


def _box(box: vision_pb2.Box) -> Box:
    return Box(*(round(side, 2) for side in (box.xmin, box.ymin, box.xmax, box.ymax)))
