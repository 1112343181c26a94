"""A plugin of pytest: what it prints of two large values that differ.

By itself it compares all of them with difflib where CI is set, which takes minutes for two JSON texts of 100 KB: a test
that fails at once looks like one that never ends.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from itertools import zip_longest

import pytest

LARGE = 4_000
"""Characters. difflib needs less than a second for two values that are smaller."""
SHOWN = 60
"""Characters of each value that are shown, on both sides of the place where they differ."""
OF_A_VALUE = 8
"""Characters, about, of a number."""

Text = str | bytes | bytearray
MISSING = object()


class LargeValues(Exception):
    """Two values are large and differ: `lines` explain it. It keeps pytest from comparing them itself."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(lines)
        self.lines = lines


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Explanations())


@pytest.hookimpl(tryfirst=True)
def pytest_assertrepr_compare(op: str, left: object, right: object) -> None:
    lines = explanation(op, left, right)
    if lines:
        raise LargeValues(lines)


class Explanations:
    @pytest.hookimpl(wrapper=True)
    def pytest_assertrepr_compare(self) -> Generator[None, list[list[str]], list[list[str]]]:
        try:
            return (yield)
        except LargeValues as values:
            return [values.lines]


def explanation(op: str, left: object, right: object) -> list[str] | None:
    """For `assert left == right`, and `left not in right` of texts, which failed.

    Returns:
        The type and size of both values, and where they first differ, in lines. None if they are small, or if `op`
        compares otherwise: pytest explains these itself.
    """
    if _size(left) <= LARGE and _size(right) <= LARGE:
        return None
    if op == "not in" and isinstance(left, str) and isinstance(right, str):
        index = right.index(left)
        return [f"{_kind(left)} not in a text of {len(right)} characters", "", f"it is at {_around(right, index)}"]
    if op != "==" or not all(isinstance(one, Collection) or is_dataclass(one) for one in (left, right)):
        return None
    place, ours, theirs, index = _first_difference(left, right, "")
    return [
        f"{_kind(left)} == {_kind(right)}",
        "",
        f"they differ at {place or 'the top'}{f', character {index}' if index else ''}:",
        f"left:  {_around(ours, index)}",
        f"right: {_around(theirs, index)}",
    ]


def _size(value: object) -> int:
    """About how many characters it has as text; not counted beyond `LARGE`."""
    if isinstance(value, Text):
        return len(value)
    parts: Collection[object]
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, Sequence | Set):
        parts = value
    elif is_dataclass(value):
        parts = [getattr(value, field.name) for field in fields(value)]
    else:
        return OF_A_VALUE
    total = 0
    for part in parts:
        total += _size(part)
        if total > LARGE:
            break
    return total


def _first_difference(left: object, right: object, place: str) -> tuple[str, object, object, int]:
    """Where two values that are not equal differ first: the place in both, their values there, and for texts the index
    of a character."""
    for ours, theirs, part in _pairs(left, right):
        if ours is MISSING or theirs is MISSING:
            return place + part, ours, theirs, 0
        if ours != theirs:
            return _first_difference(ours, theirs, place + part)
    index = 0
    if isinstance(left, Text) and isinstance(right, Text):
        pairs = enumerate(zip(left, right, strict=False))
        index = next((index for index, (ours, theirs) in pairs if ours != theirs), min(len(left), len(right)))
    return place, left, right, index


def _pairs(left: object, right: object) -> list[tuple[object, object, str]]:
    """The parts of two values and their places in them; none if these have no parts, or are of different kinds."""
    if isinstance(left, Text) or isinstance(right, Text):
        return []
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        keys = dict.fromkeys((*left, *right))
        return [(left.get(key, MISSING), right.get(key, MISSING), f"[{key!r}]") for key in keys]
    if isinstance(left, Sequence) and isinstance(right, Sequence):
        pairs = enumerate(zip_longest(left, right, fillvalue=MISSING))
        return [(ours, theirs, f"[{index}]") for index, (ours, theirs) in pairs]
    if isinstance(left, Set) and isinstance(right, Set):
        return [(MISSING, one, "") for one in right - left] + [(one, MISSING, "") for one in left - right]
    if is_dataclass(left) and type(left) is type(right):
        return [
            (getattr(left, one.name), getattr(right, one.name), f".{one.name}") for one in fields(left) if one.compare
        ]
    return []


def _kind(value: object) -> str:
    """A value's type and size."""
    size = f" of {len(value)}" if isinstance(value, Collection) else ""
    return f"<{type(value).__name__}{size}>"


def _around(value: object, index: int) -> str:
    if value is MISSING:
        return "(nothing)"
    if isinstance(value, Text):
        start = max(0, index - SHOWN)
        shown = value[start : index + SHOWN]
        return f"{'…' if start else ''}{shown!r}{'…' if index + SHOWN < len(value) else ''}"
    text = repr(value)
    return text[: 2 * SHOWN] + ("…" if len(text) > 2 * SHOWN else "")
