"""The outputs of each task: what a model's metadata lists is what its answers are made by.

The images of one request share a tensor, see `stacking`: `num_detections`, `num_segments` and `image_size` say how
much of each image's part is real. The rest is 0 or empty, and -1 for an index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from model.bundle import BundleConfig
from model.postprocess.masks import RLE, EncodedMask, MaskFormat, encode_detection, encode_segments
from model.spec import MaskRCNNSpec
from model.types import ClassifyResult, Detection, DetectResult, Label, Result, Segment, SegmentResult, Task
from service.frontend.oip.tensors import Datatype, Numbers
from service.frontend.render import encode_label_map

Row = Numbers | list[bytes]
"""One image's part of an output."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a request says of how its outputs are made."""

    top_k: int
    mask_format: MaskFormat


@dataclass(frozen=True, slots=True)
class Output:
    """`dims` are those of one image, -1 where they vary. `usual`: it comes where a request names no outputs.

    `make` gives an image's part of it, and runs in a thread; `padding` is for numbers.
    """

    name: str
    datatype: Datatype
    dims: tuple[int, ...]
    make: Callable[[Any, Form], Row]
    usual: bool = True
    padding: int = 0


def outputs_of(config: BundleConfig) -> tuple[Output, ...]:
    """Every output of a model."""
    match config.task:
        case Task.CLASSIFY:
            return (SCORES, INDICES, LABELS, IMAGE_SIZE)
        case Task.DETECT:
            masks = (DETECTION_MASKS,) if isinstance(config.architecture, MaskRCNNSpec) else ()
            return (NUM_DETECTIONS, BOXES, SCORES, INDICES, LABELS, *masks, IMAGE_SIZE)
        case Task.SEGMENT:
            datatype = Datatype.UINT8 if len(config.labels) <= 256 else Datatype.UINT16
            label_map = Output("label_map", datatype, (-1, -1), lambda result, _: result.label_map)
            return (label_map, LABEL_MAP_PNG, NUM_SEGMENTS, INDICES, LABELS, AREAS, SEGMENT_MASKS, IMAGE_SIZE)


def classification(count: int) -> Output:
    """Triton's classification extension of `scores`: the best `count` classes, each `score:index:label`."""

    def make(result: ClassifyResult, _: Form) -> Row:
        return [f"{row.score:.6f}:{row.index}:{row.label}".encode() for row in result.labels[:count]]

    return Output(SCORES.name, Datatype.BYTES, (-1,), make)


def _items(result: Result, form: Form) -> tuple[Label, ...] | tuple[Detection, ...] | tuple[Segment, ...]:
    match result:
        case ClassifyResult(labels=labels):
            return labels[: form.top_k]
        case DetectResult(detections=detections):
            return detections
        case SegmentResult(segments=segments):
            return segments


def _count(result: Result, form: Form) -> Row:
    return np.array([len(_items(result, form))], np.int32)


def _indices(result: Result, form: Form) -> Row:
    return np.array([item.index for item in _items(result, form)], np.int64)


def _labels(result: Result, form: Form) -> Row:
    return [item.label.encode() for item in _items(result, form)]


def _scores(result: ClassifyResult | DetectResult, form: Form) -> Row:
    rows = result.labels[: form.top_k] if isinstance(result, ClassifyResult) else result.detections
    return np.array([row.score for row in rows], np.float32)


def _areas(result: SegmentResult, _: Form) -> Row:
    return np.array([segment.area for segment in result.segments], np.int64)


def _boxes(result: DetectResult, _: Form) -> Row:
    boxes = [(row.box.xmin, row.box.ymin, row.box.xmax, row.box.ymax) for row in result.detections]
    return np.array(boxes, np.float32).reshape(-1, 4)


def _image_size(result: Result, _: Form) -> Row:
    return np.array([result.size.height, result.size.width], np.int64)


def _label_map_png(result: SegmentResult, _: Form) -> Row:
    return [encode_label_map(result.label_map)]


def _detection_masks(result: DetectResult, form: Form) -> Row:
    return [_element(encode_detection(row, result.size, form.mask_format)) for row in result.detections]


def _segment_masks(result: SegmentResult, form: Form) -> Row:
    return [_element(mask) for mask in encode_segments(result, form.mask_format)]


def _element(mask: EncodedMask) -> bytes:
    """A PNG as it is; run lengths as COCO's JSON, `{"size": [height, width], "counts": "…"}`; polygons as JSON."""
    match mask:
        case bytes():
            return mask
        case RLE(size=size, counts=counts):
            return msgspec.json.encode({"size": (size.height, size.width), "counts": counts})
        case _:
            return msgspec.json.encode(mask)


SCORES = Output("scores", Datatype.FP32, (-1,), _scores)
INDICES = Output("indices", Datatype.INT64, (-1,), _indices, padding=-1)
LABELS = Output("labels", Datatype.BYTES, (-1,), _labels)
IMAGE_SIZE = Output("image_size", Datatype.INT64, (2,), _image_size)
NUM_DETECTIONS = Output("num_detections", Datatype.INT32, (1,), _count)
BOXES = Output("boxes", Datatype.FP32, (-1, 4), _boxes)
DETECTION_MASKS = Output("masks", Datatype.BYTES, (-1,), _detection_masks)
LABEL_MAP_PNG = Output("label_map_png", Datatype.BYTES, (1,), _label_map_png, usual=False)
NUM_SEGMENTS = Output("num_segments", Datatype.INT32, (1,), _count)
AREAS = Output("areas", Datatype.INT64, (-1,), _areas)
SEGMENT_MASKS = Output("masks", Datatype.BYTES, (-1,), _segment_masks, usual=False)
