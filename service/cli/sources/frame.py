"""What all sources of pictures have in common: a frame, and what ends or interrupts a source."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from service.cli.backends import NoAnswer


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a source: `encoded`, as its bytes or as what makes them, in a thread.

    `time_s` is the Unix time at which it came. `position_s` is its time in a video file, on which frames are chosen by
    rate. `fields` identify it in the output.
    """

    encoded: bytes | Callable[[], bytes]
    time_s: float
    position_s: float | None = None
    fields: Mapping[str, object] = field(default_factory=dict)


class SourceLost(NoAnswer):
    """A source cannot be opened, or breaks off. It may come back."""


class FrameSource(Protocol):
    """`is_live`: its frames come whether they are read or not. `resumes`: opened again it does not repeat frames."""

    is_live: bool
    resumes: bool

    def frames(self) -> AsyncGenerator[Frame, None]:
        """The frames until the source ends. Call it again after `SourceLost`.

        Raises:
            SourceLost: the source cannot be opened, or breaks off.
        """
        ...


def shown(source: str) -> str:
    """A source for messages: a URL without its user, password and query, which are secret."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
