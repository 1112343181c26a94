"""RawOutput → Result: class names and pixel counts are added."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model.bundle import BundleConfig
from model.errors import NotFinite
from model.spec import ClassifyPostSpec, DetectPostSpec, SegmentPostSpec
from model.types import (
    Box,
    ClassifyOutput,
    ClassifyResult,
    Detection,
    DetectOutput,
    DetectResult,
    Float32Array,
    Label,
    RawOutput,
    Result,
    Segment,
    SegmentOutput,
    SegmentResult,
    Size,
    SoftMask,
)


def postprocess(raw: RawOutput, config: BundleConfig, size: Size) -> Result:
    """The result of one picture.

    Args:
        raw: the network's output for it, finite.
        config: of the bundle.
        size: of the upright picture.

    Raises:
        TypeError: the output is not of the bundle's task.
    """
    match raw, config.postprocessing:
        case ClassifyOutput(), ClassifyPostSpec():
            result: Result = name_labels(raw, config.labels, size)
        case DetectOutput(), DetectPostSpec() as post:
            result = name_detections(raw, config.labels, post.mask_threshold, size)
        case SegmentOutput(), SegmentPostSpec():
            result = name_segments(raw, config.labels, size)
        case _:
            raise TypeError(f"model {config.name} is for {config.task}; its output is a {type(raw).__name__}")
    return result if config.palette is None else replace(result, palette=config.palette)


def require_finite(raw: RawOutput) -> RawOutput:
    """The output itself. Raises NotFinite if it has NaN or infinity."""
    if not raw.finite:
        raise NotFinite
    return raw


def name_labels(raw: ClassifyOutput, labels: tuple[str, ...], size: Size) -> ClassifyResult:
    """The classes with their names, in the order of `raw`: by falling score."""
    scored = zip(raw.indices.tolist(), raw.scores.tolist(), strict=True)
    return ClassifyResult(size, tuple(Label(labels[index], index, score) for index, score in scored))


def name_detections(raw: DetectOutput, labels: tuple[str, ...], mask_threshold: float, size: Size) -> DetectResult:
    """The detections with their classes' names, in the order of `raw`: by falling score. Masks are not pasted yet."""
    masks = (
        [None] * len(raw.classes)
        if raw.mask_logits is None
        else [SoftMask(logits, mask_threshold) for logits in raw.mask_logits]
    )
    rows = zip(raw.classes.tolist(), raw.scores.tolist(), raw.boxes.tolist(), masks, strict=True)
    return DetectResult(
        size, tuple(Detection(labels[index], index, score, Box(*box), mask) for index, score, box, mask in rows)
    )


def unit_length(embedding: Float32Array) -> Float32Array:
    """The vector scaled to a Euclidean length of 1, float32; zeros stay zeros."""
    length = float(np.linalg.norm(embedding.astype(np.float64)))
    return (embedding / length).astype(np.float32) if length else embedding


def name_segments(raw: SegmentOutput, labels: tuple[str, ...], size: Size) -> SegmentResult:
    """A segment for each class that is to be returned, by falling area; equal areas by rising class index."""
    order = [index for index in np.argsort(-raw.areas, kind="stable").tolist() if raw.areas[index]]
    segments = tuple(
        Segment(labels[index], index, int(raw.areas[index]), float(raw.confidences[index])) for index in order
    )
    return SegmentResult(size, raw.label_map, segments, raw.confidence_map)
