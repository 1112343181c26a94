"""The parameters of a prediction over HTTP: its query string, and the media type of its answer.

The table of parameters in `core/parameters.py` also makes their OpenAPI text. Content negotiation follows RFC 9110,
section 12.5.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl

from model.postprocess.masks import MaskFormat
from model.tiles import Tiling
from model.types import QueryParams, Task
from service.content_negotiation import weighted_values
from service.errors import BadParameter, NotAcceptable
from service.frontend.core.parameters import PARAMETERS, Parameter, View, parse_params, parse_value, shown

MAX_FIELDS = 32
MAX_CACHED = 512
"""Bytes of a query string and a header Accept that are cached."""


class Medium(StrEnum):
    """The media types of a prediction's answer, the preferred first."""

    JSON = "application/json"
    PNG = "image/png"
    JPEG = "image/jpeg"
    WEBP = "image/webp"


@dataclass(frozen=True, slots=True)
class Query:
    """The parameters of a request. `params` are the worker's."""

    model: str | None
    params: QueryParams
    mask_format: MaskFormat
    view: View | None
    medium: Medium = Medium.JSON
    classes: tuple[str, ...] = ()
    tiling: Tiling | None = None


def read_query(task: Task, query_string: bytes, accept: bytes = b"") -> Query:
    """Parse and check a query string, and the header Accept.

    Raises:
        BadParameter: a parameter is unknown, not of this task, given twice, unparsable or out of its range.
        NotAcceptable: Accept excludes all media types.
    """
    table = {name: parameter for name, parameter in PARAMETERS.items() if task in parameter.tasks}
    values = read_values(task, table, query_string)
    view = values.pop("view", None)
    if view is View.CONFIDENCE:
        values["confidence_map"] = True
    parsed = parse_params(**values)
    medium = Medium.PNG if view else negotiate(accept.decode("latin-1"))
    return Query(parsed.model, parsed.params, parsed.mask_format, view, medium, parsed.classes, parsed.tiling)


def read_values(endpoint: str, table: Mapping[str, Parameter], query_string: bytes) -> dict[str, Any]:
    """The values of a query string's parameters, which are those of `table`. Raises as `read_query`."""
    return {name: parse_value(name, table[name], text) for name, text in _fields(endpoint, table, query_string).items()}


def negotiate(accept: str, media: Sequence[Medium] = tuple(Medium)) -> Medium:
    """The one of `media` of the highest weight; among equals the most exactly named one, then the first.

    `*/*` and an empty header mean JSON, `image/*` means PNG.

    Raises:
        NotAcceptable: the header excludes all of them.
    """
    if not accept.strip():
        return Medium.JSON
    ranges = weighted_values(accept)
    ranked = []
    for preference, medium in enumerate(media):
        matches = [(_exactness(one.value, medium), one.weight, -index) for index, one in enumerate(ranges)]
        # The most exact range that names a medium is the one that speaks of it.
        exactness, weight, position = max(matches, default=(0, 0.0, 0))
        if exactness and weight > 0:
            ranked.append((weight, exactness, position, -preference, medium))
    if not ranked:
        raise NotAcceptable(
            f"the header Accept excludes what is offered: {', '.join(media)}; name one of them, or leave the header out"
        )
    return max(ranked)[-1]


def _fields(endpoint: str, table: Mapping[str, Parameter], query_string: bytes) -> dict[str, str]:
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
        if name not in table:
            why = "does not belong to" if name in PARAMETERS else "is unknown to"
            raise BadParameter(f"parameter {shown(name)} {why} /{endpoint}; it takes {', '.join(table)}")
        if name in fields:
            raise BadParameter(f"parameter {name!r} is given twice; give it once", name)
        fields[name] = text
    return fields


def _exactness(pattern: str, medium: Medium) -> int:
    """3 for the medium itself, 2 for `type/*`, 1 for `*/*`, 0 for anything else."""
    kind, _, _ = medium.partition("/")
    return {medium.value: 3, f"{kind}/*": 2, "*/*": 1}.get(pattern, 0)
