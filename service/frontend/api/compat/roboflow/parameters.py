"""The parameters of Roboflow's API v0, in the query string. Others are ignored, because clients add theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from model.bundle import BundleConfig
from model.families.registry import family_of
from model.types import QueryParams, Task
from service.errors import BadParameter
from service.frontend.core.parameters import PARAMETERS, TOP_K, Parameter, parse_params
from service.frontend.http.fields import parse_values, query_texts

DEFAULT_CONFIDENCE = 0.4
DEFAULT_OVERLAP = 0.3
DEFAULT_MAX_DETECTIONS = 300
"""Roboflow's."""

OWN = frozenset({"default", "best"})
"""Values of `confidence` that mean the model's own."""


class AnswerFormat(StrEnum):
    JSON = "json"
    IMAGE = "image"
    IMAGE_AND_JSON = "image_and_json"


class PointsFormat(StrEnum):
    """How instances have their masks: as one outline, or whole."""

    POLYGON = "polygon"
    RLE = "rle"


def _fraction(text: str) -> float:
    """A number from 0 to 1, or a percentage from 1 on: 1 is 1 %."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    fraction = value / 100 if value >= 1 else value
    if not 0 <= fraction <= 1:
        raise ValueError("a number from 0 to 1, or a percentage from 1 to 100")
    return fraction


def _confidence(text: str) -> float | None:
    return None if text in OWN else _fraction(text)


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}" if len(allowed) > 1 else allowed[0])
        return text

    return parse


def _choice(description: str, *allowed: str) -> Parameter:
    return Parameter(description, {"type": "string", "enum": list(allowed), "default": allowed[0]}, _one_of(*allowed))


_SHARE = {"type": "number", "minimum": 0, "maximum": 100}
QUERY: dict[str, Parameter] = {
    "confidence": Parameter(
        "Return only detections of a higher confidence, as a fraction below 1 or in percent from 1 on; of labels that "
        "do not exclude each other, those that count as predicted. `default`: the model's own.",
        {"anyOf": [_SHARE, {"type": "string", "enum": sorted(OWN)}], "default": DEFAULT_CONFIDENCE},
        _confidence,
    ),
    "overlap": Parameter(
        "Of two detections that overlap by a larger intersection over union, the one of higher confidence is returned; "
        "a fraction below 1, or in percent from 1 on.",
        {**_SHARE, "default": DEFAULT_OVERLAP},
        _fraction,
    ),
    "max_detections": Parameter(
        PARAMETERS["max_detections"].description,
        {**PARAMETERS["max_detections"].schema, "default": DEFAULT_MAX_DETECTIONS},
        PARAMETERS["max_detections"].parse,
    ),
    "classes": PARAMETERS["classes"],
    "class_agnostic_nms": PARAMETERS["agnostic_nms"],
    "format": _choice(
        "`image`: the picture with the answer drawn on it, as JPEG; `image_and_json`: that in `visualization`, as "
        "base64.",
        *AnswerFormat,
    ),
    "response_mask_format": _choice(
        "Masks of instances: `points` of the largest part's outline, or COCO's `rle` of the whole mask.", *PointsFormat
    ),
    "image": Parameter(
        "URL of the image, in place of a body; only where the service fetches URLs.", {"type": "string"}, str
    ),
    "image_type": _choice("Of a body that is text.", "base64"),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What a request asks for. `confidence` and `overlap` from 0 to 1; None: the model's own."""

    confidence: float | None
    overlap: float
    max_detections: int
    classes: tuple[str, ...]
    agnostic_nms: bool
    answer_format: AnswerFormat
    points_format: PointsFormat
    image_url: str | None

    def params(self, config: BundleConfig) -> QueryParams:
        """Those of a prediction by this model.

        Raises:
            BadParameter: a value is out of its range, or `classes` are given to a model that detects nothing.
        """
        if self.classes and config.task is not Task.DETECT:
            raise BadParameter(f"parameter 'classes' is for detectors; leave it out for {config.name}", "classes")
        match config.task:
            case Task.CLASSIFY:
                return parse_params(top_k=min(len(config.labels), int(TOP_K.high))).params
            case Task.DETECT:
                return parse_params(
                    score_threshold=self.confidence,
                    iou_threshold=self.overlap,
                    max_detections=self.max_detections,
                    agnostic_nms=self.agnostic_nms,
                    classes=self.classes,
                    masks=family_of(config.architecture).masks,
                ).params
            case Task.SEGMENT:
                return parse_params(confidence_map=True).params


def read_options(query_string: bytes) -> Options:
    """The options of a query string. Raises BadParameter."""
    values: dict[str, Any] = parse_values(QUERY, query_texts(query_string))
    return Options(
        values.get("confidence", DEFAULT_CONFIDENCE),
        values.get("overlap", DEFAULT_OVERLAP),
        values.get("max_detections", DEFAULT_MAX_DETECTIONS),
        values.get("classes", ()),
        values.get("class_agnostic_nms", False),
        AnswerFormat(values.get("format", AnswerFormat.JSON)),
        PointsFormat(values.get("response_mask_format", PointsFormat.POLYGON)),
        values.get("image"),
    )
