"""The frames of an HTTP/2 connection (RFC 9113) that carry no call: settings, pings and GOAWAY."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.waiting import PATIENCE_S

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ACK = 1
NO_ERROR, ENHANCE_YOUR_CALM = 0, 11


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    payload: bytes


class Http2:
    """A connection without calls."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, kind: int, flags: int = 0, payload: bytes = b"", times: int = 1) -> None:
        self._writer.write((struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + bytes(4) + payload) * times)
        await self._writer.drain()

    async def next(self, kind: int, flags: int = 0) -> Frame:
        """The next frame of that kind with those flags; other frames are skipped."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                head = await self._reader.readexactly(9)
                frame = Frame(head[3], head[4], await self._reader.readexactly(int.from_bytes(head[:3])))
                if (frame.kind, frame.flags) == (kind, flags):
                    return frame


@asynccontextmanager
async def open_http2(address: str) -> AsyncIterator[Http2]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    connection = Http2(reader, writer)
    writer.write(PREFACE)
    await connection.send(SETTINGS)
    try:
        yield connection
    finally:
        writer.close()


def error_code(goaway: Frame) -> int:
    return int.from_bytes(goaway.payload[4:8])
