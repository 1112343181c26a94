"""A model's output as the results of Label Studio's controls.

Places and lengths in results are percentages of the upright picture's width and height.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
import numpy as np

from model.bundle import BundleConfig
from model.postprocess.brush_rle import encode_brush, encode_segments_brush
from model.postprocess.masks import RegionMask, paste_mask, rounded_score
from model.postprocess.polygons import enclosed_area, outer_outlines, simplified
from model.postprocess.results import postprocess
from model.spec import ClassifyPostSpec, DetectPostSpec
from model.types import (
    BoolArray,
    Box,
    ClassifyResult,
    Detection,
    DetectResult,
    IntArray,
    QueryParams,
    RawOutput,
    SegmentResult,
    Size,
    Task,
)
from service.frontend.api.compat.labelstudio.label_config import Control, ControlTag
from service.frontend.core.parameters import DEFAULTS, TOP_K

MULTIPLE_THRESHOLD = 0.5
"""The least probability of a choice among several, where neither the control nor the model has its own."""
SIMPLIFIED = 0.002
"""Outlines may move by so much of their length when corners are left out."""
MIN_SIMPLIFIED_PX = 1.0
"""And by at least so many pixels, so that the steps of a slanting edge become a line."""
SMALLEST_PART = 0.01
"""Parts of a mask with less than this share of the area of its largest one get no polygon."""
MAX_PARTS = 100
"""Polygons of one mask."""
MIN_CORNERS = 3


class LabelStudioRegion(msgspec.Struct, frozen=True):
    """One result. `value` depends on `type`; a choice is of the whole picture and has no size."""

    id: str
    from_name: str
    to_name: str
    type: str
    value: dict[str, Any]
    score: float
    original_width: int | msgspec.UnsetType = msgspec.UNSET
    original_height: int | msgspec.UnsetType = msgspec.UNSET
    image_rotation: int | msgspec.UnsetType = msgspec.UNSET


_Found = Iterator[LabelStudioRegion]


@dataclass(frozen=True, slots=True)
class Regions:
    """Results, encoded, and their scores."""

    encoded: list[msgspec.Raw]
    scores: list[float]


@dataclass(frozen=True, slots=True)
class Binding:
    """A control and a model. `values`: by class index of the model, the value of the control's label; classes that the
    control lacks are missing. Scores must be above `threshold`, those of choices and segments at least it."""

    control: Control
    values: Mapping[int, str]
    threshold: float


def bind(control: Control, config: BundleConfig) -> Binding:
    """The threshold is the control's own, or else its model's, where scores of one picture do not compete."""
    known = ((index, control.labels.get(label.casefold())) for index, label in enumerate(config.labels))
    threshold = control.score_threshold
    if threshold is None:
        match config.postprocessing:
            case DetectPostSpec(score_threshold=threshold):
                pass
            case ClassifyPostSpec(score_threshold=own) if control.multiple:
                threshold = own or MULTIPLE_THRESHOLD
            case _:
                threshold = 0.0
    return Binding(control, {index: value for index, value in known if value is not None}, threshold)


def params_of(bindings: Sequence[Binding], config: BundleConfig) -> QueryParams:
    """What a model has to compute for these controls, which it answers together."""
    if config.task is Task.CLASSIFY:
        several = any(binding.control.multiple for binding in bindings)
        return QueryParams(top_k=min(len(config.labels), int(TOP_K.high)) if several else DEFAULTS.top_k)
    classes = tuple(sorted({index for binding in bindings for index in binding.values}))
    if config.task is Task.DETECT:
        threshold = min(binding.threshold for binding in bindings)
        masks = any(binding.control.tag in (ControlTag.BRUSH, ControlTag.POLYGONS) for binding in bindings)
        return QueryParams(score_threshold=threshold, masks=masks, classes=classes)
    return QueryParams(classes=classes)


def encode_regions(bindings: Sequence[Binding], raw: RawOutput, config: BundleConfig, size: Size) -> Regions:
    """The results of a model's controls. Call it in a thread for masks."""
    result = postprocess(raw, config, size)
    regions: list[LabelStudioRegion] = []
    for binding in bindings:
        match result:
            case ClassifyResult():
                regions += _choices(binding, result)
            case DetectResult():
                regions += _objects(binding, result)
            case SegmentResult():
                regions += _segments(binding, result)
    return Regions([msgspec.Raw(msgspec.json.encode(region)) for region in regions], [one.score for one in regions])


