from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.frontend.grpc.call import answer_in_order


async def numbers(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number])


async def test_replies_in_order_whichever_is_ready_first() -> None:
    """Messages are answered together: the last may be ready first, and is still told last."""
    written: list[bytes] = []
    ready = [asyncio.Event() for _ in range(5)]

    async def answer(at: int, message: bytes) -> bytes:
        assert message == bytes([at])
        if at + 1 < len(ready):
            await ready[at + 1].wait()  # for this the later ones must be at work as well
        ready[at].set()
        return message

    async def write(reply: bytes) -> None:
        written.append(reply)

    await answer_in_order(numbers(5), answer, write, max_in_hand=5)
    assert written == [bytes([at]) for at in range(5)]


async def test_a_caller_that_does_not_read_is_not_read() -> None:
    """Replies that were not taken count as in hand: beyond the bound no message is taken in."""
    answered = 0
    taken = asyncio.Semaphore(0)

    async def answer(_: int, message: bytes) -> bytes:
        nonlocal answered
        answered += 1
        return message

    async def write(_: bytes) -> None:
        await taken.acquire()

    conversation = asyncio.create_task(answer_in_order(numbers(20), answer, write, max_in_hand=4))
    for took in range(3):
        for _ in range(50):
            await asyncio.sleep(0)
        assert answered == 4 + took
        taken.release()
    for _ in range(20):
        taken.release()
    await conversation
    assert answered == 20


async def test_cancelled_with_all_its_answers() -> None:
    """Cancelling the conversation cancels every answer that is being made."""
    cancelled = 0

    async def answer(_: int, __: bytes) -> bytes:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return b""

    async def write(_: bytes) -> None:
        raise AssertionError("nothing was ever ready")

    conversation = asyncio.create_task(answer_in_order(numbers(6), answer, write, max_in_hand=4))
    for _ in range(50):
        await asyncio.sleep(0)
    conversation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await conversation
    assert cancelled == 4
