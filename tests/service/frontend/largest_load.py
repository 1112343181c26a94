"""A front-end process at its default limits, and the largest pictures that these allow."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2

from service.settings import Settings
from tests.e2e.convmlp_process import RunningService, started
from tests.fakes import fake_worker

SETTINGS = Settings(heartbeat_interval_ms=50)
SIDE = 8000
"""Of a square picture with as many pixels as the default limit."""
FILE_BYTES = 19 << 20
"""Nearly as many as the default limit."""
TIMEOUT_S = 240.0


def largest_picture() -> bytes:
    """A grey PNG of `SIDE` x `SIDE` pixels and about `FILE_BYTES` bytes, most of which are a comment."""
    deflate = zlib.compressobj(1)
    row = bytes(1 + SIDE)
    pixels = b"".join([*(deflate.compress(row) for _ in range(SIDE)), deflate.flush()])
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    comment = b"Comment\0" + bytes(FILE_BYTES)
    chunks = ((b"IHDR", header), (b"tEXt", comment), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@asynccontextmanager
async def front_end_process() -> AsyncIterator[tuple[RunningService, httpx2.AsyncClient]]:
    """A REST process with eight threads and the default limits, ready, and a client of it."""
    async with fake_worker(SETTINGS) as worker:
        flags = ("--worker-address", worker.address, "--http-port", "0", "--prepare-threads", "8")
        with started("rest", *flags, "--request-timeout-ms", str(int(TIMEOUT_S * 1000)), fresh=True) as process:
            url = (await asyncio.to_thread(process.wait_for, "listening"))["url"]
            async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
                while not (await client.get("/readyz")).is_success:
                    await asyncio.sleep(0.05)
                yield process, client
