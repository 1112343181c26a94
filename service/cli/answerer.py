"""Who answers a command: a running service (`remote.py`) or this process (`local.py`)."""

from __future__ import annotations

from typing import Protocol

from convmlp_client.results import Result
from model.errors import ConvMLPError


class NoAnswer(ConvMLPError):
    """Nothing answers, or what came is no answer of this service."""

    code = "no-answer"


class Answerer(Protocol):
    """Already told the task and the parameters."""

    @property
    def concurrency(self) -> int:
        """How many images are well asked about at a time."""
        ...

    async def answer(self, image: bytes) -> Result:
        """The answer for one encoded image. Raises ConvMLPError."""
        ...

    async def aclose(self) -> None: ...
