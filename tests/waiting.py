"""Waits for conditions. Tests wait for what happens, and not for a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

PATIENCE_S = 60.0
"""Far longer than anything that a test waits for takes, even on a busy machine."""


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition to hold. TimeoutError after `PATIENCE_S`."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = PATIENCE_S) -> None:
    """Wait until `condition()` holds, which asks a service; a deadline, not a measurement."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)
