"""What it takes to wait with a caller: its body must come in time, and it may leave before its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from service.errors import DeadlineExceeded

T = TypeVar("T")


async def in_time(reading: Awaitable[T], deadline_s: float) -> T:
    """What was read of the request's body. `deadline_s` is on the clock of `time.monotonic`.

    Raises:
        DeadlineExceeded: the body had not come by then.
    """
    try:
        async with asyncio.timeout(deadline_s - time.monotonic()):
            return await reading
    except TimeoutError:
        raise DeadlineExceeded("the request's deadline passed before its body had come") from None


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; the body must have been read. If the caller leaves first the work is cancelled, which
    withdraws its jobs.

    Raises:
        ClientDisconnect: the caller left.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
