"""The TLS handshake of one accepted connection."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

HANDSHAKE_S = 10.0
CLOSE_S = 2.0
"""How long the peer may take to confirm the end of a connection."""


async def start_tls(
    transport: asyncio.Transport, protocol: asyncio.Protocol, context: ssl.SSLContext, take_early: Callable[[], bytes]
) -> asyncio.Transport | None:
    """The transport inside TLS; None where the connection was closed meanwhile.

    `take_early` returns what `protocol` has received so far: uvloop reads a new connection although it is paused.

    Raises:
        OSError: the handshake failed, or took too long.
    """
    loop = asyncio.get_running_loop()
    starting = loop.create_task(
        loop.start_tls(
            transport,
            protocol,
            context,
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_S,
            ssl_shutdown_timeout=CLOSE_S,
        )
    )
    try:
        await asyncio.sleep(0)  # by now it has taken the protocol's place, and its first steps are queued
        if early := take_early():
            loop.call_soon(_feed, transport, early)  # behind these steps, and before anything else arrives
        return await starting
    finally:
        starting.cancel()


def _feed(transport: asyncio.Transport, data: bytes) -> None:
    """Pass bytes to the transport's buffered protocol, as if they had arrived now."""
    protocol: Any = transport.get_protocol()
    left = memoryview(data)
    while left:
        buffer = protocol.get_buffer(len(left))
        count = min(len(left), len(buffer))
        buffer[:count] = left[:count]
        protocol.buffer_updated(count)
        left = left[count:]
