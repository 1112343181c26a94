"""A stream's messages, answered together and replied to in their order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc


async def answer_in_order(
    messages: AsyncIterator[bytes],
    answer: Callable[[int, bytes], Awaitable[bytes]],
    write: Callable[[bytes], Awaitable[None]],
    max_in_hand: int,
) -> None:
    """Write the messages' replies in the order in which they came; `answer` gets the message's position, from 0.

    A message is in hand until its reply was taken by the caller, and only so many are read. Returns when the
    messages have ended and all replies are out. If this is cancelled all answers are.
    """
    room = asyncio.Semaphore(max_in_hand)
    in_hand: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()  # as long as there is room

    async def write_all() -> None:
        while (answering := await in_hand.get()) is not None:
            reply = await answering
            with contextlib.suppress(grpc.aio.BaseError):  # the caller is gone, and the call is about to be cancelled
                await write(reply)
            room.release()

    async with asyncio.TaskGroup() as group:
        group.create_task(write_all())
        at = 0
        await room.acquire()
        async for message in messages:
            in_hand.put_nowait(group.create_task(_awaited(answer(at, message))))
            at += 1
            await room.acquire()
        in_hand.put_nowait(None)


async def _awaited(work: Awaitable[bytes]) -> bytes:
    return await work
