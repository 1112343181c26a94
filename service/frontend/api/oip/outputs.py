"""The outputs of each task: selected by a request, computed from results. Metadata list the default ones.

The images of one request share each output's tensor, whose first axis is the images'. Where images differ in size or in
the number of items found, the smaller parts are padded on the right and below: with 0 or an empty element, `indices`
with -1. `num_detections`, `num_segments` and `image_size` give the extent of each image's part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np

from model.bundle import BundleConfig
from model.errors import ImageTooLarge
from model.families.registry import family_of
from model.postprocess.masks import RLE, EncodedMask, MaskFormat, encode_detection, encode_segments
from model.postprocess.results import postprocess
from model.tiles import Tiling
from model.types import ClassifyResult, DetectResult, QueryParams, RawOutput, Result, SegmentResult, Size, Task
from service.errors import BadParameter, BadRequest
from service.frontend.api.oip.protocol import DTYPES, Datatype, InferRequest, RequestedOutput, Tensor, Values
from service.frontend.core.overlay import encode_label_map
from service.frontend.core.parameters import TOP_K, PredictParams

Compute = Callable[[Any, Sequence[Any], MaskFormat], Values]
"""One image's values of an output, from its result and that result's labels, detections or segments."""


@dataclass(frozen=True, slots=True)
class Output:
    """`dims` are those of one image, -1 where they vary. A request that names no outputs gets those of `default`."""

    name: str
    datatype: Datatype
    dims: tuple[int, ...]
    compute: Compute
    default: bool = True
    padding: int = 0
    """The value that numbers are padded with."""


@dataclass(frozen=True, slots=True)
class OutputSelection:
    """What one request selects.

    `outputs` are in the requested order, each with whether it goes as raw bytes. `params` are the worker's, with
    `classes` once they are indices; `top_k` and `mask_format` apply to what it answers. `tiling`: how images are cut.
    """

    outputs: Sequence[tuple[Output, bool]]
    params: QueryParams
    classes: tuple[str, ...]
    top_k: int
    mask_format: MaskFormat
    tiling: Tiling | None

    def compute(self, raw: RawOutput, config: BundleConfig, size: Size) -> list[Values]:
        """One image's values of each output."""
        result = postprocess(raw, config, size)
        items: Sequence[Any]
        match result:
            case ClassifyResult(labels=labels):
                items = labels[: self.top_k]
            case DetectResult(detections=items) | SegmentResult(segments=items):
                pass
        return [output.compute(result, items, self.mask_format) for output, _ in self.outputs]

    def stack(self, images: Sequence[Sequence[Values]], max_bytes: int) -> list[tuple[Tensor, bool]]:
        """The tensors of a response, from each image's values; each with whether it goes as raw bytes.

        Raises:
            ImageTooLarge: a padded tensor would have more than `max_bytes`.
        """
        return [
            (_stack(output, parts, max_bytes), binary)
            for (output, binary), parts in zip(self.outputs, zip(*images, strict=True), strict=True)
        ]

    def too_large(self, values: Sequence[Values], max_bytes: int) -> ImageTooLarge:
        """The error of a response over `max_bytes`; it names the output with the largest of an image's `values`."""
        sizes = [nbytes_of([part]) for part in values]
        return _too_large(self.outputs[sizes.index(max(sizes))][0], max_bytes)


def outputs_of(config: BundleConfig) -> tuple[Output, ...]:
    """Every output of a model."""
    match config.task:
        case Task.CLASSIFY:
            return CLASSIFY_OUTPUTS
        case Task.DETECT:
            return INSTANCE_OUTPUTS if family_of(config.architecture).masks else DETECT_OUTPUTS
        case Task.SEGMENT:
            return SEGMENT_OUTPUTS if len(config.labels) <= 256 else WIDE_SEGMENT_OUTPUTS


def default_outputs(config: BundleConfig) -> tuple[Output, ...]:
    """The outputs of a request that names none: what the protocol's metadata promise."""
    return tuple(output for output in outputs_of(config) if output.default)


