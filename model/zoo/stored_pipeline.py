"""The pipelines that trainers store in a checkpoint, beside it, or in a configuration file of their own."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.errors import BundleInvalid
from model.files import open_regular
from model.zoo.checkpoint_file import CheckpointFile
from model.zoo.pipeline import PipelineParts, grey_levels, three_numbers, with_bgr_problem
from model.zoo.toolbox_config import MAX_CHARACTERS, read_toolbox_config, toolbox_pipeline
from model.zoo.unpickling import Placeholder

_INTERPOLATIONS: dict[object, str] = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
"""By name, or by Pillow's number."""
_SHORTER_SIDE = frozenset(
    {"Bit", "ChineseCLIP", "CLIP", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer"}
)
"""Image processors of transformers for which a single number as `size` is the shorter side; for others it is both."""
_FRACTION = frozenset({"ConvNext", "PoolFormer"})
"""Those that divide the shorter side by `crop_pct`."""
LARGE_CONVNEXT = 384
"""From this size on, in pixels, ConvNext's does not crop."""


def stored_pipelines(file: CheckpointFile) -> Iterator[PipelineParts]:
    """What a checkpoint has about its pipeline, the least specific source first."""
    content = file.content if isinstance(file.content, Mapping) else {}
    for path in file.configs:
        yield from _read(path)
    for key in ("args", "pretrained_cfg", "default_cfg", "hyper_parameters"):
        yield _timm_pipeline(_attributes(content.get(key)), f"from {key} in the file")
    meta = _attributes(content.get("meta"))
    for key in ("config", "cfg"):
        if isinstance(text := meta.get(key), str):
            yield toolbox_pipeline(read_toolbox_config(text), f"from meta.{key} in the file")


def read_pipelines(path: Path) -> list[PipelineParts]:
    """The pipelines in a configuration: timm's or transformers' JSON, or Python text of mmcv's toolboxes.

    Raises:
        BundleInvalid: the file cannot be read, is none of these, or has nothing about a pipeline.
    """
    found = _read(path)
    if not any(parts.fields or parts.thresholds or parts.activation or parts.problems for parts in found):
        raise BundleInvalid(
            f"{path} has no pipeline; expected the test pipeline of an mmcv or mmengine configuration, timm's "
            "pretrained_cfg, or transformers' preprocessor_config.json"
        )
    return found


def _read(path: Path) -> list[PipelineParts]:
    try:
        with open_regular(path) as file:
            data = file.read(4 * MAX_CHARACTERS)
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror}") from error
    text = data.decode("utf-8-sig", "replace")
    source = f"from {path.name}"
    if text.lstrip().startswith("{"):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleInvalid(f"{path} is not valid JSON: {error}") from error
        found = [_transformers_pipeline(content, source)]
        if not _is_processor(content):
            timm = content.get("pretrained_cfg", content)
            found.append(_timm_pipeline(timm if isinstance(timm, Mapping) else {}, source))
    else:
        found = [toolbox_pipeline(read_toolbox_config(text), source)]
    return found


def _attributes(value: object) -> Mapping[Any, Any]:
    if isinstance(value, Placeholder):
        return value.attributes
    return value if isinstance(value, Mapping) else {}


def _timm_pipeline(found: Mapping[Any, Any], source: str) -> PipelineParts:
    """timm's `pretrained_cfg`, or the arguments of its training script, of which None are the model's defaults."""
    size = found.get("test_input_size") or found.get("input_size") or found.get("img_size")
    size = size[-1] if isinstance(size, (tuple, list)) and size else size
    fraction = found.get("test_crop_pct") or found.get("crop_pct")
    mean, std = grey_levels(three_numbers(found.get("mean")), three_numbers(found.get("std")))
    parts = PipelineParts(
        source=source,
        crop=_positive(size),
        crop_fraction=fraction if isinstance(fraction, float) and fraction > 0 else 1.0 if fraction == 1 else None,
        mean=mean if std is not None else None,
        std=std if mean is not None else None,
    )
    parts = _with_filter(parts, found.get("interpolation"))
    mode = found.get("crop_mode")
    if mode in ("center", "squash"):
        parts = replace(parts, squash=mode == "squash")
    elif mode is not None:
        parts = parts.with_problem("size", f"its crop mode is {mode}")
    return parts


