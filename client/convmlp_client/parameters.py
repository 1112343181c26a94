"""The parameters of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar

from convmlp_client.results import Analysis, AnyResult, Classification, Detections, Embedding, Segmentation, Task

R = TypeVar("R", bound=AnyResult, covariant=True)

MaskFormat = Literal["rle", "png", "polygon", "none"]
"""Encoding of masks: "rle" (COCO run lengths: smallest), "png", "polygon", or "none" (no masks). All are exact."""


class ClassifyParameters(TypedDict, total=False):
    """Keyword arguments of `classify`; None or left out means the default.

    `model`: model name (default: the task's default model).
    `top_k`: number of labels, 1 to 1000 (default: 5).
    """

    model: str | None
    top_k: int | None


class DetectParameters(TypedDict, total=False):
    """Keyword arguments of `detect`; None or left out means the default.

    `model`: model name (default: the task's default model).
    `score_threshold`: return only detections scoring above this, 0 to 1 (default: the model's own).
    `max_detections`: maximum number of detections, 1 to 1000 (default: 100).
    `classes`: names of the only classes to return, or class indices (default: all).
    `iou_threshold`: of two detections that overlap by more, return the better one, 0 to 1 (default: the model's own).
    `agnostic_nms`: True to compare detections of different classes, too (default: False).
    `min_area`: minimum area of a box in square pixels (default: 0).
    `tiles`: cut large images into overlapping windows and join their answers: "auto", a side in pixels such as 640, or
        "800x600" (default: do not cut).
    `tile_overlap`: least part of a window's sides that neighbours share, 0 to 0.8 (default: 0.2).
    `masks`: False to leave masks out (default: True for models that have masks).
    `mask_format`: encoding of masks (default: "rle").
    """

    model: str | None
    score_threshold: float | None
    max_detections: int | None
    classes: Sequence[str | int] | None
    iou_threshold: float | None
    agnostic_nms: bool | None
    min_area: int | None
    tiles: str | int | None
    tile_overlap: float | None
    masks: bool | None
    mask_format: MaskFormat | None


class SegmentParameters(TypedDict, total=False):
    """Keyword arguments of `segment`; None or left out means the default.

    `model`: model name (default: the task's default model).
    `classes`: names of the only classes to return, or class indices (default: all).
    `min_area`: minimum number of a segment's pixels (default: 0).
    `threshold`: of a model with one output channel, the probability above which a pixel is of the class, 0.001 to 0.999
    (default: the model's own).
    `confidence_map`: True for the probability of each pixel's class (default: False).
    `tiles`: cut large images into overlapping windows and join their answers: "auto", a side in pixels such as 640, or
        "800x600" (default: do not cut).
    `tile_overlap`: least part of a window's sides that neighbours share, 0 to 0.8 (default: 0.2).
    `masks`: False to leave masks out (default: True).
    `mask_format`: encoding of masks (default: "rle").
    """

    model: str | None
    classes: Sequence[str | int] | None
    min_area: int | None
    tiles: str | int | None
    tile_overlap: float | None
    threshold: float | None
    confidence_map: bool | None
    masks: bool | None
    mask_format: MaskFormat | None


class EmbedParameters(TypedDict, total=False):
    """Keyword arguments of `embed`; None or left out means the default.

    `model`: name of a classifier (default: the default model for `classify`).
    `normalize`: True to scale the vector to a length of 1 (default: False).
    """

    model: str | None
    normalize: bool | None


class AnalyzeParameters(TypedDict, total=False):
    """Keyword arguments of `analyze`; None or left out means the default. Each applies to the answers that have it.

    `tasks`: each is done by its default model (default: all that a model is served for).
    `models`: names of models, instead of tasks; several may be of one task.
    The others: see `ClassifyParameters`, `DetectParameters` and `SegmentParameters`.
    """

    tasks: Sequence[Task | Literal["classify", "detect", "segment"]] | None
    models: Sequence[str] | None
    top_k: int | None
    score_threshold: float | None
    max_detections: int | None
    classes: Sequence[str | int] | None
    iou_threshold: float | None
    agnostic_nms: bool | None
    min_area: int | None
    tiles: str | int | None
    tile_overlap: float | None
    threshold: float | None
    confidence_map: bool | None
    masks: bool | None
    mask_format: MaskFormat | None


@dataclass(frozen=True, slots=True)
class PredictParams(Generic[R]):
    """A task, the type of its results, and the parameters by name. The service chooses the parameters left out."""

    task: Task
    result_type: type[R]
    values: Mapping[str, Any]


def classify_params(parameters: ClassifyParameters) -> PredictParams[Classification]:
    """Raises TypeError for a parameter that the task does not have. So do the next four functions."""
    return PredictParams(Task.CLASSIFY, Classification, _specified(parameters, ClassifyParameters))


def detect_params(parameters: DetectParameters) -> PredictParams[Detections]:
    return PredictParams(Task.DETECT, Detections, _specified(parameters, DetectParameters))


def segment_params(parameters: SegmentParameters) -> PredictParams[Segmentation]:
    return PredictParams(Task.SEGMENT, Segmentation, _specified(parameters, SegmentParameters))


def embed_params(parameters: EmbedParameters) -> PredictParams[Embedding]:
    return PredictParams(Task.EMBED, Embedding, _specified(parameters, EmbedParameters))


def analyze_params(parameters: AnalyzeParameters) -> PredictParams[Analysis]:
    return PredictParams(Task.ANALYZE, Analysis, _specified(parameters, AnalyzeParameters))


def _specified(parameters: Mapping[str, object], known: type) -> Mapping[str, object]:
    """The parameters that are not None. Several classes become one text, comma separated; one name becomes a list."""
    names = known.__annotations__
    for name in parameters:
        if name not in names:
            raise TypeError(f"unknown parameter {name!r}; expected one of {', '.join(names)}")
    given = {name: value for name, value in parameters.items() if value is not None}
    if isinstance(classes := given.get("classes"), (list, tuple)):
        given["classes"] = ",".join(map(str, classes))
    if "tiles" in given:
        if given["tiles"] == "":  # over gRPC it would mean none
            raise ValueError("tiles is empty; expected 'auto', a side in pixels, or WIDTHxHEIGHT; None: no tiles")
        given["tiles"] = str(given["tiles"])
    for name in ("tasks", "models"):
        if isinstance(one := given.get(name), str):
            given[name] = [one]
    return given
