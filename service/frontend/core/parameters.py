"""The parameters of a prediction, with ranges and defaults: the same over every transport."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from model.model_name import MAX_LENGTH as MAX_MODEL_NAME
from model.postprocess.masks import MaskFormat
from model.spec import MAX_PIXEL_THRESHOLD, MIN_PIXEL_THRESHOLD
from model.tiles import DEFAULT_OVERLAP, MAX_OVERLAP, MAX_SIDE, MIN_SIDE, Tiling
from model.types import QueryParams, Size, Task
from service.errors import BadParameter

if TYPE_CHECKING:
    from model.bundle import BundleConfig

DEFAULTS = QueryParams()
DEFAULT_MASK_FORMAT = MaskFormat.RLE


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from `low` to `high`, both included; `kind` names them in errors."""

    kind: str
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high  # NaN is in no range

    def __str__(self) -> str:
        return f"{self.kind} from {self.low} to {self.high}"


TOP_K = Range("a whole number", 1, 1000)
MAX_DETECTIONS = Range("a whole number", 1, 1000)
SCORE_THRESHOLD = Range("a number", 0, 1)
IOU_THRESHOLD = Range("a number", 0, 1)
THRESHOLD = Range("a number", MIN_PIXEL_THRESHOLD, MAX_PIXEL_THRESHOLD)
MIN_AREA = Range("a whole number", 0, 1_000_000_000)
TILE_OVERLAP = Range("a number", 0, MAX_OVERLAP)
AUTO = "auto"
TILES = (
    f"{AUTO}, the side of a square such as 640, or WIDTHxHEIGHT such as 800x600: sides of {MIN_SIDE} to {MAX_SIDE} px"
)
MAX_CLASSES = 100
MAX_CLASS_NAME = 256
"""Characters. Requests keep their parameters, and unknown names are compared with all labels."""
CLASSES = f"1 to {MAX_CLASSES} names of the model's labels, comma separated, or class indices"
MODEL_NAME = f"the name of a model, of 1 to {MAX_MODEL_NAME} characters"


EMBED = "embed"
"""The name of embedding, beside those of the tasks: a classifier answers with its features."""
ANALYZE = "analyze"
"""The name of predicting with several models for one image."""


class View(StrEnum):
    LABEL_MAP = "labelmap"
    COLORS = "colors"
    CONFIDENCE = "confidence"


class VectorEncoding(StrEnum):
    """How JSON has a vector: as an array of numbers, or as base64 of little-endian float32."""

    JSON = "json"
    BASE64 = "base64"


@dataclass(frozen=True, slots=True)
class PredictParams:
    """The parameters of a prediction. `params` are the worker's, `mask_format` is the encoder's, `classes` become
    indices once the model is known. `tiling`: None: the picture is not cut."""

    model: str | None
    params: QueryParams
    mask_format: MaskFormat
    classes: tuple[str, ...] = ()
    tiling: Tiling | None = None


