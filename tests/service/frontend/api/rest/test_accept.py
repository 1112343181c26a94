from __future__ import annotations

import pytest

from service.errors import NotAcceptable
from service.frontend.api.rest.query import Medium, negotiate


@pytest.mark.parametrize(
    ("accept", "medium"),
    [
        ("", Medium.JSON),
        ("*/*", Medium.JSON),
        ("application/*", Medium.JSON),
        ("application/json", Medium.JSON),
        ("image/png", Medium.PNG),
        ("IMAGE/JPEG", Medium.JPEG),
        ("image/webp", Medium.WEBP),
        ("image/*", Medium.PNG),
        ("image/*, image/png;q=0", Medium.JPEG),
        ("image/png;q=0.5, image/webp;q=0.9", Medium.WEBP),
        ("image/png;q=0.5, application/json", Medium.JSON),
        ("image/jpeg, application/json", Medium.JPEG),
        ("application/json, image/jpeg", Medium.JSON),
        ("*/*, image/webp", Medium.WEBP),
        ("image/webp;q=0.2, */*", Medium.JSON),
        ("*/*;q=0.1, image/*;q=0.2", Medium.PNG),
        ("text/html, image/avif, image/webp, */*;q=0.8", Medium.WEBP),
        ("image/png;q=much, image/jpeg", Medium.JPEG),
        ("nonsense, */*", Medium.JSON),
    ],
)
def test_what_is_chosen(accept: str, medium: Medium) -> None:
    """The highest quality decides, then who was named most exactly, then who came first; */* means JSON."""
    assert negotiate(accept) is medium


@pytest.mark.parametrize("accept", ["text/html", "image/gif", "image/png;q=0", "nonsense"])
def test_nothing_acceptable_is_refused(accept: str) -> None:
    """A header that excludes all media types is an error."""
    with pytest.raises(NotAcceptable, match="image/png"):
        negotiate(accept)
