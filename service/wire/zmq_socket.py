"""A ZeroMQ socket on the event loop: what is sent leaves at once or not at all, what comes is taken out as it is asked
for.

`zmq.asyncio` spends several futures and callbacks on each message, and a thread of its own on each array that it sends
without copying it; here a message costs the calls of libzmq and no more.

A front-end's socket to one worker, and what becomes of its connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import zmq
from zmq.utils.monitor import parse_monitor_message

BORROWED_FROM = 1 << 19
"""Bytes of an array from which on copying it costs more than lending its memory to libzmq."""
IN_A_ROW = 64
"""Messages that are taken out before the rest of the process has its turn."""

# As plain numbers: arithmetic on pyzmq's flags costs more than the calls that they are for.
_NOW = int(zmq.NOBLOCK)
_NOW_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_TO_RECEIVE = int(zmq.POLLIN)


class ZmqSocket:
    """Owns the socket from now on. All calls belong to the thread of the event loop that it was made in; only one at a
    time may wait in `receive`."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._arrival: asyncio.Future[None] | None = None
        self._in_a_row = 0
        self._descriptor = int(socket.FD)
        self._loop.add_reader(self._descriptor, self._hear)

    def close(self, linger_ms: int | None = None) -> None:
        """Close the socket, too. What was sent still leaves within `linger_ms`, or the socket's own time."""
        self._loop.remove_reader(self._descriptor)
        self._socket.close(linger_ms)
        self._wake()

    def send(self, *parts: bytes | memoryview) -> None:
        """Send one message. Large parts are not copied: their memory is read later, and kept alive until then.

        Raises:
            zmq.ZMQError: it was not sent; zmq.Again: there is no room, or no one connected.
        """
        last = len(parts) - 1
        try:
            for number, part in enumerate(parts):
                lent = isinstance(part, memoryview) and part.nbytes >= BORROWED_FROM
                self._socket.send(part, _NOW if number == last else _NOW_MORE, copy=not lent)
        finally:
            # The descriptor tells of an arrival once, and it may be sending that took the word in.
            if self._arrival is not None:
                self._hear()

    async def receive(self) -> Sequence[zmq.Frame]:
        """The next message, its parts as they came: their memory is libzmq's, for as long as the part is kept.

        Raises:
            zmq.ZMQError: the socket was closed.
        """
        self._in_a_row += 1
        if self._in_a_row > IN_A_ROW:
            self._in_a_row = 0
            await asyncio.sleep(0)
        # To ask first costs less than half of being refused by an exception.
        if not self._has_come():
            self._in_a_row = 0
            self._arrival = self._loop.create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None
        part = self._socket.recv(_NOW, copy=False)
        parts = [part]
        while part.more:
            part = self._socket.recv(_NOW, copy=False)
            parts.append(part)
        return parts

    def _has_come(self) -> bool:
        """Whether a message is there; it also quiets the descriptor, which would wake the loop again and again."""
        return bool(int(self._socket.get(zmq.EVENTS)) & _TO_RECEIVE)

    def _hear(self) -> None:
        if self._has_come():
            self._wake()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


HIGH_WATER_MARK = 4096
"""Messages that may wait in a socket; above every bound on jobs in hand, so it is never met in good health."""


class NotConnected(Exception):
    """There is no connection at the moment."""


class WorkerConnection:
    """Use as an async context manager. It connects to `address`, again and again for as long as it is open."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._context = zmq.Context()

    async def __aenter__(self) -> WorkerConnection:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # without a connection a send fails instead of waiting in line
        # A connection whose other end vanished without a word would stay until the kernel gives it up, for minutes.
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 250)
        socket.set_hwm(HIGH_WATER_MARK)
        self._socket = socket
        self._monitor = ZmqSocket(socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED))
        self._mailbox = ZmqSocket(socket)
        socket.connect(self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._mailbox.close(0)
        self._context.term()

    def send(self, header: bytes, *frames: memoryview) -> None:
        """Send without waiting; `frames` may not change any more.

        Raises:
            NobodyThere: it was not sent.
        """
        try:
            self._mailbox.send(header, *frames)
        except zmq.Again:
            raise NotConnected from None

    async def receive(self) -> tuple[memoryview, list[memoryview]]:
        """The next message: its header, and its array frames."""
        header, *frames = await self._mailbox.receive()
        return header.buffer, [frame.buffer for frame in frames]

    async def connected(self) -> bool:
        """Wait for the next change of the connection: whether it stands now, or broke."""
        event = parse_monitor_message([part.bytes for part in await self._monitor.receive()])
        return bool(event["event"] != zmq.EVENT_DISCONNECTED)