def select_outputs(config: BundleConfig, request: InferRequest, requested: PredictParams) -> OutputSelection:
    """The outputs that a request names, or the model's default ones.

    Raises:
        BadRequest: the model does not have an output, or it is named twice.
        BadParameter: the classification extension does not apply, or masks are both requested and excluded.
    """
    known = outputs_of(config)
    top_k, mask_format = requested.params.top_k, requested.mask_format
    without_masks = mask_format is MaskFormat.NONE
    selected: list[tuple[Output, bool]] = []
    if not request.outputs:
        for output in default_outputs(config):
            if not (without_masks and output is DETECTION_MASKS):
                selected.append((output, request.binary))
    for wanted in request.outputs:
        output = _named(config, known, wanted)
        if any(output.name == other.name for other, _ in selected):
            raise BadRequest(f"output {output.name!r} is requested twice; name it once")
        if without_masks and output is DETECTION_MASKS:
            raise BadParameter("the output 'masks' is requested with the mask_format 'none'", "mask_format")
        top_k = max(top_k, wanted.classes)
        selected.append((output, wanted.binary))
    masks = DETECTION_MASKS in [output for output, _ in selected]
    levels = CONFIDENCE_MAP in [output for output, _ in selected]
    params = msgspec.structs.replace(requested.params, top_k=top_k, masks=masks, confidence_map=levels)
    return OutputSelection(selected, params, requested.classes, requested.params.top_k, mask_format, requested.tiling)


def nbytes_of(values: Sequence[Values]) -> int:
    """The bytes that values hold in memory."""
    total = 0
    for part in values:
        total += part.nbytes if isinstance(part, np.ndarray) else sum(map(len, part))
    return total


def _named(config: BundleConfig, known: Sequence[Output], wanted: RequestedOutput) -> Output:
    output = next((output for output in known if output.name == wanted.name), None)
    if output is None:
        names = ", ".join([output.name for output in known])
        raise BadRequest(f"model {config.name!r} has no output {wanted.name[:80]!r}; it has {names}")
    if not wanted.classes:
        return output
    if config.task is not Task.CLASSIFY or output is not SCORES:
        raise BadParameter(
            f"output {output.name!r} of model {config.name!r} has no classification; only 'scores' of a classifier has",
            "classification",
        )
    if wanted.classes not in TOP_K:
        raise BadParameter(f"`classification` is {wanted.classes}; expected {TOP_K}", "classification")
    return _classification(wanted.classes)


def _classification(count: int) -> Output:
    """Triton's classification extension of `scores`: the best `count` classes, each `score:index:label`."""

    def compute(result: ClassifyResult, _labels: Sequence[Any], _format: MaskFormat) -> Values:
        return [f"{row.score:.6f}:{row.index}:{row.label}".encode() for row in result.labels[:count]]

    return Output(SCORES.name, Datatype.BYTES, (-1,), compute)


def _stack(output: Output, parts: Sequence[Values], max_bytes: int) -> Tensor:
    """One output of all images, in their order."""
    first = parts[0]
    if len(parts) == 1:
        if isinstance(first, np.ndarray):
            return Tensor(output.name, output.datatype, (1, *first.shape), first[None])
        return Tensor(output.name, output.datatype, (1, len(first)), first)
    if output.datatype is Datatype.BYTES:
        most = max([len(part) for part in parts])
        elements = [element for part in parts for element in (*part, *[b""] * (most - len(part)))]
        return Tensor(output.name, output.datatype, (len(parts), most), elements)
    arrays = [np.asarray(part) for part in parts]
    largest = np.max([array.shape for array in arrays], axis=0).tolist()
    dtype = DTYPES[output.datatype]
    if len(arrays) * math.prod(largest) * dtype.itemsize > max_bytes:
        raise _too_large(output, max_bytes)
    values = np.full((len(arrays), *largest), output.padding, dtype)
    for place, array in zip(values, arrays, strict=True):
        place[tuple(map(slice, array.shape))] = array
    return Tensor(output.name, output.datatype, values.shape, values)


def _too_large(output: Output, max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"with the output {output.name!r} the response would have more than {max_bytes:,} bytes; request fewer "
        "outputs, or send fewer or smaller images"
    )


# With `map` these run without a Python frame for each item.
_SCORE, _INDEX, _LABEL = attrgetter("score"), attrgetter("index"), attrgetter("label")
_AREA, _CONFIDENCE = attrgetter("area"), attrgetter("confidence")


