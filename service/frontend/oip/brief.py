"""Where a request is read and its response written: here, or in a thread where it takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

BRIEF_BYTES = 2**12
"""Of JSON, or of an answer's values: read or written in less time than a thread is reached, some 0.1 ms."""


async def offload(work: Callable[[], T], nbytes: int) -> T:
    """What comes of `work` on so many bytes."""
    return work() if nbytes <= BRIEF_BYTES else await asyncio.to_thread(work)
