"""The query string of a prediction: one table of parameters, from which it is read and the OpenAPI text is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl

from model.postprocess.encode import MaskFormat
from model.types import QueryParams, Task
from service.errors import BadParameter

MAX_FIELDS = 32
MAX_MODEL_NAME = 64
DEFAULTS = QueryParams()


class View(StrEnum):
    LABEL_MAP = "labelmap"


@dataclass(frozen=True, slots=True)
class Query:
    """What the query asks for. `params` is the worker's part of it."""

    model: str | None
    params: QueryParams
    mask_format: MaskFormat
    view: View | None


@dataclass(frozen=True, slots=True)
class Parameter:
    """`parse` raises ValueError with the words for what was expected; `schema` is JSON Schema."""

    description: str
    schema: Mapping[str, Any]
    parse: Callable[[str], Any]
    tasks: frozenset[Task]


def read_query(task: Task, query_string: bytes) -> Query:
    """Parse and check a query string.

    Raises:
        BadParameter: a parameter is unknown, not of this task, given twice, unparsable or out of its range.
    """
    values = {name: _parsed(name, text) for name, text in _fields(task, query_string).items()}
    mask_format = values.get("mask_format", MaskFormat.RLE)
    params = QueryParams(
        top_k=values.get("top_k", DEFAULTS.top_k),
        score_threshold=values.get("score_threshold"),
        max_detections=values.get("max_detections", DEFAULTS.max_detections),
        masks=values.get("masks", True) and mask_format is not MaskFormat.NONE,
    )
    return Query(values.get("model"), params, mask_format if params.masks else MaskFormat.NONE, values.get("view"))


def read_timeout_ms(header: str | None) -> int | None:
    """The value of X-Request-Timeout-Ms.

    Raises:
        BadParameter: not a whole number of milliseconds from 1 on.
    """
    if header is None:
        return None
    try:
        return _whole_number(1, 10**9)(header.strip())
    except ValueError as error:
        raise BadParameter(f"the header X-Request-Timeout-Ms is {_shown(header)}; expected {error}") from None


def _fields(task: Task, query_string: bytes) -> dict[str, str]:
    known = [name for name, parameter in PARAMETERS.items() if task in parameter.tasks]
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError:
        raise BadParameter(
            f"the query string cannot be read; expected at most {MAX_FIELDS} percent-encoded UTF-8 fields"
        ) from None
    fields: dict[str, str] = {}
    for name, text in pairs:
        if name not in known:
            why = "does not belong to" if name in PARAMETERS else "is unknown to"
            raise BadParameter(f"parameter {_shown(name)} {why} /{task}; it takes {', '.join(known)}")
        if name in fields:
            raise BadParameter(f"parameter {name!r} is given twice; give it once")
        fields[name] = text
    return fields


def _parsed(name: str, text: str) -> Any:  # noqa: ANN401  (each parameter has a type of its own)
    try:
        return PARAMETERS[name].parse(text)
    except ValueError as error:
        raise BadParameter(f"parameter {name!r} is {_shown(text)}; expected {error}") from None


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 80 else f"{text[:80]}…")


def _whole_number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # `int` alone would take "1_0", " 7 " and digits of other scripts.
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _fraction(text: str) -> float:
    expected = ValueError("a number from 0 to 1")
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        raise expected from None
    if not 0 <= value <= 1:  # NaN fails this as well
        raise expected
    return value


def _truth(text: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


def _one_of(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    def parse(text: str) -> StrEnum:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"one of {', '.join(kind)}" if len(kind) > 1 else f"{next(iter(kind))}") from None

    return parse


def _name(text: str) -> str:
    if not 0 < len(text) <= MAX_MODEL_NAME:
        raise ValueError(f"the name of a model, of 1 to {MAX_MODEL_NAME} characters (see /models)")
    return text


PARAMETERS: dict[str, Parameter] = {
    "model": Parameter(
        "Which model answers; the task's default model if left out.",
        {"type": "string", "minLength": 1, "maxLength": MAX_MODEL_NAME},
        _name,
        frozenset(Task),
    ),
    "top_k": Parameter(
        "How many labels, the best first.",
        {"type": "integer", "minimum": 1, "maximum": 1000, "default": DEFAULTS.top_k},
        _whole_number(1, 1000),
        frozenset({Task.CLASSIFY}),
    ),
    "score_threshold": Parameter(
        "Detections with a score above it are told; the model's own threshold if left out.",
        {"type": "number", "minimum": 0, "maximum": 1},
        _fraction,
        frozenset({Task.DETECT}),
    ),
    "max_detections": Parameter(
        "At most so many detections, the best first.",
        {"type": "integer", "minimum": 1, "maximum": 1000, "default": DEFAULTS.max_detections},
        _whole_number(1, 1000),
        frozenset({Task.DETECT}),
    ),
    "masks": Parameter(
        "Whether masks are told, by models that have them.",
        {"type": "boolean", "default": True},
        _truth,
        frozenset({Task.DETECT, Task.SEGMENT}),
    ),
    "mask_format": Parameter(
        "How a mask is written: COCO's compressed RLE, a base64 PNG of 0 and 255, or polygons.",
        {"type": "string", "enum": list(MaskFormat), "default": MaskFormat.RLE},
        _one_of(MaskFormat),
        frozenset({Task.DETECT, Task.SEGMENT}),
    ),
    "view": Parameter(
        "`labelmap`: the answer is a PNG with the class index of each pixel (16 bit beyond 256 classes).",
        {"type": "string", "enum": list(View)},
        _one_of(View),
        frozenset({Task.SEGMENT}),
    ),
}
