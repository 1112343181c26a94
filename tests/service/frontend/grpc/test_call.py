"""Streams alone: the order of replies, the bound on messages in flight, and cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.frontend.grpc.call import answer_stream


async def numbers(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number])


@pytest.mark.parametrize("ordered", [True, False])
async def test_order_of_replies(ordered: bool) -> None:
    """Messages are answered concurrently. Replies come in the order of the messages, or as they are ready."""
    written: list[bytes] = []
    ready = [asyncio.Event() for _ in range(5)]

    async def answer(position: int, message: bytes) -> bytes:
        assert message == bytes([position])
        if position + 1 < len(ready):
            await ready[position + 1].wait()  # each reply needs the one after it
        ready[position].set()
        return message

    async def write(reply: bytes) -> None:
        written.append(reply)

    await answer_stream(numbers(5), answer, write, max_in_flight=5, ordered=ordered)
    expected = [bytes([position]) for position in range(5)]
    assert written == (expected if ordered else expected[::-1])


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_client_that_does_not_read_is_not_read(ordered: bool) -> None:
    """A message is in flight until its reply is written; beyond the bound no message is read."""
    answered = 0
    readable = asyncio.Semaphore(0)

    async def answer(_: int, message: bytes) -> bytes:
        nonlocal answered
        answered += 1
        return message

    async def write(_: bytes) -> None:
        await readable.acquire()

    stream = asyncio.create_task(answer_stream(numbers(20), answer, write, max_in_flight=4, ordered=ordered))
    for read in range(3):
        for _ in range(50):
            await asyncio.sleep(0)
        assert answered == 4 + read
        readable.release()
    for _ in range(20):
        readable.release()
    await stream
    assert answered == 20


@pytest.mark.parametrize("ordered", [True, False])
async def test_cancelling_a_stream_cancels_its_answers(ordered: bool) -> None:
    """Every answer in flight is cancelled with its stream."""
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
        raise AssertionError("no reply is ready")

    stream = asyncio.create_task(answer_stream(numbers(6), answer, write, max_in_flight=4, ordered=ordered))
    for _ in range(50):
        await asyncio.sleep(0)
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream
    assert cancelled == 4