def _is_processor(found: Mapping[Any, Any]) -> bool:
    """Whether it is the configuration of one of transformers' image processors."""
    return not found.keys().isdisjoint(("image_processor_type", "feature_extractor_type", "image_mean", "do_normalize"))


def _transformers_pipeline(found: Mapping[Any, Any], source: str) -> PipelineParts:
    """The `preprocessor_config.json` of an image classifier, or the activation in its `config.json`."""
    activation = "sigmoid" if found.get("problem_type") == "multi_label_classification" else None
    parts = PipelineParts(source=source, activation=activation)
    if not _is_processor(found):
        return parts
    return _with_filter(_with_levels(_with_sides(parts, found), found), found.get("resample"))


def _with_sides(parts: PipelineParts, found: Mapping[Any, Any]) -> PipelineParts:
    kind = str(found.get("image_processor_type") or found.get("feature_extractor_type") or "")
    name = kind.partition("ImageProcessor")[0].partition("FeatureExtractor")[0]
    size, crop = found.get("size"), found.get("crop_size")
    if type(size) is int:
        size = {"shortest_edge": size} if name in _SHORTER_SIDE else {"height": size, "width": size}
    crop = {"height": crop} if type(crop) is int else _attributes(crop)
    side = _positive(crop.get("height")) if found.get("do_center_crop") is not False else None
    size = _attributes(size)
    if {"height", "width"} <= size.keys():
        if size["height"] != size["width"]:
            return parts.with_problem(
                "size", f"it resizes to {size['width']} x {size['height']} px, which is no square"
            )
        resized = _positive(size["height"])
        return replace(parts, resize=resized, crop=side or resized, squash=True)
    shorter = _positive(size.get("shortest_edge"))
    if shorter is None:
        return replace(parts, crop=side)
    fraction = found.get("crop_pct")
    if name in _FRACTION and isinstance(fraction, (int, float)) and 0 < fraction <= 1:
        if name == "ConvNext" and shorter >= LARGE_CONVNEXT:
            return replace(parts, resize=shorter, crop=shorter, squash=True)
        return replace(parts, resize=int(shorter / fraction), crop=side or shorter)
    if found.get("do_center_crop") is False:
        return parts.with_problem("size", f"it resizes the shorter side to {shorter} px and crops nothing")
    return replace(parts, resize=int(256 / 224 * shorter) if name == "Levit" else shorter, crop=side or shorter)


def _with_levels(parts: PipelineParts, found: Mapping[Any, Any]) -> PipelineParts:
    if found.get("do_flip_channel_order") is True:
        return with_bgr_problem(parts)
    factor = found.get("rescale_factor", 1 / 255)
    if found.get("do_rescale") is not False and not (isinstance(factor, float) and math.isclose(factor, 1 / 255)):
        return parts.with_problem("normalisation", f"it rescales grey levels by {factor}")
    if found.get("do_normalize") is False:
        return replace(parts, mean=(0.0,) * 3, std=((1.0 if found.get("do_rescale") is False else 255.0),) * 3)
    mean, std = three_numbers(found.get("image_mean")), three_numbers(found.get("image_std"))
    if found.get("do_rescale") is not False:
        mean, std = grey_levels(mean, std)
    return replace(parts, mean=mean if std is not None else None, std=std if mean is not None else None)


def _with_filter(parts: PipelineParts, found: object) -> PipelineParts:
    """The filter for resizing, by name or by Pillow's number. A random one is the training's alone."""
    if found in (None, "", "random"):
        return parts
    if found not in _INTERPOLATIONS:
        return parts.with_problem("interpolation", f"it resizes by the filter {found}")
    return replace(parts, interpolation=_INTERPOLATIONS[found])


def _positive(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None
