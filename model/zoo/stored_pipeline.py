"""The pipelines that trainers store in a checkpoint, beside it, or in a configuration file of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.errors import BundleInvalid
from model.files import open_regular
from model.zoo.checkpoint_file import CheckpointFile
from model.zoo.pipeline import PipelineParts, grey_levels, three_numbers
from model.zoo.toolbox_config import MAX_CHARACTERS, read_toolbox_config, toolbox_pipeline
from model.zoo.unpickling import Placeholder

_INTERPOLATIONS: dict[object, str] = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
"""By name, or by Pillow's number."""


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
        timm = content.get("pretrained_cfg", content)
        found = [_transformers_pipeline(content, source)]
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
        crop=size if type(size) is int and size > 0 else None,
        crop_fraction=fraction if isinstance(fraction, float) and fraction > 0 else 1.0 if fraction == 1 else None,
        interpolation=_INTERPOLATIONS.get(found.get("interpolation")),
        mean=mean if std is not None else None,
        std=std if mean is not None else None,
    )
    mode = found.get("crop_mode")
    if mode in ("center", "squash"):
        parts = replace(parts, squash=mode == "squash")
    elif mode is not None:
        parts = parts.with_problem("size", f"its crop mode is {mode}")
    return parts


def _transformers_pipeline(found: Mapping[Any, Any], source: str) -> PipelineParts:
    """The `preprocessor_config.json` of an image classifier."""
    size, crop = _attributes(found.get("size")), _attributes(found.get("crop_size"))
    mean, std = grey_levels(three_numbers(found.get("image_mean")), three_numbers(found.get("image_std")))
    shorter, side = size.get("shortest_edge"), None if found.get("do_center_crop") is False else crop.get("height")
    fixed = {"height", "width"} <= size.keys()
    if fixed and size["height"] == size["width"]:
        shorter = size["height"]
        side = shorter if side is None else side
    parts = PipelineParts(
        source=source,
        resize=shorter if type(shorter) is int and shorter > 0 else None,
        crop=side if type(side) is int and side > 0 else None,
        interpolation=_INTERPOLATIONS.get(found.get("resample")) if "image_mean" in found else None,
        mean=mean if std is not None else None,
        std=std if mean is not None else None,
        squash=True if fixed else None,
        activation="sigmoid" if found.get("problem_type") == "multi_label_classification" else None,
    )
    if "image_mean" in found and fixed and size["height"] != size["width"]:
        parts = parts.with_problem("size", f"it resizes to {size['width']} x {size['height']} px, which is no square")
    return parts
