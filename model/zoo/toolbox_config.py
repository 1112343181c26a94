"""The test pipeline in a configuration of mmcv's and mmengine's toolboxes: Python text, read as data.

Checkpoints of these toolboxes contain the text of their training's configuration. It is a program of assignments; only
literals, containers, `dict(...)`, and names assigned before are evaluated, and nothing is run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from model.zoo.pipeline import PipelineParts, three_numbers, with_bgr_problem

MAX_CHARACTERS = 2**20
SEGMENT_THRESHOLD = 0.3
"""Of a decode head with a single output channel, unless it has another."""

_MISSING = object()


def read_toolbox_config(text: str) -> dict[str, Any]:
    """The values that the text assigns, by name. What is no plain value is left out; {} if the text is no Python."""
    if len(text) > MAX_CHARACTERS:
        return {}
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target = statement.targets[0]
            if isinstance(target, ast.Name):
                try:
                    value = _value(statement.value, found)
                except RecursionError:
                    continue
                if value is not _MISSING:
                    found[target.id] = value
    return found


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The value of an expression; `_MISSING` if it would have to be run. Parts that are missing are left out."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return names.get(node.id, _MISSING)
        case ast.UnaryOp(op=ast.USub()):
            value = _value(node.operand, names)
            return -value if isinstance(value, (int, float)) else _MISSING
        case ast.List() | ast.Tuple():
            values = [_value(part, names) for part in node.elts]
            known = [value for value in values if value is not _MISSING]
            return tuple(known) if isinstance(node, ast.Tuple) else known
        case ast.Dict():
            pairs = [
                (_value(key, names), _value(value, names))
                for key, value in zip(node.keys, node.values, strict=True)
                if key is not None
            ]
            return {key: value for key, value in pairs if isinstance(key, str) and value is not _MISSING}
        case ast.Call(func=ast.Name(id="dict"), args=[]):
            arguments = {one.arg: _value(one.value, names) for one in node.keywords if one.arg is not None}
            return {key: value for key, value in arguments.items() if value is not _MISSING}
    return _MISSING


def toolbox_pipeline(config: Mapping[str, Any], source: str) -> PipelineParts:
    """What a configuration has about the pipeline at test time.

    Args:
        config: as `read_toolbox_config` gives it.
        source: where it is from, for people.
    """
    parts = PipelineParts(source=source)
    for transform in _transforms(_test_pipeline(config)):
        parts = _with_transform(parts, transform)
    model = _mapping(config.get("model"))
    head = _mapping(model.get("decode_head"))
    if head.get("out_channels") == 1:
        parts = replace(parts, thresholds={"pixel_threshold": head.get("threshold") or SEGMENT_THRESHOLD})
    parts = _with_preprocessor(parts, _mapping(model.get("data_preprocessor") or config.get("data_preprocessor")))
    return _with_thresholds(parts, _mapping(model.get("test_cfg") or config.get("test_cfg")))


def _test_pipeline(config: Mapping[str, Any]) -> object:
    for place in (("test_dataloader", "dataset"), ("data", "test"), ("val_dataloader", "dataset"), ("data", "val")):
        found: object = config
        for key in place:
            found = _mapping(found).get(key)
        while isinstance(found, Mapping):
            if isinstance(found.get("pipeline"), list):
                return found["pipeline"]
            found = found.get("dataset")  # a dataset around a dataset
    return config.get("test_pipeline")


def _transforms(pipeline: object) -> Iterator[Mapping[str, Any]]:
    """The transforms in order; those inside MultiScaleFlipAug have its size."""
    for transform in pipeline if isinstance(pipeline, list) else ():
        if not isinstance(transform, Mapping):
            continue
        yield transform
        inner = transform.get("transforms")
        if transform.get("type") == "MultiScaleFlipAug" and isinstance(inner, list):
            for one in inner:
                if isinstance(one, Mapping):
                    scale = transform.get("img_scale")
                    yield {"scale": scale, "keep_ratio": True, **one} if one.get("type") == "Resize" and scale else one


def _with_transform(parts: PipelineParts, transform: Mapping[str, Any]) -> PipelineParts:
    match transform.get("type"):
        case "Resize":
            return _with_resize(parts, transform)
        case "ResizeEdge" if isinstance(scale := transform.get("scale"), int):
            return _with_shorter_side(parts, scale, transform)
        case "CenterCrop":
            crop = transform.get("crop_size")
            crop = crop[0] if isinstance(crop, (tuple, list)) and crop else crop
            return replace(parts, crop=crop) if type(crop) is int else parts
        case "Normalize":
            return _with_normalisation(parts, transform, to_rgb=transform.get("to_rgb", True))
        case "Pad":
            divisor = transform.get("size_divisor")
            if type(divisor) is int:
                return replace(parts, pad_multiple=divisor)
            if transform.get("size") is not None or transform.get("pad_to_square"):
                return parts.with_problem("size", "its test pipeline pads to a fixed size")
    return parts


def _with_resize(parts: PipelineParts, transform: Mapping[str, Any]) -> PipelineParts:
    scale = transform.get("scale") or transform.get("img_scale") or transform.get("size")
    if isinstance(scale, list) and len(scale) == 1 and isinstance(scale[0], (tuple, list)):
        (scale,) = scale
    if isinstance(scale, (tuple, list)) and len(scale) == 2 and scale[1] == -1 and type(scale[0]) is int:
        return _with_shorter_side(parts, scale[0], transform)
    if type(scale) is int:
        scale = (scale, scale)
    if not (isinstance(scale, (tuple, list)) and len(scale) == 2 and all(type(side) is int for side in scale)):
        return parts.with_problem("size", f"its test pipeline resizes to {scale!r}"[:120])
    if transform.get("interpolation", "bilinear") != "bilinear":
        parts = parts.with_problem("size", f"its test pipeline resizes by {transform['interpolation']}")
    if transform.get("backend", "cv2") != "cv2":
        parts = parts.with_problem("size", f"its test pipeline resizes with {transform['backend']}")
    if not transform.get("keep_ratio", "img_scale" in transform):
        return replace(parts, fixed_size=tuple(scale))
    return replace(parts, long_side=max(scale), short_side=min(scale))


def _with_shorter_side(parts: PipelineParts, side: int, transform: Mapping[str, Any]) -> PipelineParts:
    if transform.get("backend", "cv2") != "pillow":
        parts = parts.with_problem("interpolation", "its test pipeline resizes with OpenCV")
    return replace(parts, resize=side, interpolation=transform.get("interpolation", "bilinear"))


def _with_normalisation(parts: PipelineParts, found: Mapping[str, Any], *, to_rgb: object) -> PipelineParts:
    mean, std = three_numbers(found.get("mean")), three_numbers(found.get("std"))
    if mean is None or std is None:
        return parts
    if not to_rgb:
        return with_bgr_problem(parts)
    return replace(parts, mean=mean, std=std)


def _with_preprocessor(parts: PipelineParts, found: Mapping[str, Any]) -> PipelineParts:
    """mmengine's `data_preprocessor`, which normalises and pads on the device."""
    parts = _with_normalisation(parts, found, to_rgb=found.get("bgr_to_rgb") or found.get("to_rgb"))
    divisor = found.get("pad_size_divisor")
    return replace(parts, pad_multiple=divisor) if type(divisor) is int else parts


