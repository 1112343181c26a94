"""Who answers a command: a running service (`remote.py`) or this process (`local.py`)."""

from __future__ import annotations

from typing import Protocol

import msgspec

from model.errors import ConvMLPError
from model.types import Task
from service.frontend.render import PictureFormat


class NoAnswer(ConvMLPError):
    """Nothing answers, or what came is no answer of this service."""

    code = "no-answer"


class Answer(msgspec.Struct, frozen=True):
    """The REST answer. Its results stay JSON, so that they are printed as they came."""

    model: str
    task: Task
    results: list[msgspec.Raw]


class Answerer(Protocol):
    """Already told the task and the parameters."""

    @property
    def concurrency(self) -> int:
        """How many images are well asked about at a time."""
        ...

    async def answer(self, image: bytes) -> Answer:
        """The answer for one encoded image, with one result. Raises ConvMLPError."""
        ...

    async def draw(self, image: bytes, picture_format: PictureFormat) -> bytes:
        """The image with the answer drawn on it, encoded. Raises ConvMLPError."""
        ...

    async def aclose(self) -> None: ...
