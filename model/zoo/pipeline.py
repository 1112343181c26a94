"""The pipeline of an imported model: what a file or the user gives, applied to the family's defaults. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast

from pydantic import ValidationError

from model.errors import BundleInvalid, problem_text
from model.spec import (
    CenterCropSpec,
    ClassifyPostSpec,
    DetectPostSpec,
    FixedSizeSpec,
    KeepRatioSpec,
    Normalisation,
    PaddedSpec,
    Postprocessing,
    Preprocessing,
    SegmentPostSpec,
)

MAX_SIDE = 8192
"""Pixels of a network's input that an import accepts."""

LABEL_THRESHOLD = 0.5
"""Of a multi-label classifier."""

Channels = tuple[float, float, float]
"""Grey levels of red, green and blue."""
Field = Literal["size", "interpolation", "normalisation", "score_threshold"]
"""What a pipeline consists of, and what a flag replaces."""
FLAGS: dict[str, str] = {
    "size": "--input-size (or --resize and --crop)",
    "interpolation": "--interpolation",
    "normalisation": "--mean and --std",
    "score_threshold": "--score-threshold",
}
"""The flag that replaces each field."""


@dataclass(frozen=True, slots=True)
class PipelineParts:
    """What one source has about a pipeline. None: nothing.

    Args:
        source: for people.
        resize, crop: of a classifier: the shorter side after resizing, and the central square, px.
        crop_fraction: `crop` over the shorter side, if `resize` is not given.
        interpolation: of a classifier.
        squash: of a classifier: whether both sides become `resize`, whatever the aspect ratio.
        long_side, short_side, pad_multiple: of a detector or segmenter, px.
        fixed_size: likewise: width and height, whatever the aspect ratio, in place of the bounds of the sides.
        mean, std: grey levels.
        activation: of a classifier: `softmax` or `sigmoid`.
        thresholds: fields of `DetectPostSpec` or `ClassifyPostSpec`; and `pixel_threshold` of a segmenter with a single
            output channel.
        problems: why the source's pipeline cannot be served, by field.
    """

    source: str
    resize: int | None = None
    crop: int | None = None
    crop_fraction: float | None = None
    interpolation: str | None = None
    squash: bool | None = None
    long_side: int | None = None
    short_side: int | None = None
    fixed_size: tuple[int, int] | None = None
    pad_multiple: int | None = None
    mean: Channels | None = None
    std: Channels | None = None
    activation: str | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)

    def with_problem(self, where: Field, problem: str, remedy: str = "") -> PipelineParts:
        """With a field that cannot be served. `remedy`: what else must be done where the field's flag replaces it."""
        text = f"{problem}, which is not served; {remedy}give {FLAGS[where]} to serve it in another way"
        return replace(self, problems={**self.problems, where: text})

    @property
    def fields(self) -> frozenset[str]:
        """The fields that this source has."""
        has: dict[str, bool] = {
            "size": any((self.resize, self.crop, self.long_side, self.fixed_size)),
            "interpolation": any((self.interpolation, self.long_side, self.fixed_size)),
            "normalisation": self.mean is not None and self.std is not None,
            "score_threshold": "score_threshold" in self.thresholds,
        }
        return frozenset(name for name, value in has.items() if value)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Pre- and postprocessing, and where they are from.

    `sources` are for people; of `assumed` fields, no source had anything.
    """

    preprocessing: Preprocessing
    postprocessing: Postprocessing
    sources: tuple[str, ...] = ()
    assumed: frozenset[str] = frozenset()

    @classmethod
    def default(cls, preprocessing: Preprocessing, postprocessing: Postprocessing) -> Pipeline:
        """A family's, before anything is known about the training."""
        fields = {"size", "normalisation"}
        fields |= {"interpolation"} if isinstance(preprocessing, CenterCropSpec) else set()
        fields |= {"score_threshold"} if isinstance(postprocessing, DetectPostSpec) else set()
        return cls(preprocessing, postprocessing, (), frozenset(fields))

    def fitting(self, parts: PipelineParts) -> PipelineParts:
        """The parts that this kind of preprocessing has."""
        if isinstance(self.preprocessing, PaddedSpec):
            return replace(
                parts, resize=None, crop=None, crop_fraction=None, interpolation=None, squash=None, activation=None
            )
        return replace(parts, long_side=None, short_side=None, fixed_size=None, pad_multiple=None, thresholds={})

    def updated(self, parts: PipelineParts) -> Pipeline:
        """With the fields that `parts` has.

        Raises:
            BundleInvalid: a value is out of range, or the parts are for another task.
        """
        try:
            pre, post = _preprocessing(self.preprocessing, parts), _postprocessing(self.postprocessing, parts)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise BundleInvalid(f"{parts.source}: {where} is {first['input']}: {problem_text(first)}") from error
        if (side := _largest_side(pre)) > MAX_SIDE:
            raise BundleInvalid(f"{parts.source}: an input of {side} px is too large; at most {MAX_SIDE} px")
        if (pre, post) == (self.preprocessing, self.postprocessing) and not parts.fields & self.assumed:
            return self
        return Pipeline(pre, post, (*self.sources, parts.source), self.assumed - parts.fields)

    def __str__(self) -> str:
        text = describe(self.preprocessing, self.postprocessing)
        if not self.sources:
            return f"{text} (assumed; --like, --config or --input-size gives the one of the training)"
        assumed = ", ".join(sorted(self.assumed)).replace("_", " ")
        return f"{text} ({', '.join(self.sources)}{f'; {assumed} assumed' if assumed else ''})"


