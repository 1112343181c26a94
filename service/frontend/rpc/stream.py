"""A stream's messages, each answered as soon as it can be, and no more of them in hand than a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc


async def answer_each(
    messages: AsyncIterator[bytes],
    answer: Callable[[int, bytes], Awaitable[bytes]],
    write: Callable[[bytes], Awaitable[None]],
    max_in_hand: int,
) -> None:
    """Write each message's reply once it is ready, in whatever order; `answer` gets the message's position, from 0.

    A message is in hand until its reply was taken by the caller, and only so many are read: a caller who does not
    read, or who pours, holds up nobody else. Returns when the messages have ended and all replies are out. If this
    is cancelled all answers are.
    """
    room = asyncio.Semaphore(max_in_hand)
    writing = asyncio.Lock()  # gRPC takes one message of a call at a time

    async def handle(at: int, message: bytes) -> None:
        try:
            reply = await answer(at, message)
            del message  # only the reply waits for a slow caller
            async with writing:
                await write(reply)
        except grpc.aio.BaseError:
            return  # the caller is gone, and the call is about to be cancelled
        finally:
            room.release()

    async with asyncio.TaskGroup() as group:
        at = 0
        await room.acquire()
        async for message in messages:
            group.create_task(handle(at, message))
            at += 1
            await room.acquire()
