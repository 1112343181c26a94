"""A front-end's socket to one worker, and what becomes of its connection."""

from __future__ import annotations

import zmq
from zmq.utils.monitor import parse_monitor_message

from service.wire.mailbox import Mailbox

HIGH_WATER_MARK = 4096
"""Messages that may wait in a socket; above every bound on jobs in hand, so it is never met in good health."""


class NobodyThere(Exception):
    """There is no connection at the moment."""


class Line:
    """Use as an async context manager. It connects to `address`, again and again for as long as it is open."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._context = zmq.Context()

    async def __aenter__(self) -> Line:
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
        self._monitor = Mailbox(socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED))
        self._mailbox = Mailbox(socket)
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
            raise NobodyThere from None

    async def receive(self) -> tuple[memoryview, list[memoryview]]:
        """The next message: its header, and its array frames."""
        header, *frames = await self._mailbox.receive()
        return header.buffer, [frame.buffer for frame in frames]

    async def connected(self) -> bool:
        """Wait for the next change of the connection: whether it stands now, or broke."""
        event = parse_monitor_message([part.bytes for part in await self._monitor.receive()])
        return bool(event["event"] != zmq.EVENT_DISCONNECTED)