def parse_params(
    *,
    model: str | None = None,
    top_k: int | None = None,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    masks: bool = True,
    mask_format: MaskFormat | None = None,
    embed: bool = False,
    classes: tuple[str, ...] = (),
    iou_threshold: float | None = None,
    agnostic_nms: bool = False,
    min_area: int | None = None,
    confidence_map: bool = False,
    threshold: float | None = None,
    tiles: str | None = None,
    tile_overlap: float | None = None,
) -> PredictParams:
    """Check given values against their ranges; those not given get their defaults. `embed`: of an embedding.

    Raises:
        BadParameter: a value is out of its range; `field` names the parameter.
    """
    if model is not None and not 0 < len(model) <= MAX_MODEL_NAME:
        raise BadParameter(f"parameter 'model' has {len(model)} characters; expected {MODEL_NAME}", "model")
    _check("top_k", top_k, TOP_K)
    _check("score_threshold", score_threshold, SCORE_THRESHOLD)
    _check("max_detections", max_detections, MAX_DETECTIONS)
    _check("iou_threshold", iou_threshold, IOU_THRESHOLD)
    _check("min_area", min_area, MIN_AREA)
    _check("threshold", threshold, THRESHOLD)
    if len(classes) > MAX_CLASSES or not all(classes):
        given = "an empty name" if len(classes) <= MAX_CLASSES else f"{len(classes)} names"
        raise BadParameter(f"parameter 'classes' has {given}; expected {CLASSES}", "classes")
    if (longest := max(map(len, classes), default=0)) > MAX_CLASS_NAME:
        raise BadParameter(
            f"parameter 'classes' has a name of {longest} characters; expected at most {MAX_CLASS_NAME}, or an index",
            "classes",
        )
    mask_format = DEFAULT_MASK_FORMAT if mask_format is None else mask_format
    params = QueryParams(
        top_k=DEFAULTS.top_k if top_k is None else top_k,
        score_threshold=score_threshold,
        max_detections=DEFAULTS.max_detections if max_detections is None else max_detections,
        masks=masks and mask_format is not MaskFormat.NONE,
        embed=embed,
        iou_threshold=iou_threshold,
        agnostic_nms=agnostic_nms,
        min_area=min_area or 0,
        confidence_map=confidence_map,
        threshold=threshold,
    )
    mask_format = mask_format if params.masks else MaskFormat.NONE
    return PredictParams(model, params, mask_format, classes, _tiling(tiles, tile_overlap))


def _tiling(tiles: str | None, overlap: float | None) -> Tiling | None:
    """Raises BadParameter."""
    _check("tile_overlap", overlap, TILE_OVERLAP)
    if tiles is None:
        if overlap is not None:
            raise BadParameter(
                "parameter 'tile_overlap' needs 'tiles'; add tiles=auto, or leave it out", "tile_overlap"
            )
        return None
    overlap = DEFAULT_OVERLAP if overlap is None else overlap
    if tiles == AUTO:
        return Tiling(None, overlap)
    sides = [digits(part) for part in tiles.split("x")]
    width, height = sides[0], sides[-1]
    if (
        len(sides) > 2
        or width is None
        or height is None
        or not all(MIN_SIDE <= side <= MAX_SIDE for side in (width, height))
    ):
        raise BadParameter(f"parameter 'tiles' is {shown(tiles)}; expected {TILES}", "tiles")
    return Tiling(Size(height, width), overlap)


def params_for(config: BundleConfig, params: QueryParams, classes: Sequence[str]) -> QueryParams:
    """The parameters for a model.

    Args:
        config: of the model.
        params: without classes.
        classes: the only ones to return, by label, in any case, or by index; none means all.

    Raises:
        BadParameter: the model has no such class, then with the nearest labels; or a threshold is given, and the model
            has none.
    """
    if params.threshold is not None and config.pixel_threshold is None:
        raise BadParameter(
            f"parameter 'threshold' does not apply to {config.name}: it has a channel for each of its "
            f"{len(config.labels)} classes, of which the most probable is taken; it applies to models with one channel",
            "threshold",
        )
    if not classes:
        return params
    return msgspec.structs.replace(
        params, classes=tuple(sorted({_class_index(name, config.labels) for name in classes}))
    )


