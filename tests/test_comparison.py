"""The explanation of two large values that differ."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

ROWS = [{"name": f"picture-{number}.jpg", "score": number / 1000} for number in range(4000)]


@dataclass(frozen=True)
class Answer:
    model: str
    rows: list[dict[str, Any]]


def explained(config: pytest.Config, op: str, left: object, right: object) -> list[list[str]]:
    """What pytest gets from all its plugins."""
    results: list[list[str]] = config.hook.pytest_assertrepr_compare(config=config, op=op, left=left, right=right)
    return results


def other(place: int, **values: object) -> list[dict[str, Any]]:
    return [*ROWS[:place], {**ROWS[place], **values}, *ROWS[place + 1 :]]


@pytest.mark.parametrize(
    ("left", "right", "place", "ours", "theirs"),
    [
        (ROWS, other(3000, score=0.5), "[3000]['score']:", "3.0", "0.5"),
        (ROWS, ROWS[:-1], "[3999]:", "{'name': 'picture-3999.jpg', 'score': 3.999}", "(nothing)"),
        (ROWS[:-1], ROWS, "[3999]:", "(nothing)", "{'name': 'picture-3999.jpg', 'score': 3.999}"),
        (ROWS, tuple(ROWS), "the top:", "<list of 4000>", "<tuple of 4000>"),
        ({"a": ROWS}, {"b": ROWS}, "['a']:", "[{'name'", "(nothing)"),
        (Answer("s", ROWS), Answer("s", other(1, name="")), ".rows[1]['name']:", "'picture-1.jpg'", "''"),
        ("a" * 9000 + "left", "a" * 9000 + "right", "the top, character 9000:", "aleft'", "aright'"),
        ([b"a" * 9000, b"b"], [b"a" * 8000, b"b"], "[0], character 8000:", f"{b'a' * 120!r}…", f"…{b'a' * 60!r}"),
        (b"a" * 9000, bytearray(b"a" * 8000), "the top, character 8000:", f"{b'a' * 120!r}…", "…bytearray("),
        ({*range(9000)}, {*range(1, 9001)}, "the top:", "(nothing)", "9000"),
    ],
)
def test_place(left: object, right: object, place: str, ours: str, theirs: str, request: pytest.FixtureRequest) -> None:
    """It names the first place where two values differ, and shows what is there in both."""
    (lines,) = explained(request.config, "==", left, right)
    text = "\n".join(lines)
    assert f"they differ at {place}" in text
    shown_left, shown_right = (line for line in lines if line.startswith(("left:", "right:")))
    assert ours in shown_left or ours in lines[0]
    assert theirs in shown_right or theirs in lines[0]
    assert len(text) < 640, "pytest shortens what is longer"


def test_pytest_does_not_compare_large_values(request: pytest.FixtureRequest) -> None:
    """Two JSON texts of 100 KB without a common character at their ends are not compared by difflib, which takes
    minutes: pytest's own explanation is not asked for."""
    left, right = (json.dumps([shift, *ROWS, shift]) for shift in (1, 2))
    (lines,) = explained(request.config, "==", left, right)
    assert lines[2] == "they differ at the top, character 1:"


def test_not_in(request: pytest.FixtureRequest) -> None:
    """It shows where a text is that should not be in a large one."""
    text = json.dumps(ROWS)
    (lines,) = explained(request.config, "not in", "picture-2000", text)
    assert "picture-2000.jpg" in lines[2]


@pytest.mark.parametrize(
    ("op", "left", "right"),
    [("==", [1, 2], [1, 3]), ("==", "left", "right"), ("==", ROWS, None), ("<", ROWS, ROWS), ("not in", "a", "cat")],
)
def test_others_are_left_to_pytest(op: str, left: object, right: object, request: pytest.FixtureRequest) -> None:
    """Small values, and comparisons of another kind, are explained by pytest itself."""
    assert all("differ at" not in line for lines in explained(request.config, op, left, right) for line in lines)