def require_served(parts: PipelineParts, replaced: frozenset[str]) -> None:
    """Raises BundleInvalid: a field of the source's pipeline cannot be served, and is not replaced."""
    for where, problem in parts.problems.items():
        if where not in replaced:
            raise BundleInvalid(f"{parts.source}: {problem}")


def _largest_side(pre: Preprocessing) -> int:
    match pre:
        case CenterCropSpec():
            return max(pre.resize_shorter, pre.crop)
        case KeepRatioSpec():
            return max(pre.long_side, pre.short_side, pre.pad_multiple)
        case FixedSizeSpec():
            return max(pre.width, pre.height, pre.pad_multiple)


def describe(pre: Preprocessing, post: Postprocessing) -> str:
    """A pipeline in words."""
    match pre:
        case CenterCropSpec():
            resized = f"{'both sides' if pre.squash else 'shorter side'} {pre.resize_shorter} px"
            size = f"{resized}, centre {pre.crop} x {pre.crop} px, {pre.interpolation}"
        case KeepRatioSpec():
            size = f"fits into {pre.long_side} x {pre.short_side} px, bilinear"
        case FixedSizeSpec():
            size = f"resized to {pre.width} x {pre.height} px, bilinear"
    if isinstance(pre, PaddedSpec) and pre.pad_multiple > 1:
        size += f", padded to multiples of {pre.pad_multiple}"
    mean, std = (" ".join(f"{level:.4g}" for level in levels) for levels in _levels(pre.normalisation))
    text = f"{size}, mean {mean}, std {std}"
    match post:
        case DetectPostSpec():
            return f"{text}, scores above {post.score_threshold:g}"
        case ClassifyPostSpec(activation="sigmoid"):
            return f"{text}, any number of labels above {post.score_threshold:g}"
        case ClassifyPostSpec() | SegmentPostSpec():
            return text


def _levels(normalisation: Normalisation) -> tuple[Channels, Channels]:
    return normalisation.mean, normalisation.std


