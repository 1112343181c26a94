from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from service.cli.load.http import ConnectionBroken, Connections, request_bytes
from tests.ports import closed_port

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GET = request_bytes("GET", "here", "/", {})


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[Connections]:
    """Connections to a raw TCP server on a free port."""
    handling: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handling.add(task)
        try:
            await serve(reader, writer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            handling.discard(task)
            writer.close()

    running = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with running:
        async with Connections("127.0.0.1", running.sockets[0].getsockname()[1]) as connections:
            yield connections
        if handling:
            await asyncio.wait(handling, timeout=5)


def answering(*answers: bytes) -> Serve:
    """A handler that answers one request after another with `answers`, on any number of connections."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        await reader.read()

    return serve


def test_a_request_has_the_bytes_of_http() -> None:
    """They are request line, host, headers, length and body."""
    made = request_bytes("POST", "here:80", "/x?y=1", {"A": "b"}, b"\x00body")
    assert made == b"POST /x?y=1 HTTP/1.1\r\nHost: here:80\r\nA: b\r\nContent-Length: 5\r\n\r\n\x00body"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 No\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nbody",
        b"HTTP/1.1 503 No\r\nretry-after: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nb\r\n3\r\nody\r\n0\r\n\r\n",
    ],
)
async def test_a_response_is_read_completely(answer: bytes) -> None:
    """Its body may have a length or come in chunks; header names are in lower case."""
    async with server(answering(answer)) as connections:
        response = await connections.request(GET, 5)
    assert (response.status, response.headers[b"retry-after"], response.body) == (503, b"1", b"body")


async def test_connections_are_kept_alive() -> None:
    """Consecutive requests share a connection; two concurrent ones need two."""
    opened = 0
    both = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        if opened == 2:
            both.set()
        while True:
            await reader.readuntil(b"\r\n\r\n")
            if b"wait" in await reader.readexactly(4):
                await both.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    quick, wait = (request_bytes("POST", "here", "/", {}, body) for body in (b"next", b"wait"))
    async with server(serve) as connections:
        for _ in range(3):
            await connections.request(quick, 5)
        assert opened == 1
        await asyncio.gather(*(connections.request(wait, 5) for _ in range(2)))
    assert opened == 2


async def test_a_closed_connection_is_not_used_again() -> None:
    """After `Connection: close`, the next request opens a new connection."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    async with server(answering(answer)) as connections:
        assert [(await connections.request(GET, 5)).status for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "closed"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not HTTP"),
    ],
)
async def test_a_malformed_response_is_an_error(answer: bytes, message: str) -> None:
    """A truncated response, or one that is not HTTP, raises; the next request opens a new connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with server(serve) as connections:
        for _ in range(2):
            with pytest.raises(ConnectionBroken, match=message):
                await connections.request(GET, 5)


async def test_a_late_response_is_a_timeout() -> None:
    """TimeoutError after the given time; a late response is not taken for the next request's."""
    late = asyncio.Event()
    received = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        await reader.readuntil(b"\r\n\r\n")
        received += 1
        if received == 1:
            await late.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % received)
        await reader.read()

    async with server(serve) as connections:
        with pytest.raises(TimeoutError):
            await connections.request(GET, 0.05)
        late.set()
        assert (await connections.request(GET, 5)).body == b"2"


async def test_no_server_is_an_error() -> None:
    """The message of a failed connection has the system's reason."""
    with closed_port() as port:
        async with Connections("127.0.0.1", port) as connections:
            with pytest.raises(ConnectionBroken, match="cannot connect: connection refused"):
                await connections.request(GET, 5)
