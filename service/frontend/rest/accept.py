"""Content negotiation (RFC 9110, section 12.5.1): JSON, or a picture in one of three formats."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache

from service.errors import BadParameter

MAX_KEPT = 256
"""Characters of a header that is remembered: a client library sends the same with each request."""


class Medium(StrEnum):
    """What a prediction can be answered in, the preferred first."""

    JSON = "application/json"
    PNG = "image/png"
    JPEG = "image/jpeg"
    WEBP = "image/webp"


def negotiate(accept: str | None) -> Medium:
    """The medium of highest quality; among equals the one that was named most exactly, then first.

    `*/*` and no header at all mean JSON, `image/*` PNG.

    Raises:
        BadParameter: the header takes none of them.
    """
    if accept is None:
        return Medium.JSON
    return _kept(accept) if len(accept) <= MAX_KEPT else _negotiate(accept)


def _negotiate(accept: str) -> Medium:
    if not accept.strip():
        return Medium.JSON
    ranges = [parsed for part in accept.split(",") if (parsed := _media_range(part)) is not None]
    ranked = []
    for preference, medium in enumerate(Medium):
        matches = [(_exactness(pattern, medium), quality, -at) for at, (pattern, quality) in enumerate(ranges)]
        # The most exact range that names a medium is the one that speaks of it.
        exactness, quality, position = max(matches, default=(0, 0.0, 0))
        if exactness and quality > 0:
            ranked.append((quality, exactness, position, -preference, medium))
    if not ranked:
        raise BadParameter(f"the header Accept takes none of {', '.join(Medium)}; name one, or leave it out")
    return max(ranked)[-1]


_kept = lru_cache(maxsize=256)(_negotiate)  # of errors none is kept


def _media_range(part: str) -> tuple[str, float] | None:
    """A range's `type/subtype` and its quality; None where it is malformed, which says nothing then."""
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return None
    return (name, quality) if "/" in name and 0 <= quality <= 1 else None


def _exactness(pattern: str, medium: Medium) -> int:
    """3 for the medium itself, 2 for `type/*`, 1 for `*/*`, 0 for anything else."""
    kind, _, _ = medium.partition("/")
    return {medium.value: 3, f"{kind}/*": 2, "*/*": 1}.get(pattern, 0)