def _count(_result: Result, items: Sequence[Any], _format: MaskFormat) -> Values:
    return np.array([len(items)], np.int32)


def _scores(_result: Result, items: Sequence[Any], _format: MaskFormat) -> Values:
    return np.fromiter(map(_SCORE, items), np.float32, len(items))


def _indices(_result: Result, items: Sequence[Any], _format: MaskFormat) -> Values:
    return np.fromiter(map(_INDEX, items), np.int64, len(items))


def _areas(_result: Result, items: Sequence[Any], _format: MaskFormat) -> Values:
    return np.fromiter(map(_AREA, items), np.int64, len(items))


def _confidences(_result: Result, items: Sequence[Any], _format: MaskFormat) -> Values:
    return np.fromiter(map(_CONFIDENCE, items), np.float32, len(items))


def _labels(_result: Result, items: Sequence[Any], _format: MaskFormat) -> Values:
    return [*map(str.encode, map(_LABEL, items))]


def _boxes(result: DetectResult, _detections: Sequence[Any], _format: MaskFormat) -> Values:
    boxes = [(row.box.xmin, row.box.ymin, row.box.xmax, row.box.ymax) for row in result.detections]
    return np.array(boxes, np.float32).reshape(-1, 4)


def _image_size(result: Result, _items: Sequence[Any], _format: MaskFormat) -> Values:
    return np.array([result.size.height, result.size.width], np.int64)


def _label_map(result: SegmentResult, _segments: Sequence[Any], _format: MaskFormat) -> Values:
    return result.label_map


def _confidence_map(result: SegmentResult, _segments: Sequence[Any], _format: MaskFormat) -> Values:
    assert result.confidence_map is not None  # selected, so requested
    return result.confidence_map


def _label_map_png(result: SegmentResult, _segments: Sequence[Any], _format: MaskFormat) -> Values:
    return [encode_label_map(result.label_map)]


def _detection_masks(result: DetectResult, _detections: Sequence[Any], mask_format: MaskFormat) -> Values:
    return [_mask_bytes(encode_detection(row, result.size, mask_format)) for row in result.detections]


def _segment_masks(result: SegmentResult, _segments: Sequence[Any], mask_format: MaskFormat) -> Values:
    return [_mask_bytes(mask) for mask in encode_segments(result, mask_format)]


def _mask_bytes(mask: EncodedMask) -> bytes:
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
LABEL_MAP = Output("label_map", Datatype.UINT8, (-1, -1), _label_map)
LABEL_MAP_PNG = Output("label_map_png", Datatype.BYTES, (1,), _label_map_png, default=False)
CONFIDENCE_MAP = Output("confidence_map", Datatype.UINT8, (-1, -1), _confidence_map, default=False)
NUM_SEGMENTS = Output("num_segments", Datatype.INT32, (1,), _count)
AREAS = Output("areas", Datatype.INT64, (-1,), _areas)
CONFIDENCES = Output("confidences", Datatype.FP32, (-1,), _confidences)
SEGMENT_MASKS = Output("masks", Datatype.BYTES, (-1,), _segment_masks, default=False)

CLASSIFY_OUTPUTS = (SCORES, INDICES, LABELS, IMAGE_SIZE)
DETECT_OUTPUTS = (NUM_DETECTIONS, BOXES, SCORES, INDICES, LABELS, IMAGE_SIZE)
INSTANCE_OUTPUTS = (NUM_DETECTIONS, BOXES, SCORES, INDICES, LABELS, DETECTION_MASKS, IMAGE_SIZE)
SEGMENT_OUTPUTS = (
    LABEL_MAP,
    LABEL_MAP_PNG,
    NUM_SEGMENTS,
    INDICES,
    LABELS,
    AREAS,
    CONFIDENCES,
    CONFIDENCE_MAP,
    SEGMENT_MASKS,
    IMAGE_SIZE,
)
WIDE_SEGMENT_OUTPUTS = (replace(LABEL_MAP, datatype=Datatype.UINT16), *SEGMENT_OUTPUTS[1:])
"""Of models with more than 256 classes."""
