"""The memory of a front-end process under the largest load that its settings allow."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import Counter

import httpx2

from service.settings import Settings
from tests.e2e.convmlp_process import started
from tests.fakes import fake_worker

SIDE = 7071
"""Of a square picture with nearly as many pixels as the default limit."""
FILE_BYTES = 19 << 20
"""Nearly as many as the default limit."""
REQUESTS = ("/classify", "/segment?view=labelmap", "/classify", "/detect") * 3
"""One body more than fits into the default limit of all, at least."""
LIMIT_BYTES = 10**9
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


async def test_a_front_end_takes_less_than_a_gigabyte() -> None:
    """At the default limits, with eight threads and the largest pictures for all tasks at once, each request is
    answered, or refused with 503 for lack of room, and the process never has 1 GB. It answers afterwards."""
    picture = largest_picture()
    settings = Settings(heartbeat_interval_ms=50)
    assert len(REQUESTS) * len(picture) > settings.max_in_flight_bytes
    async with fake_worker(settings) as worker:
        flags = ("--worker-address", worker.address, "--http-port", "0", "--prepare-threads", "8")
        with started("rest", *flags, "--request-timeout-ms", str(int(TIMEOUT_S * 1000))) as process:
            url = (await asyncio.to_thread(process.wait_for, "listening"))["url"]
            async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
                while not (await client.get("/readyz")).is_success:
                    await asyncio.sleep(0.05)
                replies = await asyncio.gather(*(client.post(path, content=picture) for path in REQUESTS))
                statuses = Counter(reply.status_code for reply in replies)
                assert set(statuses) == {200, 503}, [reply.text for reply in replies if reply.status_code != 200]
                assert statuses[200] >= len(REQUESTS) / 2
                assert all("retry-after" in reply.headers for reply in replies if reply.status_code == 503)
                assert process.peak_bytes < LIMIT_BYTES
                assert (await client.post("/classify", content=picture)).status_code == 200
