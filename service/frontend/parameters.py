"""What a request may ask of its images: ranges and defaults, the same over every transport."""

from __future__ import annotations

from dataclasses import dataclass

from model.postprocess.masks import MaskFormat
from model.types import QueryParams
from service.errors import BadParameter

MAX_MODEL_NAME = 64
DEFAULTS = QueryParams()
DEFAULT_MASK_FORMAT = MaskFormat.RLE


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from `low` to `high`, both included; `kind` is what they are called."""

    kind: str
    low: int
    high: int

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high  # NaN is in no range

    def __str__(self) -> str:
        return f"{self.kind} from {self.low} to {self.high}"


TOP_K = Range("a whole number", 1, 1000)
MAX_DETECTIONS = Range("a whole number", 1, 1000)
SCORE_THRESHOLD = Range("a number", 0, 1)
MODEL_NAME = f"the name of a model, of 1 to {MAX_MODEL_NAME} characters (see /models)"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of an image. `params` is the worker's part of it, `mask_format` the encoder's."""

    model: str | None
    params: QueryParams
    mask_format: MaskFormat


def asked(
    *,
    model: str | None = None,
    top_k: int | None = None,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    masks: bool = True,
    mask_format: MaskFormat | None = None,
) -> Asked:
    """Hold what a caller named to its range; what it did not name gets its default.

    Raises:
        BadParameter: a value is out of its range; `field` says which.
    """
    if model is not None and not 0 < len(model) <= MAX_MODEL_NAME:
        raise BadParameter(f"parameter 'model' has {len(model)} characters; expected {MODEL_NAME}", "model")
    _hold("top_k", top_k, TOP_K)
    _hold("score_threshold", score_threshold, SCORE_THRESHOLD)
    _hold("max_detections", max_detections, MAX_DETECTIONS)
    mask_format = DEFAULT_MASK_FORMAT if mask_format is None else mask_format
    params = QueryParams(
        top_k=DEFAULTS.top_k if top_k is None else top_k,
        score_threshold=score_threshold,
        max_detections=DEFAULTS.max_detections if max_detections is None else max_detections,
        masks=masks and mask_format is not MaskFormat.NONE,
    )
    return Asked(model, params, mask_format if params.masks else MaskFormat.NONE)


def _hold(name: str, value: float | None, allowed: Range) -> None:
    if value is not None and value not in allowed:
        raise BadParameter(f"parameter {name!r} is {value:.10g}; expected {allowed}", name)
