"""A `ZmqSocket` on each end of a real ZeroMQ connection."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import zmq

from service.wire.zmq_socket import BORROWED_FROM, IN_A_ROW, ZmqSocket
from tests.waiting import PATIENCE_S, until


class Pair(NamedTuple):
    one: ZmqSocket
    other: ZmqSocket
    other_socket: zmq.Socket[bytes]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    with zmq.Context() as context, context.socket(zmq.PAIR) as first, context.socket(zmq.PAIR) as second:
        for socket in (first, second):
            socket.set_hwm(0)
        first.bind(f"ipc://{tmp_path}/pair")
        second.connect(f"ipc://{tmp_path}/pair")
        assert all(socket.poll(20_000, zmq.POLLOUT) for socket in (first, second)), "they did not connect"
        one, other = ZmqSocket(first), ZmqSocket(second)
        yield Pair(one, other, second)
        one.close(0)
        other.close(0)


def arrived(socket: zmq.Socket[bytes]) -> None:
    """Block until libzmq reports an arrival at the socket's descriptor."""
    assert select.select([socket.FD], [], [], 20)[0]


class Inbox:
    """Collects the messages of a socket while its context is open."""

    def __init__(self, socket: ZmqSocket) -> None:
        self._socket = socket
        self.messages: list[list[bytes]] = []

    async def __aenter__(self) -> Inbox:
        self._receiving = asyncio.create_task(self._socket.run(self._append))
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._receiving.cancel()
        await asyncio.wait([self._receiving])

    def _append(self, parts: Sequence[zmq.Frame]) -> None:
        self.messages.append([part.bytes for part in parts])

    async def until(self, count: int) -> list[list[bytes]]:
        await until(lambda: len(self.messages) >= count)
        return self.messages


async def test_messages_arrive_whole_and_in_order(pair: Pair) -> None:
    """Copied parts, borrowed parts, empty parts and many parts make one message."""
    lent = np.arange(BORROWED_FROM, dtype=np.uint32).reshape(2, -1)
    async with Inbox(pair.other) as inbox:
        for number in range(10):
            pair.one.send(b"%d" % number, lent.data, b"", memoryview(b"copied"))
        messages = await inbox.until(10)
    assert messages == [[b"%d" % number, lent.tobytes(), b"", b"copied"] for number in range(10)]


async def test_an_arrival_whose_report_a_send_consumed_is_received(pair: Pair) -> None:
    """libzmq reports an arrival once. Where a send consumes the report, the message is received all the same."""
    async with Inbox(pair.other) as inbox:
        for number in range(1, 21):
            pair.one.send(b"hello")
            arrived(pair.other_socket)  # the loop must not run between the arrival and the send
            pair.other.send(b"meanwhile")
            assert await inbox.until(number) == [[b"hello"]] * number


async def test_a_cancelled_run_loses_no_message(pair: Pair) -> None:
    """Messages that arrive after `run` was cancelled are received by the next `run`."""
    async with Inbox(pair.other) as inbox:
        pass
    pair.one.send(b"later")
    arrived(pair.other_socket)
    await asyncio.sleep(0)
    assert inbox.messages == []
    async with Inbox(pair.other) as inbox:
        assert await inbox.until(1) == [[b"later"]]


async def test_a_socket_without_messages_does_not_wake_the_loop(pair: Pair) -> None:
    """After a message was received the descriptor becomes quiet: the event loop sleeps until the next one."""
    async with Inbox(pair.other) as inbox:
        pair.one.send(b"first")
        await inbox.until(1)
        await until(lambda: not select.select([pair.other_socket.FD], [], [], 0)[0])


async def test_a_flood_leaves_turns_to_others(pair: Pair) -> None:
    """However many messages wait, the rest of the process runs after each `IN_A_ROW` of them."""
    total = 20 * IN_A_ROW
    for _ in range(total):
        pair.one.send(b"")
    most = 0
    async with Inbox(pair.other) as inbox, asyncio.timeout(PATIENCE_S):
        while (before := len(inbox.messages)) < total:
            await asyncio.sleep(0)
            most = max(most, len(inbox.messages) - before)
    assert 1 < most <= 2 * IN_A_ROW  # the loop may call the socket twice: by the descriptor, and for the rest


async def test_closing_ends_run(pair: Pair) -> None:
    """`run` returns once the socket is closed."""
    running = asyncio.create_task(pair.other.run(lambda _: None))
    await asyncio.sleep(0)
    pair.other.close(0)
    await asyncio.wait_for(running, PATIENCE_S)


async def test_an_error_of_the_callback_ends_run(pair: Pair) -> None:
    """`run` raises what its callback raises, and receives nothing after it."""
    received: list[bytes] = []

    def fail(parts: Sequence[zmq.Frame]) -> None:
        received.append(parts[0].bytes)
        raise RuntimeError("a bug")

    for part in (b"first", b"second"):
        pair.one.send(part)
    with pytest.raises(RuntimeError, match="a bug"):
        await asyncio.wait_for(pair.other.run(fail), PATIENCE_S)
    assert received == [b"first"]