def _choices(binding: Binding, result: ClassifyResult) -> _Found:
    """The best of the labels that the control has; or all above the threshold, where several may be chosen."""
    control, values = binding.control, binding.values
    known = [label for label in result.labels if label.index in values and label.score >= binding.threshold]
    chosen = known if control.multiple else known[:1]
    if chosen:
        names = list(dict.fromkeys(values[label.index] for label in chosen))
        yield _region(control, {"choices": names}, chosen[0].score)


def _objects(binding: Binding, result: DetectResult) -> _Found:
    control, values = binding.control, binding.values
    for detection in result.detections:
        # As the network compares: a score must be above the threshold.
        if detection.index not in values or detection.score <= binding.threshold:
            continue
        value, size = values[detection.index], result.size
        if control.tag is ControlTag.RECTANGLES:
            if (rectangle := _rectangle(detection.box, size)) is not None:
                yield _region(control, rectangle | {"rectanglelabels": [value]}, detection.score, size)
            continue
        mask = _mask_of(detection, size)
        if mask is None:
            continue
        if control.tag is ControlTag.BRUSH:
            yield _brush(control, value, encode_brush(mask), detection.score, size)
        else:
            yield from _polygons(control, value, mask.pixels, (mask.left, mask.top), detection.score, size)


def _segments(binding: Binding, result: SegmentResult) -> _Found:
    control, values = binding.control, binding.values
    wanted = [one for one in result.segments if one.index in values and one.confidence >= binding.threshold]
    if control.tag is ControlTag.BRUSH:
        packed = encode_segments_brush(SegmentResult(result.size, result.label_map, tuple(wanted)))
        for segment, rle in zip(wanted, packed, strict=True):
            yield _brush(control, values[segment.index], rle, segment.confidence, result.size)
        return
    for segment in wanted:
        mask = result.label_map == segment.index
        yield from _polygons(control, values[segment.index], mask, (0, 0), segment.confidence, result.size)


def _mask_of(detection: Detection, size: Size) -> RegionMask | None:
    """The pixels of an instance; None if it has none."""
    if detection.mask is None:
        return None
    mask = paste_mask(detection.mask, detection.box, size)
    return mask if mask.pixels.any() else None


def _rectangle(box: Box, size: Size) -> dict[str, Any] | None:
    """The part of a box within the picture; None if there is none."""
    left, right = (min(max(x, 0.0), size.width) for x in (box.xmin, box.xmax))
    top, bottom = (min(max(y, 0.0), size.height) for y in (box.ymin, box.ymax))
    if right <= left or bottom <= top:
        return None
    x, y = _percent(left, size.width), _percent(top, size.height)
    width, height = _percent(right - left, size.width), _percent(bottom - top, size.height)
    return {"x": x, "y": y, "width": width, "height": height, "rotation": 0}


def _brush(control: Control, value: str, rle: bytes, score: float, size: Size) -> LabelStudioRegion:
    return _region(control, {"format": "rle", "rle": list(rle), "brushlabels": [value]}, score, size)


def _polygons(
    control: Control, value: str, mask: BoolArray, offset: tuple[int, int], score: float, size: Size
) -> _Found:
    """One result for each larger part of a mask that begins at `offset`, (x, y), in the picture."""
    for outline in _outlines(mask, *offset):
        points = [[_percent(x, size.width), _percent(y, size.height)] for x, y in outline.tolist()]
        yield _region(control, {"points": points, "closed": True, "polygonlabels": [value]}, score, size)


def _outlines(mask: BoolArray, left: int, top: int) -> Iterator[IntArray]:
    """The outlines of a mask's larger parts, int64 (n, 2) of (x, y), simplified. Holes are filled: a polygon has none.

    They run along the edges of pixels, as boxes do.
    """
    largest = 0
    for outline in islice(outer_outlines(mask, left, top), MAX_PARTS):
        area = enclosed_area(outline)
        largest = max(area, largest)
        if area < SMALLEST_PART * largest:
            return
        length = float(np.abs(np.roll(outline, -1, axis=0) - outline).sum())
        simple = simplified(outline, max(MIN_SIMPLIFIED_PX, SIMPLIFIED * length))
        yield simple if len(simple) >= MIN_CORNERS else outline


def _region(control: Control, value: dict[str, Any], score: float, size: Size | None = None) -> LabelStudioRegion:
    """`size` is None for a result of the whole picture."""
    names = (secrets.token_hex(5), control.name, control.to_name, control.tag.lower(), value, rounded_score(score))
    return LabelStudioRegion(*names) if size is None else LabelStudioRegion(*names, size.width, size.height, 0)


def _percent(pixels: float, length: int) -> float:
    return float(f"{100 * pixels / length:.6g}")
