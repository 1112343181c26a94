"""A web site of pictures on this host, for services that fetch by URL: it answers what a test wrote."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class PictureSite:
    """`answers` by path; `heads` are the requests that came, as text; `readers` of their connections."""

    port: int
    answers: dict[str, Answer] = field(default_factory=dict)
    heads: list[str] = field(default_factory=list)
    readers: list[asyncio.StreamReader] = field(default_factory=list)

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


def sends(body: bytes, head: str = "HTTP/1.1 200 OK", length: int | None = None) -> Answer:
    """Answers with a body, and claims that it has this length."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(f"{head}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body)

    return answer


def redirects(location: str, status: int = 302) -> Answer:
    return sends(b"", f"HTTP/1.1 {status} Moved\r\nLocation: {location}")


def drips(chunk: bytes, pause_s: float = 0.0) -> Answer:
    """Sends a chunk again and again, without an end."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return answer


@asynccontextmanager
async def open_site(tls: ssl.SSLContext | None = None) -> AsyncIterator[PictureSite]:
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            site.heads.append(head)
            site.readers.append(reader)
            await site.answers[head.split()[1].partition("?")[0]](writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the service has enough, or the test has ended
        finally:
            connections.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    site = PictureSite(server.sockets[0].getsockname()[1])
    try:
        yield site
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