def _class_index(name: str, labels: Sequence[str]) -> int:
    if name in labels:
        return labels.index(name)
    folded = [label.casefold() for label in labels]
    if name.casefold() in folded:
        return folded.index(name.casefold())
    # Labels may have commas, which separate the names of a query.
    if (index := digits(name)) is not None and index < len(labels):
        return index
    near = [labels[folded.index(label)] for label in get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    first = f"its {'first' if len(labels) > 5 else 'classes'} are {', '.join(labels[:5])}"
    expected = f"did you mean {', '.join(near)}?" if near else first
    raise BadParameter(f"parameter 'classes' has {shown(name)}, which is no class of the model; {expected}", "classes")


cached_params = lru_cache(maxsize=1024)(parse_params)
"""`parse_params` for clients that repeat their values. Errors are not cached."""


def _check(name: str, value: float | None, allowed: Range) -> None:
    if value is not None and value not in allowed:
        raise BadParameter(f"parameter {name!r} is {value:.10g}; expected {allowed}", name)


@dataclass(frozen=True, slots=True)
class Parameter:
    """`parse` raises ValueError with the text for what is expected; `schema` is JSON Schema."""

    description: str
    schema: Mapping[str, Any]
    parse: Callable[[str], Any]
    tasks: frozenset[Task] = frozenset()
    """The tasks that it is a parameter of."""


def parse_value(name: str, parameter: Parameter, text: str) -> Any:  # noqa: ANN401  (each has a type of its own)
    """The value that a text gives a parameter. Raises BadParameter."""
    try:
        return parameter.parse(text)
    except ValueError as error:
        raise BadParameter(f"parameter {name!r} is {shown(text)}; expected {error}", name) from None


def shown(text: str) -> str:
    """A caller's text, quoted and cut, for an error."""
    return ascii(text if len(text) <= 80 else f"{text[:80]}…")


def digits(text: str) -> int | None:
    """The whole number in a text of at most ten ASCII digits, else None."""
    # `int` alone would take "1_0", " 7 " and digits of other scripts.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None


def _whole_number(allowed: Range) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = digits(text)
        if value is None:
            raise ValueError(str(allowed))
        return value

    return parse


def _number(allowed: Range) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if text.isascii() and "_" not in text:
            with contextlib.suppress(ValueError):
                return float(text)
        raise ValueError(str(allowed))

    return parse


def split_names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list."""
    return tuple(part.strip() for part in text.split(","))


def boolean(text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


def one_of(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    def parse(text: str) -> StrEnum:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"one of {', '.join(kind)}" if len(kind) > 1 else f"{next(iter(kind))}") from None

    return parse


PARAMETERS: dict[str, Parameter] = {
    "model": Parameter(
        "Model to use, or NAME@VERSION. Default: the task's default model (see /models).",
        {"type": "string", "minLength": 1, "maxLength": MAX_MODEL_NAME},
        str,
        frozenset(Task),
    ),
    "top_k": Parameter(
        "Number of labels to return, the best first.",
        {"type": "integer", "minimum": TOP_K.low, "maximum": TOP_K.high, "default": DEFAULTS.top_k},
        _whole_number(TOP_K),
        frozenset({Task.CLASSIFY}),
    ),
    "score_threshold": Parameter(
        "Minimum score: return only detections scoring above this. Default: the model's own threshold.",
        {"type": "number", "minimum": SCORE_THRESHOLD.low, "maximum": SCORE_THRESHOLD.high},
        _number(SCORE_THRESHOLD),
        frozenset({Task.DETECT}),
    ),
    "max_detections": Parameter(
        "Maximum number of detections to return, the best first.",
        {
            "type": "integer",
            "minimum": MAX_DETECTIONS.low,
            "maximum": MAX_DETECTIONS.high,
            "default": DEFAULTS.max_detections,
        },
        _whole_number(MAX_DETECTIONS),
        frozenset({Task.DETECT}),
    ),
    "classes": Parameter(
        "Names of the only classes to return, comma separated; class indices where a name has a comma. Default: all.",
        {"type": "string", "minLength": 1},
        split_names,
        frozenset({Task.DETECT, Task.SEGMENT}),
    ),
    "iou_threshold": Parameter(
        "Of two detections of a class that overlap by more than this intersection over union, the one with the higher "
        "score is returned. Default: the model's own.",
        {"type": "number", "minimum": IOU_THRESHOLD.low, "maximum": IOU_THRESHOLD.high},
        _number(IOU_THRESHOLD),
        frozenset({Task.DETECT}),
    ),
    "agnostic_nms": Parameter(
        "Compare the overlap of all detections, whatever their classes.",
        {"type": "boolean", "default": False},
        boolean,
        frozenset({Task.DETECT}),
    ),
    "min_area": Parameter(
        "Minimum area in square pixels: of a detection's box, of a segment's pixels.",
        {"type": "integer", "minimum": MIN_AREA.low, "maximum": MIN_AREA.high, "default": DEFAULTS.min_area},
        _whole_number(MIN_AREA),
        frozenset({Task.DETECT, Task.SEGMENT}),
    ),
    "threshold": Parameter(
        "Of a model with one output channel (`postprocessing.threshold` in /models): a pixel is of the class if its "
        "probability is above. Default: the model's own.",
        {"type": "number", "minimum": THRESHOLD.low, "maximum": THRESHOLD.high},
        _number(THRESHOLD),
        frozenset({Task.SEGMENT}),
    ),
    "masks": Parameter(
        "Return masks, if the model has them.",
        {"type": "boolean", "default": True},
        boolean,
        frozenset({Task.DETECT, Task.SEGMENT}),
    ),
    "mask_format": Parameter(
        "Format of masks: COCO's compressed RLE, a base64 PNG of 0 and 255, polygons, or none.",
        {"type": "string", "enum": list(MaskFormat), "default": DEFAULT_MASK_FORMAT},
        one_of(MaskFormat),
        frozenset({Task.DETECT, Task.SEGMENT}),
    ),
    "confidence_map": Parameter(
        "Return `confidence_map`, a PNG with the probability of each pixel's class, 0 to 255, beside the segments.",
        {"type": "boolean", "default": DEFAULTS.confidence_map},
        boolean,
        frozenset({Task.SEGMENT}),
    ),
    "tiles": Parameter(
        "Cut the image into overlapping windows, and predict each at full resolution: small objects in a large picture "
        "are found. The windows' answers are joined to one. `auto`: windows of the model's input size, or the smallest "
        "multiple of it that stays within the limit of windows; `640`: squares with this side; `800x600`: width and "
        "height, in pixels of the upright image. Each window counts as an image of the caller's rate. Default: none.",
        {
            "type": "string",
            "pattern": r"^(auto|[0-9]{1,5}(x[0-9]{1,5})?)$",
            "examples": [AUTO, "640", "800x600"],
        },
        str,
        frozenset({Task.DETECT, Task.SEGMENT}),
    ),
    "tile_overlap": Parameter(
        "With `tiles`: the least part of a window's width and height that the next one shares. Objects up to this size "
        f"are never cut in all windows that show them. Default: {DEFAULT_OVERLAP}.",
        # No `default`: generated clients would send it without `tiles`, which is refused.
        {"type": "number", "minimum": TILE_OVERLAP.low, "maximum": TILE_OVERLAP.high, "examples": [0.3]},
        _number(TILE_OVERLAP),
        frozenset({Task.DETECT, Task.SEGMENT}),
    ),
    "view": Parameter(
        "`labelmap`: return a PNG with the class index of each pixel (16 bits with more than 256 classes). "
        "`colors`: the same in the colours of drawings: its pixels are the class indices, and the colours are its "
        "palette (with more than 256 classes: RGB). "
        "`confidence`: return a PNG with the probability of each pixel's class, 0 to 255. "
        "All show the pixels of all classes.",
        {"type": "string", "enum": list(View)},
        one_of(View),
        frozenset({Task.SEGMENT}),
    ),
}

MAX_MODELS = 16
"""Of a request that names several."""
TASKS_EXPECTED = f"some of {', '.join(Task)}, each once"
MODELS_EXPECTED = f"1 to {MAX_MODELS} names of models, each once (see /models)"


def distinct(names: Sequence[str], limit: int) -> tuple[str, ...] | None:
    """The names, if they are some, not more than `limit`, none empty and none twice."""
    fits = 0 < len(names) <= limit and all(names) and len(set(names)) == len(names)
    return tuple(names) if fits else None


def require_applicable(given: Mapping[str, Set[Task]], tasks: Set[Task]) -> None:
    """Check the parameters that an analysis by `tasks` is given; each is of the tasks by its name. A parameter that has
    its default changes nothing, and counts as not given: generated clients send the defaults.

    Raises:
        BadParameter: none of `tasks` has one of them.
    """
    for name in sorted(given):
        if not tasks & given[name]:
            raise BadParameter(
                f"parameter {name!r} does not belong to {', '.join(sorted(tasks))}; "
                f"it belongs to {', '.join(sorted(given[name]))}",
                name,
            )
