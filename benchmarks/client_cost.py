"""CPU time a request of the load client, and of a general HTTP client, with the same server.

python -m benchmarks.client_cost URL [PICTURE]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
import uvloop

from model.reference import REFERENCE_PICTURE
from service.cli.load.http import Connections, request_bytes

CLIENTS = 8
REQUESTS = 400


async def _cost(url: str, picture: bytes) -> None:
    host, _, port = url.removeprefix("http://").partition("/")[0].partition(":")
    path = "/" + url.removeprefix("http://").partition("/")[2]
    request = request_bytes("POST", f"{host}:{port}", path, {}, picture)
    async with Connections(host, int(port)) as connections, httpx2.AsyncClient(timeout=60) as general:

        async def ours() -> int:
            return (await connections.request(request, 60)).status

        async def httpx2s() -> int:
            return (await general.post(url, content=picture)).status_code

        for name, ask in (("ours", ours), ("httpx2", httpx2s), ("ours", ours), ("httpx2", httpx2s)):
            print(f"{name:8}{await _cpu_s(ask) * 1e6:7.0f} µs a request")


async def _cpu_s(ask: Callable[[], Awaitable[int]]) -> float:
    async def client() -> None:
        for _ in range(REQUESTS // CLIENTS):
            if (status := await ask()) != 200:
                raise SystemExit(f"the server answers {status}")

    began_s = time.process_time()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return (time.process_time() - began_s) / REQUESTS


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client_cost", description=__doc__)
    parser.add_argument("url", help="as http://127.0.0.1:8000/classify")
    parser.add_argument("picture", type=Path, nargs="?", default=REFERENCE_PICTURE)
    arguments = parser.parse_args()
    uvloop.run(_cost(arguments.url, arguments.picture.read_bytes()))
