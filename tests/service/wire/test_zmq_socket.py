"""A mailbox on each end of a real ZeroMQ connection."""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import zmq

from service.wire.zmq_socket import BORROWED_FROM, IN_A_ROW, ZmqSocket


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


async def receive(mailbox: ZmqSocket) -> list[bytes]:
    async with asyncio.timeout(20):
        return [part.bytes for part in await mailbox.receive()]


async def test_messages_arrive_whole_and_in_order(pair: Pair) -> None:
    """Parts that are copied and parts that are lent make one message; empty ones and many of them, too."""
    lent = np.arange(BORROWED_FROM, dtype=np.uint32).reshape(2, -1)
    for number in range(10):
        pair.one.send(b"%d" % number, lent.data, b"", memoryview(b"copied"))
    for number in range(10):
        assert await receive(pair.other) == [b"%d" % number, lent.tobytes(), b"", b"copied"]


async def test_an_arrival_that_a_send_took_note_of_is_heard(pair: Pair) -> None:
    """libzmq tells of an arrival once; where it is a send of ours that hears of it, whoever waits is woken still."""
    waiting = asyncio.create_task(receive(pair.other))
    await asyncio.sleep(0)
    for _ in range(20):
        pair.one.send(b"hello")
        time.sleep(0.01)  # noqa: ASYNC251  (the loop must not have its turn between the arrival and the send)
        pair.other.send(b"meanwhile")
        assert await waiting == [b"hello"]
        waiting = asyncio.create_task(receive(pair.other))
        await asyncio.sleep(0)
    waiting.cancel()


async def test_whoever_gave_up_waiting_loses_no_message(pair: Pair) -> None:
    """A receive that is cancelled leaves what comes to the next one."""
    waiting = asyncio.create_task(receive(pair.other))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    pair.one.send(b"later")
    assert await receive(pair.other) == [b"later"]


async def test_while_nobody_receives_the_loop_rests(pair: Pair) -> None:
    """Messages that nobody asks for do not wake the event loop again and again, and wait for whoever comes."""
    pair.one.send(b"first")
    await asyncio.sleep(0.1)
    assert select.select([pair.other_socket.FD], [], [], 0)[0] == []
    assert await receive(pair.other) == [b"first"]


async def test_a_flood_leaves_others_their_turn(pair: Pair) -> None:
    """However many messages wait, the rest of the process runs in between."""
    total = 20 * IN_A_ROW
    for _ in range(total):
        pair.one.send(b"")
    await asyncio.sleep(0.2)
    received, turns = 0, 0

    async def others() -> None:
        nonlocal turns
        while received < total:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(others())
    while received < total:
        await receive(pair.other)
        received += 1
    await running
    assert turns >= 10


async def test_closing_ends_the_wait(pair: Pair) -> None:
    """Whoever waits for a message hears that there will be none."""
    waiting = asyncio.create_task(receive(pair.other))
    await asyncio.sleep(0)
    pair.other.close(0)
    with pytest.raises(zmq.ZMQError):
        await waiting
