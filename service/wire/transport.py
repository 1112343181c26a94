"""What carries messages between a front-end and a worker: Unix sockets on one host, ZeroMQ between hosts.

A message is a header and any number of frames; `messages.py` defines what they contain. `addresses.py` chooses by the
scheme of an address: `unix_socket.py` for ipc://, `zmq_socket.py` for all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, Self

IPC = "ipc://"
"""Begins the address of a Unix socket. The path of its file follows, or @ and the name of one without a file."""

HEADER_BYTES = 16 * 2**20
"""More than any message header: the largest has the configs of all models."""
HANDSHAKE_S = 10.0
"""A connection whose peer has not shown by then that it belongs to this service is closed."""
RECONNECT_S = 0.05
MAX_RECONNECT_S = 0.25
"""Between two attempts to connect; doubles from one to the other."""
LINGER_S = 1.0
"""How long the last answers of a worker that closes may take to leave."""

Frames = Sequence[memoryview]


class NotSent(Exception):
    """A message was not sent, and never will be: there is no connection, or its peer reads no more."""


class ConnectionFailed(Exception):
    """The peer cannot be used."""


class Send(Protocol):
    """Sends a message now, or not at all. Frames are read later where the peer is slow, so they must not change.

    Raises:
        NotSent
    """

    def __call__(self, header: bytes, /, *frames: memoryview) -> None: ...


class LinkEvents(NamedTuple):
    """What a link calls in the thread of the event loop.

    `on_message` gets the header, whose memory is used again after the call, and the frames. `on_lost` gets why the peer
    cannot be used; nothing where the connection just ended.
    """

    on_message: Callable[[memoryview, Frames], None]
    on_connected: Callable[[], None]
    on_lost: Callable[[str], None]


class Link(Protocol):
    """A front-end's connection to one worker: use as an async context manager.

    It connects again and again for as long as it is open. Nothing is queued for a connection that is not there; in the
    moment in which one breaks messages may still be taken, and dropped.
    """

    @property
    def send(self) -> Send: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...


class Listener(Protocol):
    """A worker's end: use as an async context manager. It listens from entry on, which may raise OSError.

    When it is closed messages that were sent still leave, within `LINGER_S`.
    """

    address: str
    """After entry the real one, with a port in the place of 0."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def run(
        self, on_message: Callable[[bytes, memoryview, Frames], None], on_drained: Callable[[], None]
    ) -> None:
        """Call `on_message` with the sender's identity, the header and the frames of each message, and `on_drained`
        after those that arrived together, until cancelled. A header's memory is used again after the call. Call `run`
        once.

        An identity lasts as long as its connection. Raises what the callbacks raise.
        """

    def send(self, receiver: bytes, header: bytes, *frames: memoryview) -> None:
        """As `Send`, to the front-end with this identity."""