def _with_thresholds(parts: PipelineParts, test: Mapping[str, Any]) -> PipelineParts:
    """The `test_cfg` of a detector or a segmenter."""
    if test.get("mode") == "slide":
        parts = parts.with_problem("size", "it was tested on windows that slide over the picture (test_cfg.mode)")
    regions, proposals = _mapping(test.get("rcnn")), _mapping(test.get("rpn"))
    boxes = regions or test
    for nms in (_mapping(boxes.get("nms")), _mapping(proposals.get("nms"))):
        if nms.get("type", "nms") != "nms":
            parts = parts.with_problem("score_threshold", f"it was tested with {nms['type']} in place of NMS")
    found = {
        "score_threshold": boxes.get("score_thr"),
        "nms_iou": _iou(boxes),
        "mask_threshold": boxes.get("mask_thr_binary"),
        "candidates_per_level": proposals.get("nms_pre", test.get("nms_pre")),
        "proposals": proposals.get("max_per_img", proposals.get("nms_post", proposals.get("max_num"))),
        "proposal_nms_iou": _iou(proposals) if proposals else None,
    }
    numbers = {key: value for key, value in found.items() if type(value) in (int, float)}
    return replace(parts, thresholds={**parts.thresholds, **numbers})


def _iou(found: Mapping[str, Any]) -> object:
    nms = _mapping(found.get("nms"))
    return nms.get("iou_threshold", nms.get("iou_thr", found.get("nms_thr")))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
