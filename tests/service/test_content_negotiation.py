from __future__ import annotations

import pytest

from service.content_negotiation import preferred_coding, weighted_values


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("gzip", [("gzip", 1.0)]),
        ("GZip ; Q=0.5 , *;q=0", [("gzip", 0.5), ("*", 0.0)]),
        ("text/plain; version=0.0.4;q=0.3;x=1", [("text/plain;version=0.0.4;x=1", 0.3)]),
        ("a;q=much, b;q=2, c;q=-1, d;q=nan, e;q=0_1, f;q=", [(name, 0.0) for name in "abcdef"]),
        (", ,", []),
        ("", []),
    ],
)
def test_values_have_their_weights(field: str, expected: list[tuple[str, float]]) -> None:
    """In lower case and in their order; a malformed weight excludes its value."""
    assert [(one.text, one.weight) for one in weighted_values(field)] == expected


@pytest.mark.parametrize(
    ("field", "coding"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("deflate, gzip", "gzip"),
        ("deflate, gzip;q=0.9", "deflate"),
        ("*", "gzip"),
        ("*;q=0.5, gzip;q=0", "deflate"),
        ("gzip;q=0.5, identity", None),
        ("br", None),
        ("gzip;q=0", None),
    ],
)
def test_a_coding_is_chosen_of_those_that_are_offered(field: str | None, coding: str | None) -> None:
    """The one of the highest weight, of equal ones the first that is offered; none where the client prefers none."""
    assert preferred_coding(field, ("gzip", "deflate")) == coding
