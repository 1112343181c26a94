"""What carries messages between a front-end and a worker: Unix sockets on one host, ZeroMQ between hosts.

A message is a header and any number of frames; `messages.py` says what they contain. The scheme of an address decides:
ipc:// is `unix_socket.py`, all others are `zmq_socket.py`. Only the one that is used is imported.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    from service.wire.curve import WireOptions

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

    `on_message` gets the header and the frames. `on_lost` gets why the peer cannot be used; nothing where the
    connection just ended.
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
    """A worker's end: use as an async context manager. It listens from entry on.

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
        after those that arrived together, until cancelled. Call it once.

        An identity lasts as long as its connection. Raises what the callbacks raise.
        """

    def send(self, receiver: bytes, header: bytes, *frames: memoryview) -> None:
        """As `Send`, to the front-end with this identity."""


def open_link(address: str, options: WireOptions, events: LinkEvents) -> Link:
    """A link to the worker at `address`."""
    if address.startswith(IPC):
        from service.wire.unix_socket import UnixLink

        return UnixLink(address, _largest_frame(options), events)
    from service.wire.zmq_socket import ZmqLink

    return ZmqLink(address, options, events)


def open_listener(address: str, options: WireOptions) -> Listener:
    """A worker's end at `address`."""
    if address.startswith(IPC):
        from service.wire.unix_socket import UnixListener

        return UnixListener(address, _largest_frame(options))
    from service.wire.zmq_socket import ZmqListener

    return ZmqListener(address, options)


async def ask(address: str, options: WireOptions, header: bytes, timeout_s: float) -> memoryview:
    """The header of a worker's first message after this one.

    Raises:
        TimeoutError: none came in time.
        ConnectionFailed: the worker cannot be used.
    """
    reply: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()

    def on_message(header: memoryview, _frames: Frames) -> None:
        if not reply.done():
            reply.set_result(header)

    def on_lost(reason: str) -> None:
        if reason and not reply.done():
            reply.set_exception(ConnectionFailed(reason))

    link = open_link(address, options, LinkEvents(on_message, lambda: link.send(header), on_lost))
    async with asyncio.timeout(timeout_s), link:
        return await reply


def _largest_frame(options: WireOptions) -> int:
    return options.max_frame_bytes if options.max_frame_bytes >= 0 else sys.maxsize
