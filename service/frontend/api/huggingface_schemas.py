"""The requests and answers of Hugging Face's clients, by structs that are also their JSON Schema in OpenAPI.

The names and meanings are those of the `image-classification`, `object-detection` and `image-segmentation` tasks
in `@huggingface/tasks`; docstrings have the meaning of each parameter here.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Annotated

import msgspec

from model.bundle import BundleConfig
from model.postprocess.masks import EncodedMask, MaskFormat, encode_detection, encode_segments, rounded_score
from model.postprocess.results import postprocess
from model.types import Box, ClassifyResult, Detection, DetectResult, RawOutput, SegmentResult, Size, Task
from service.frontend.core.parameters import SCORE_THRESHOLD, TOP_K

Threshold = Annotated[float, msgspec.Meta(ge=SCORE_THRESHOLD.low, le=SCORE_THRESHOLD.high)]


class Function(StrEnum):
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    NONE = "none"


class Subtask(StrEnum):
    SEMANTIC = "semantic"
    INSTANCE = "instance"
    PANOPTIC = "panoptic"


class ClassifyParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`top_k`: number of labels, by default 5. `function_to_apply`: only softmax, which the models were trained for."""

    top_k: Annotated[int, msgspec.Meta(ge=TOP_K.low, le=TOP_K.high)] | None = None
    function_to_apply: Function | None = None


class DetectParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`threshold`: return only detections scoring above this.

    By default it is the model's own, which is lower than the 0.5 of Hugging Face's pipeline.
    """

    threshold: Threshold | None = None


class SegmentParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`subtask`: `semantic` or `instance`; by default the model's.

    For instances: `threshold`: return only instances scoring above this; by default the model's own threshold.
    `mask_threshold`: the minimum probability of a pixel of an instance. Segments of a semantic model have no scores,
    so neither applies to them. `overlap_mask_area_threshold` is for panoptic segmentation, and is ignored.
    """

    subtask: Subtask | None = None
    threshold: Threshold | None = None
    mask_threshold: Threshold | None = None
    overlap_mask_area_threshold: Threshold | None = None


Parameters = ClassifyParameters | DetectParameters | SegmentParameters
PARAMETERS_OF_TASK: dict[Task, type[Parameters]] = {
    Task.CLASSIFY: ClassifyParameters,
    Task.DETECT: DetectParameters,
    Task.SEGMENT: SegmentParameters,
}


class LabelElement(msgspec.Struct, frozen=True):
    label: str
    score: float


class BoxElement(msgspec.Struct, frozen=True):
    """Whole pixels of the upright picture, origin at the top left."""

    xmin: int
    ymin: int
    xmax: int
    ymax: int


class DetectionElement(msgspec.Struct, frozen=True):
    label: str
    score: float
    box: BoxElement


class SegmentElement(msgspec.Struct, frozen=True):
    """`mask`: an 8-bit grey PNG, 255 inside. A segment of a semantic model has no `score`."""

    label: str
    mask: bytes
    score: float | msgspec.UnsetType = msgspec.UNSET


ELEMENT_OF_TASK: dict[Task, type[LabelElement | DetectionElement | SegmentElement]] = {
    Task.CLASSIFY: LabelElement,
    Task.DETECT: DetectionElement,
    Task.SEGMENT: SegmentElement,
}


def encode_elements(parameters: Parameters, raw: RawOutput, config: BundleConfig, size: Size) -> bytes:
    """The answer: labels and detections by falling score, a semantic model's segments by falling area.

    Raises:
        TypeError: the output is not of the parameters' task.
    """
    match parameters, postprocess(raw, config, size):
        case ClassifyParameters(), ClassifyResult(labels=labels):
            return msgspec.json.encode([LabelElement(label.label, float(f"{label.score:.6g}")) for label in labels])
        case DetectParameters(), DetectResult(detections=detections):
            return msgspec.json.encode(
                [
                    DetectionElement(detection.label, rounded_score(detection.score), _box(detection.box))
                    for detection in detections
                ]
            )
        case SegmentParameters(mask_threshold=threshold), DetectResult(detections=detections):
            return msgspec.json.encode(
                [
                    SegmentElement(
                        detection.label, _instance_png(detection, size, threshold), rounded_score(detection.score)
                    )
                    for detection in detections
                ]
            )
        case SegmentParameters(), SegmentResult(segments=segments) as result:
            masks = encode_segments(result, MaskFormat.PNG)
            return msgspec.json.encode(
                [SegmentElement(segment.label, _png(mask)) for segment, mask in zip(segments, masks, strict=True)]
            )
        case _:
            raise TypeError(f"{type(raw).__name__} is no answer to {type(parameters).__name__}")


def _instance_png(detection: Detection, size: Size, mask_threshold: float | None) -> bytes:
    if detection.mask is not None and mask_threshold is not None:
        detection = replace(detection, mask=replace(detection.mask, threshold=mask_threshold))
    return _png(encode_detection(detection, size, MaskFormat.PNG))


def _png(mask: EncodedMask) -> bytes:
    if not isinstance(mask, bytes):
        raise TypeError(f"expected a mask as PNG, detection {type(mask).__name__}")
    return mask


def _box(box: Box) -> BoxElement:
    return BoxElement(round(box.xmin), round(box.ymin), round(box.xmax), round(box.ymax))
