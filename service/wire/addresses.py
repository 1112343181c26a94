"""The transport of an address: Unix sockets for ipc://, ZeroMQ for all others. Only what is used is imported."""

from __future__ import annotations

import asyncio
import sys

from service.wire.curve import WireOptions
from service.wire.transport import IPC, ConnectionFailed, Frames, Link, LinkEvents, Listener


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