def _preprocessing(base: Preprocessing, parts: PipelineParts) -> Preprocessing:
    normalisation = {
        "mean": parts.mean or base.normalisation.mean,
        "std": parts.std or base.normalisation.std,
    }
    if 0 in normalisation["std"]:
        raise BundleInvalid(f"{parts.source}: a std of 0 divides by zero")
    if isinstance(base, PaddedSpec):
        if parts.resize or parts.crop or parts.interpolation:
            raise BundleInvalid(
                f"{parts.source}: --resize, --crop and --interpolation are for classifiers; detectors and segmenters "
                "take --input-size LONGxSHORT"
            )
        common = {"pad_multiple": parts.pad_multiple or base.pad_multiple, "normalisation": normalisation}
        if parts.fixed_size is not None:
            width, height = parts.fixed_size
            return FixedSizeSpec.model_validate({"width": width, "height": height, **common})
        if parts.long_side:
            return KeepRatioSpec.model_validate(
                {"long_side": parts.long_side, "short_side": parts.short_side, **common}
            )
        return type(base).model_validate({**base.model_dump(), **common})
    if parts.long_side or parts.fixed_size:
        raise BundleInvalid(f"{parts.source}: classifiers take --input-size N, or --resize and --crop")
    crop = parts.crop or base.crop
    fraction = parts.crop_fraction or (base.crop / base.resize_shorter)
    computed = math.floor(crop / fraction) if parts.crop or parts.crop_fraction else base.resize_shorter
    return CenterCropSpec.model_validate(
        {
            "resize_shorter": parts.resize or computed,
            "crop": crop,
            "interpolation": parts.interpolation or base.interpolation,
            "squash": base.squash if parts.squash is None else parts.squash,
            "normalisation": normalisation,
        }
    )


def _postprocessing(base: Postprocessing, parts: PipelineParts) -> Postprocessing:
    threshold = parts.thresholds.get("score_threshold")
    if parts.activation is not None and not isinstance(base, ClassifyPostSpec):
        raise BundleInvalid(f"{parts.source}: --activation is for classifiers")
    if isinstance(base, SegmentPostSpec):
        if threshold is not None:
            raise BundleInvalid(
                f"{parts.source}: --score-threshold is for detectors, multi-label classifiers (--activation sigmoid) "
                "and segmenters with a single output channel"
            )
        return base
    if isinstance(base, ClassifyPostSpec):
        activation = parts.activation or base.activation
        if activation == "softmax" and threshold is not None:
            raise BundleInvalid(
                f"{parts.source}: --score-threshold is for detectors, and for multi-label classifiers: give "
                "--activation sigmoid, too"
            )
        default = base.score_threshold or LABEL_THRESHOLD if activation == "sigmoid" else 0.0
        return ClassifyPostSpec.model_validate(
            {"activation": activation, "score_threshold": default if threshold is None else threshold}
        )
    known = {name: value for name, value in parts.thresholds.items() if name in DetectPostSpec.model_fields}
    counts = {name: int(value) for name, value in known.items() if name in ("candidates_per_level", "proposals")}
    return DetectPostSpec.model_validate({**base.model_dump(), **known, **counts})


def with_bgr_problem(parts: PipelineParts) -> PipelineParts:
    """Of a network that was trained on blue, green, red: its weights must change for pictures in RGB."""
    return parts.with_problem(
        "normalisation",
        "it was trained on pictures in the order BGR",
        "reverse the input channels of its first convolution (weight[:, [2, 1, 0]]), save it, and ",
    )


def three_numbers(value: object) -> Channels | None:
    """Three finite numbers of a list, or one for all channels; None if it is neither."""
    if type(value) in (int, float):
        value = [value] * 3
    if not isinstance(value, (tuple, list)) or len(value) not in (1, 3):
        return None
    numbers = [float(one) for one in value if type(one) in (int, float) and math.isfinite(one)]
    if len(numbers) != len(value):
        return None
    return cast(Channels, tuple(numbers * (3 // len(numbers))))


def grey_levels(mean: Channels | None, std: Channels | None) -> tuple[Channels | None, Channels | None]:
    """As given, or times 255 if they are for pictures of 0 to 1: then no std is above 1."""
    if std is None or max(map(abs, std)) > 1:
        return mean, std
    first, second = (None if one is None else tuple(round(255 * level, 4) for level in one) for one in (mean, std))
    return cast(Channels | None, first), cast(Channels | None, second)
