"""The outputs of each task: what a model's metadata lists is what its answers are made by.

The images of one request share a tensor, see `stacking`: `num_detections`, `num_segments` and `image_size` say how
much of each image's part is real. The rest is 0 or empty, and -1 for an index.

Which outputs a request gets, and what that asks of the model.

The parts of a request's images → tensors, whose first axis is the images'.

Where images differ in size, or in the number of what was found, the smaller parts are padded on the right and below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from model.bundle import BundleConfig
from model.errors import ImageTooLarge
from model.families.registry import family_of
from model.postprocess.masks import RLE, EncodedMask, MaskFormat, encode_detection, encode_segments
from model.types import (
    ClassifyResult,
    Detection,
    DetectResult,
    Label,
    QueryParams,
    Result,
    Segment,
    SegmentResult,
    Task,
)
from service.errors import BadParameter, BadRequest
from service.frontend.api.oip.protocol import DTYPES, Datatype, Numbers, RequestedOutput, Tensor
from service.frontend.core.overlay import encode_label_map
from service.frontend.core.parameters import TOP_K, PredictParams

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
            masks = (DETECTION_MASKS,) if family_of(config.architecture).masks else ()
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


@dataclass(frozen=True, slots=True)
class Choice:
    """`outputs` in the order that was asked for, each with whether it goes as raw bytes; `params` is the worker's
    part, `form` the encoder's."""

    outputs: tuple[tuple[Output, bool], ...]
    params: QueryParams
    form: Form


def choose(
    config: BundleConfig, requested: tuple[RequestedOutput, ...], asked: PredictParams, *, binary: bool
) -> Choice:
    """The requested outputs, or where none is named the usual ones, in the form that `binary` says.

    Raises:
        BadRequest: an output that the model does not have, or is named twice.
        BadParameter: the classification extension where it cannot be, or masks that are both asked for and not.
    """
    known = {output.name: output for output in outputs_of(config)}
    without_masks = asked.mask_format is MaskFormat.NONE
    if not requested:
        usual = (output for output in known.values() if output.usual)
        chosen = [(output, binary) for output in usual if not (without_masks and output.name == DETECTION_MASKS.name)]
    else:
        names = [wanted.name for wanted in requested]
        for name in names:
            if name not in known:
                raise BadRequest(f"model {config.name!r} has no output {name[:80]!r}; it has {', '.join(known)}")
            if names.count(name) > 1:
                raise BadRequest(f"output {name!r} is asked for twice; name it once")
        if without_masks and DETECTION_MASKS.name in names:
            raise BadParameter("the output 'masks' is asked for with the mask_format 'none'", "mask_format")
        chosen = [(_output(config, known[wanted.name], wanted.classes), wanted.binary) for wanted in requested]
    top_k = max([asked.params.top_k, *(wanted.classes for wanted in requested)])
    masks = any(output is DETECTION_MASKS for output, _ in chosen)
    params = replace(asked.params, top_k=top_k, masks=masks)
    return Choice(tuple(chosen), params, Form(asked.params.top_k, asked.mask_format))


def _output(config: BundleConfig, output: Output, classes: int) -> Output:
    if not classes:
        return output
    if config.task is not Task.CLASSIFY or output is not SCORES:
        raise BadParameter(
            f"output {output.name!r} of model {config.name!r} has no classification; a classifier's 'scores' has",
            "classification",
        )
    if classes not in TOP_K:
        raise BadParameter(f"`classification` is {classes}; expected {TOP_K}", "classification")
    return classification(classes)


def stack(output: Output, rows: Sequence[Row], max_bytes: int) -> Tensor:
    """One output of all images, in their order.

    Raises:
        ImageTooLarge: padded to the largest it would have more than `max_bytes`.
    """
    if output.datatype is Datatype.BYTES:
        most = max(len(row) for row in rows)
        elements = [element for row in rows for element in (*row, *[b""] * (most - len(row)))]
        return Tensor(output.name, output.datatype, (len(rows), most), elements)
    arrays = [np.asarray(row) for row in rows]
    largest = tuple(max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True))
    dtype = DTYPES[output.datatype]
    if len(arrays) * math.prod(largest) * dtype.itemsize > max_bytes:
        raise answer_too_large(output, max_bytes)
    values = np.full((len(arrays), *largest), output.padding, dtype)
    for place, array in zip(values, arrays, strict=True):
        place[tuple(map(slice, array.shape))] = array
    return Tensor(output.name, output.datatype, values.shape, values)


def row_bytes(row: Row) -> int:
    """What an image's part of an output holds in memory."""
    return row.nbytes if isinstance(row, np.ndarray) else sum(map(len, row))


def answer_too_large(output: Output, max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"with the output {output.name!r} the response would have more than {max_bytes:,} bytes; name only the "
        "outputs that are needed, or send fewer or smaller images"
    )
