"""Colours by class: in a checkpoint, or in a file of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.errors import BundleInvalid
from model.types import Palette
from model.zoo.checkpoint_file import CheckpointFile
from model.zoo.class_names import is_json, mapping_at, read_text
from model.zoo.unpickling import Placeholder

_PLACES = ("meta", "meta.dataset_meta")
_KEYS = ("palette", "PALETTE")
"""Where OpenMMLab's toolboxes store the colours of the training's data set."""
_HEX = re.compile(r"#?([0-9a-fA-F]{6})")
_SEPARATOR = re.compile(r"[\s,;]+")
_EXPECTED = "expected a colour for each class: three integers from 0 to 255 (red, green, blue), or #rrggbb"


@dataclass(frozen=True, slots=True)
class ClassColours:
    """Colours by class index, and where they were found, for people."""

    colours: Palette
    source: str

    def __str__(self) -> str:
        return f"{len(self.colours)} colours ({self.source})"


def stored_palette(file: CheckpointFile) -> ClassColours | None:
    """The colours that a toolbox stored in a checkpoint; None if there are none. A name such as `random` is none.

    Raises:
        BundleInvalid: there are colours that are not three integers from 0 to 255 each.
    """
    for place in _PLACES:
        holder = mapping_at(file.content, place)
        for key in _KEYS:
            value = holder.get(key)
            if value is None or isinstance(value, str):
                continue
            colours = _colours(_array(value) if isinstance(value, Placeholder) else value)
            if colours is None:
                raise BundleInvalid(
                    f"{file.path} has a {place}.{key} that cannot be read; {_EXPECTED}; give one with --palette FILE"
                )
            return ClassColours(colours, f"{place}.{key} in the file")
    return None


def read_palette(path: Path) -> Palette:
    """Read a file of colours: text with one per line, JSON, or COCO's categories with their `color`.

    A colour is `255,0,0`, `255 0 0` or `#ff0000`; in JSON `[255, 0, 0]` or `"#ff0000"`. COCO's are by rising id.

    Raises:
        BundleInvalid: the file cannot be read, or is none of these; names the colour.
    """
    text = read_text(path, "a file of colours")
    if not is_json(text):
        rows: list[object] = [_SEPARATOR.split(line.strip()) for line in text.rstrip().splitlines()]
        rows = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in rows]
    else:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleInvalid(f"{path} is not valid JSON: {error}") from error
        rows = _rows(value)
    if not rows:
        raise BundleInvalid(f"{path} has no colours; {_EXPECTED}")
    found = [_colour(row) for row in rows]
    if None in found:
        at = found.index(None)
        raise BundleInvalid(f"{path}: colour {at + 1} is {str(rows[at])[:80]}; {_EXPECTED}")
    return tuple(colour for colour in found if colour is not None)


def _rows(value: object) -> list[object]:
    """The colours in a JSON document, as they are written there."""
    if isinstance(value, Mapping):
        value = value.get("categories", value.get("palette", value.get("PALETTE")))
    if not isinstance(value, list):
        return []
    if all(isinstance(one, Mapping) and type(one.get("id")) is int for one in value):
        return [one.get("color") for one in sorted(value, key=lambda one: int(one["id"]))]
    return value


def _colours(value: object) -> Palette | None:
    if not isinstance(value, (tuple, list)) or not value:
        return None
    found = [_colour(row) for row in value]
    return None if None in found else tuple(colour for colour in found if colour is not None)


def _colour(value: object) -> tuple[int, int, int] | None:
    if isinstance(value, str):
        found = _HEX.fullmatch(value.strip())
        if found is None:
            return None
        red, green, blue = bytes.fromhex(found[1])
        return red, green, blue
    if not isinstance(value, Sequence) or len(value) != 3:
        return None
    levels = [int(one) if isinstance(one, str) and one.isdecimal() and len(one) <= 3 else one for one in value]
    if not all(type(one) is int and 0 <= one <= 255 for one in levels):
        return None
    red, green, blue = levels
    return red, green, blue


def _array(value: Placeholder) -> object:
    """The rows of a NumPy array of integers; None if it is another object.

    Its state is a version, the shape, the dtype, whether the order is Fortran's, and the bytes.
    """
    match value.state:
        case (int(), tuple() as shape, Placeholder(arguments=(str() as dtype, *_)), False, bytes() | str() as data):
            if not re.fullmatch(r"[iu][1248]", dtype):
                return None
            content = data.encode("latin-1") if isinstance(data, str) else data
            try:
                return np.frombuffer(content, f"<{dtype}").reshape(shape).tolist()
            except (ValueError, TypeError):
                return None
    return None
