"""A link and a listener of each transport, over real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from service.wire.addresses import open_link, open_listener
from service.wire.curve import PLAIN
from service.wire.transport import Frames, Link, LinkEvents, Listener, NotSent
from tests.waiting import PATIENCE_S, until

Message = tuple[bytes, list[bytes]]
LARGE = np.arange(3 << 20, dtype=np.uint8)
"""More than the buffers of a connection."""


class FrontEnd:
    """A link, and what it has called back."""

    def __init__(self, address: str) -> None:
        self.messages: list[Message] = []
        self.events: list[str] = []
        events = LinkEvents(self._on_message, lambda: self.events.append("up"), lambda _: self.events.append("lost"))
        self.link: Link = open_link(address, PLAIN, events)

    def _on_message(self, header: memoryview, frames: Frames) -> None:
        self.messages.append((bytes(header), [bytes(frame) for frame in frames]))

    async def __aenter__(self) -> FrontEnd:
        await self.link.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.link.__aexit__()


class Received(list[Message]):
    """The messages at a worker's end; `senders` has their identities."""

    def __init__(self) -> None:
        super().__init__()
        self.senders: list[bytes] = []
        self.drained = 0

    def take(self, sender: bytes, header: memoryview, frames: Frames) -> None:
        self.senders.append(sender)
        self.append((bytes(header), [bytes(frame) for frame in frames]))

    def on_drained(self) -> None:
        self.drained = len(self)


@pytest.fixture(params=["ipc", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/w" if request.param == "ipc" else "tcp://127.0.0.1:0"


@asynccontextmanager
async def serving(address: str, received: Received) -> AsyncIterator[Listener]:
    async with open_listener(address, PLAIN) as listener:
        running = asyncio.create_task(listener.run(received.take, received.on_drained))
        try:
            yield listener
        finally:
            running.cancel()
            await asyncio.wait([running])


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[tuple[Listener, Received, FrontEnd]]:
    received = Received()
    async with serving(address, received) as listener, FrontEnd(listener.address) as front_end:
        await until(lambda: front_end.events == ["up"])
        yield listener, received, front_end


def messages_of(sizes: Iterator[int]) -> list[tuple[bytes, list[memoryview]]]:
    """Messages with 0 to 3 frames of these sizes."""
    return [(b"%d" % number, [LARGE[:size].data for size in islice(sizes, number % 4)]) for number in range(12)]


def copies(messages: list[tuple[bytes, list[memoryview]]]) -> list[Message]:
    return [(header, [bytes(frame) for frame in frames]) for header, frames in messages]


async def test_messages_arrive_whole_and_in_order(address: str) -> None:
    """Headers and frames of all sizes arrive in both directions as they were sent, also those that no buffer takes
    at once; `on_drained` follows the last."""
    messages = messages_of(iter([1, 100, 0, LARGE.size, 4096, 8, 97_200, 0, 65_536, 1 << 20, 5, 97_200, *[3] * 20]))
    async with connected(address) as (listener, received, front_end):
        for header, frames in messages:
            front_end.link.send(header, *frames)
        await until(lambda: received.drained == len(messages))
        for header, frames in messages:
            listener.send(received.senders[0], header, *frames)
        await until(lambda: len(front_end.messages) == len(messages))
        assert received == copies(messages)
        assert front_end.messages == copies(messages)


async def test_front_ends_are_distinguished(address: str) -> None:
    """Each front-end gets what is sent to its identity, which lasts as long as its connection."""
    async with connected(address) as (listener, received, first):
        async with FrontEnd(listener.address) as second:
            await until(lambda: second.events == ["up"])
            first.link.send(b"of the first")
            await until(lambda: len(received) == 1)
            second.link.send(b"of the second")
            await until(lambda: len(received) == 2)
            one, other = received.senders
            listener.send(other, b"to the second")
            await until(lambda: second.messages == [(b"to the second", [])])

        def left() -> bool:
            try:
                listener.send(other, b"nobody reads this")
            except NotSent:
                return True
            return False

        await until(left)
        listener.send(one, b"to the first")
        await until(lambda: first.messages == [(b"to the first", [])])


async def test_a_front_end_connects_whenever_there_is_a_worker(address: str) -> None:
    """Before a worker is there, and after it has closed, messages are refused; another worker there is found."""
    async with serving(address, Received()) as listener:
        address = listener.address
    async with FrontEnd(address) as front_end:
        for _ in range(2):
            with pytest.raises(NotSent):
                front_end.link.send(b"too early")
            received = Received()
            async with serving(address, received):
                await until(lambda: front_end.events[-1:] == ["up"])
                front_end.link.send(b"hello")
                await until(partial(bool, received))
            await until(lambda: front_end.events[-1:] == ["lost"])
            assert received == [(b"hello", [])]
    assert front_end.events == ["up", "lost"] * 2


async def test_the_last_answers_of_a_worker_leave(tmp_path: Path) -> None:
    """What a worker sent before it closed arrives, although buffers are full and the front-end still sends. (Over TCP
    what the front-end sends can reset the connection.)"""
    async with connected(f"ipc://{tmp_path}/w") as (listener, received, front_end):
        front_end.link.send(b"question")
        await until(lambda: len(received) == 1)
        for _ in range(4):
            listener.send(received.senders[0], b"answer", LARGE.data)
        front_end.link.send(b"not read any more")
        closing = asyncio.create_task(listener.__aexit__())
        await until(lambda: len(front_end.messages) == 4)
        assert front_end.messages == [(b"answer", [LARGE.tobytes()])] * 4
        await closing


async def test_an_error_of_a_callback_ends_run(address: str) -> None:
    """`run` raises what its callback raises."""

    def fail(_sender: bytes, _header: memoryview, _frames: Frames) -> None:
        raise RuntimeError("a bug")

    async with open_listener(address, PLAIN) as listener:
        running = asyncio.create_task(listener.run(fail, lambda: None))
        async with FrontEnd(listener.address) as front_end:
            await until(lambda: front_end.events == ["up"])
            front_end.link.send(b"message")
            with pytest.raises(RuntimeError, match="a bug"):
                await asyncio.wait_for(running, PATIENCE_S)


def flood(front_end: FrontEnd, total: int) -> None:
    """Send so many messages while the event loop, and so their receiver, waits. ZeroMQ's own thread makes room."""
    end_s = time.monotonic() + PATIENCE_S
    sent = 0
    while sent < total:
        try:
            front_end.link.send(b"message")
        except NotSent:
            assert time.monotonic() < end_s
            time.sleep(0.001)
        else:
            sent += 1


async def test_a_flood_leaves_turns_to_others(address: str) -> None:
    """However many messages have arrived, the rest of the process runs before all of them are handled."""
    total = 5_000
    async with connected(address) as (_, received, front_end):
        flood(front_end, total)
        most = 0
        async with asyncio.timeout(PATIENCE_S):
            while (before := len(received)) < total:
                await asyncio.sleep(0)
                most = max(most, len(received) - before)
    assert 0 < most < total / 2
