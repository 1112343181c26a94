"""The query string of a prediction: one table of parameters, from which it is read and the OpenAPI text is made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from model.postprocess.masks import MaskFormat
from model.types import QueryParams, Task
from service.errors import BadParameter
from service.frontend.parameters import (
    DEFAULT_MASK_FORMAT,
    DEFAULTS,
    MAX_DETECTIONS,
    MAX_MODEL_NAME,
    SCORE_THRESHOLD,
    TOP_K,
    Range,
    asked,
)

MAX_FIELDS = 32
MAX_KEPT = 256
"""Bytes of a query string that is remembered: callers ask the same again and again."""
TIMEOUT_MS = Range("a whole number", 1, 10**9)


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
    return _kept(task, query_string) if len(query_string) <= MAX_KEPT else _read(task, query_string)


def _read(task: Task, query_string: bytes) -> Query:
    values = {name: _parsed(name, text) for name, text in _fields(task, query_string).items()}
    view = values.pop("view", None)
    meant = asked(**values)
    return Query(meant.model, meant.params, meant.mask_format, view)


_kept = lru_cache(maxsize=1024)(_read)  # of errors none is kept


def read_timeout_ms(header: str | None) -> int | None:
    """The value of X-Request-Timeout-Ms.

    Raises:
        BadParameter: not a whole number of milliseconds from 1 on.
    """
    if header is None:
        return None
    milliseconds = _digits(header.strip())
    if milliseconds is None or milliseconds not in TIMEOUT_MS:
        raise BadParameter(f"the header X-Request-Timeout-Ms is {_shown(header)}; expected {TIMEOUT_MS}")
    return milliseconds


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
            raise BadParameter(f"parameter {name!r} is given twice; give it once", name)
        fields[name] = text
    return fields


def _parsed(name: str, text: str) -> Any:  # noqa: ANN401  (each parameter has a type of its own)
    try:
        return PARAMETERS[name].parse(text)
    except ValueError as error:
        raise BadParameter(f"parameter {name!r} is {_shown(text)}; expected {error}", name) from None


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 80 else f"{text[:80]}…")


def _digits(text: str) -> int | None:
    # `int` alone would take "1_0", " 7 " and digits of other scripts.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None


def _whole_number(allowed: Range) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = _digits(text)
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


PARAMETERS: dict[str, Parameter] = {
    "model": Parameter(
        "Which model answers; the task's default model if left out.",
        {"type": "string", "minLength": 1, "maxLength": MAX_MODEL_NAME},
        str,
        frozenset(Task),
    ),
    "top_k": Parameter(
        "How many labels, the best first.",
        {"type": "integer", "minimum": TOP_K.low, "maximum": TOP_K.high, "default": DEFAULTS.top_k},
        _whole_number(TOP_K),
        frozenset({Task.CLASSIFY}),
    ),
    "score_threshold": Parameter(
        "Detections with a score above it are told; the model's own threshold if left out.",
        {"type": "number", "minimum": SCORE_THRESHOLD.low, "maximum": SCORE_THRESHOLD.high},
        _number(SCORE_THRESHOLD),
        frozenset({Task.DETECT}),
    ),
    "max_detections": Parameter(
        "At most so many detections, the best first.",
        {
            "type": "integer",
            "minimum": MAX_DETECTIONS.low,
            "maximum": MAX_DETECTIONS.high,
            "default": DEFAULTS.max_detections,
        },
        _whole_number(MAX_DETECTIONS),
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
        {"type": "string", "enum": list(MaskFormat), "default": DEFAULT_MASK_FORMAT},
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
