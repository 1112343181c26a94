"""The query string of a prediction: one table of parameters, from which it is read and the OpenAPI text is made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from model.postprocess.encode import MaskFormat
from model.types import QueryParams, Task
from service.errors import BadParameter
from service.frontend.parameters import PARAMETERS, View, asked, shown

MAX_FIELDS = 32
MAX_KEPT = 256
"""Bytes of a query string that is remembered: callers ask the same again and again."""


@dataclass(frozen=True, slots=True)
class Query:
    """What the query asks for. `params` is the worker's part of it."""

    model: str | None
    params: QueryParams
    mask_format: MaskFormat
    view: View | None


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
            raise BadParameter(f"parameter {shown(name)} {why} /{task}; it takes {', '.join(known)}")
        if name in fields:
            raise BadParameter(f"parameter {name!r} is given twice; give it once", name)
        fields[name] = text
    return fields


def _parsed(name: str, text: str) -> Any:  # noqa: ANN401  (each parameter has a type of its own)
    try:
        return PARAMETERS[name].parse(text)
    except ValueError as error:
        raise BadParameter(f"parameter {name!r} is {shown(text)}; expected {error}", name) from None
