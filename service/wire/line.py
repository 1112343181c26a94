"""A front-end's socket to one worker, and what becomes of its connection."""

from __future__ import annotations

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

HIGH_WATER_MARK = 4096
"""Messages that may wait in a socket; above every bound on jobs in hand, so it is never met in good health."""


class NobodyThere(Exception):
    """There is no connection at the moment."""


class Line:
    """Use as an async context manager. It connects to `address`, again and again for as long as it is open."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._context = zmq.asyncio.Context()

    async def __aenter__(self) -> Line:
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # without a connection a send fails instead of waiting in line
        # A connection whose other end vanished without a word would stay until the kernel gives it up, for minutes.
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 250)
        self._socket.set_hwm(HIGH_WATER_MARK)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._socket.connect(self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        self._context.term()

    async def send(self, header: bytes, *frames: memoryview) -> None:
        """Send without waiting and without copying: libzmq reads the arrays' own memory, which the frames keep alive.

        Raises:
            NobodyThere: it was not sent.
        """
        try:
            await self._socket.send_multipart([header, *frames], flags=zmq.NOBLOCK, copy=False)
        except zmq.Again:
            raise NobodyThere from None

    async def receive(self) -> tuple[bytes, list[memoryview]]:
        """The next message: its header, and its array frames."""
        header, *frames = await self._socket.recv_multipart(copy=False)
        return header.bytes, [frame.buffer for frame in frames]

    async def connected(self) -> bool:
        """Wait for the next change of the connection: whether it stands now, or broke."""
        event = await recv_monitor_message(self._monitor)
        return bool(event["event"] != zmq.EVENT_DISCONNECTED)
