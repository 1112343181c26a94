"""Connections on the event loop of the service: refusals of the HTTP parser, half-closed callers, and every bound."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import ANY

import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ConnectionEnd
from service.frontend.http.connections import MAX_HEAD_BYTES, RESERVED, Connections
from service.frontend.http.protocol import CONNECTION, BoundedHttp, HttpService
from service.frontend.http.server import Server, serve
from service.observability.metrics import FrontEndMetrics
from tests.service.frontend.rest_server import problem_of
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"


@dataclass
class Echo:
    """Answers with the path and the body. Paths below /held wait for `free`; `left` are those whose caller left."""

    free: asyncio.Event = field(default_factory=asyncio.Event)
    begun: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        self.begun.append(path)
        self.headers.append(dict(Request(scope).headers))
        try:
            with scope[CONNECTION].disconnect:
                body = await Request(scope, receive).body()
                if path.startswith("/held"):
                    await self.free.wait()
        except ClientDisconnect:
            self.left.append(path)
            return
        await Response(path.encode() + b" " + body)(scope, receive, send)


@dataclass
class Probe:
    """The application of the reserve."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[CONNECTION].cycle.keep_alive = False
        await Response(b"reserve")(scope, receive, send)


@dataclass
class Running:
    address: tuple[str, int]
    server: Server
    registry: CollectorRegistry

    def ended(self, reason: ConnectionEnd) -> float:
        return self.registry.get_sample_value("convmlp_connections_ended_total", {"reason": reason}) or 0.0

    @property
    def connection(self) -> BoundedHttp:
        """The only connection."""
        (connection,) = self.server.server_state.connections
        assert isinstance(connection, BoundedHttp)
        return connection

    async def connect(self, first: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self.address, limit=2**24)
        writer.write(first)
        return reader, writer


@asynccontextmanager
async def server_of(
    app: ASGIApp, limit: int = 100, kind: type[Connections] = Connections, protocol: type[BoundedHttp] = BoundedHttp
) -> AsyncIterator[Running]:
    registry = CollectorRegistry()
    service = HttpService(app, Probe(), kind(limit, FrontEndMetrics(registry)))
    listener = socket.create_server(("127.0.0.1", 0))
    http: Any = partial(protocol, service)
    server = Server(uvicorn.Config(app, http=http, lifespan="off", ws="none", log_config=None))
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield Running(listener.getsockname(), server, registry)
    finally:
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        # Requests that a failed test left without an answer are not waited for.
        server.should_exit = server.force_exit = True
        await serving


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """The next response: status, headers, body."""
    async with asyncio.timeout(PATIENCE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
        status, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return int(status.split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0)))


MALFORMED = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "malformed-request"),
    "unknown method": (b"FETCH / HTTP/1.1\r\nHost: x\r\n\r\n", 501, "method-not-allowed"),
    "length no number": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: five\r\n\r\n", 400, "malformed-request"),
    "two lengths": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        "malformed-request",
    ),
    "bad chunk": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "malformed-request"),
    "other coding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: other\r\n\r\n", 501, "transfer-coding"),
    "another coding before chunks": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        501,
        "transfer-coding",
    ),
    "codings in two headers": (
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
        501,
        "transfer-coding",
    ),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed-request"),
    "no host with an offer of HTTP/2": (
        b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        400,
        "malformed-request",
    ),
    "two hosts": (b"GET / HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n", 400, "malformed-request"),
    "host with a path": (b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400, "malformed-request"),
    "bad target": (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed-request"),
    "target no path": (b"GET x HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed-request"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http-version"),
    "HTTP/2 in words": (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505, "http-version"),
    "HTTP/3": (b"GET / HTTP/3.0\r\n\r\n", 505, "http-version"),
    "HTTP/0.9": (b"GET /\r\n\r\n", 505, "http-version"),
    "CONNECT": (b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n", 501, "method-not-allowed"),
    "method in lower case": (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 501, "method-not-allowed"),
    "known method and more": (b"GETS / HTTP/1.0\r\n\r\n", 501, "method-not-allowed"),
    "garbage": (b"\x16\x03\x01\x02\x00 / HTTP/1.1\r\n\r\n", 400, "malformed-request"),
    "no target": (b"FROB HTTP/1.1\r\n\r\n", 400, "malformed-request"),
    "endless header": (
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * MAX_HEAD_BYTES,
        431,
        "head-too-large",
    ),
    "complete head over the limit": (
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n",
        431,
        "head-too-large",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_refusals_of_the_parser_are_problems(case: str) -> None:
    """What is not HTTP gets a problem of the right status, with a request id, and the end of its connection."""
    sent, status, code = MALFORMED[case]
    async with server_of(Echo()) as running:
        reader, writer = await running.connect(sent)
        received, headers, body = await answer(reader)
        problem = problem_of(body)
        assert (received, problem["status"], problem["type"]) == (status, status, f"/problems/{code}")
        assert headers["content-type"] == "application/problem+json"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["connection"] == "close"
        assert problem["instance"] == f"#{headers['x-request-id']}"
        assert await reader.read() == b""
        writer.close()
        ended = sum(running.ended(reason) for reason in ConnectionEnd)
        assert ended == 1


async def test_an_unknown_method_behind_other_requests_is_named() -> None:
    """The requests before it are answered; then it is 501, which names it."""
    async with server_of(Echo()) as running:
        reader, writer = await running.connect(GET % 1 + b"FROB /2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await answer(reader) == (200, ANY, b"/1 ")
        status, _, body = await answer(reader)
        assert (status, "'FROB' is not implemented" in problem_of(body)["detail"]) == (501, True)
        writer.close()


@pytest.mark.parametrize("cut", [100, MAX_HEAD_BYTES - 2, MAX_HEAD_BYTES])
async def test_a_head_of_the_largest_size_is_accepted(cut: int) -> None:
    """A head may have as many bytes as the limit, wherever it is cut and whatever follows it at once."""
    head = b"POST /1 HTTP/1.1\r\nHost: [::1]:80\r\nContent-Length: 3\r\nX: "
    sent = head + b"y" * (MAX_HEAD_BYTES - len(head) - 4) + b"\r\n\r\nabc" + GET % 2 + b"GET /3 HTTP/1.0\r\n\r\n"
    async with server_of(Echo()) as running:
        reader, writer = await running.connect(sent[:cut])
        await writer.drain()
        writer.write(sent[cut:])
        assert [await answer(reader) for _ in range(3)] == [
            (200, ANY, b"/1 abc"),
            (200, ANY, b"/2 "),
            (200, ANY, b"/3 "),
        ]
        writer.close()


@pytest.mark.parametrize("length", [3, 3000])
async def test_a_body_longer_than_its_length_is_answered(length: int) -> None:
    """A Content-Length that is too small delimits the request, which is answered; what is left is refused."""
    async with server_of(Echo()) as running:
        head = b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length
        reader, writer = await running.connect(head + b"\xff" * (length + 9000))
        assert (await answer(reader))[2] == b"/1 " + b"\xff" * length
        assert (await answer(reader))[0] == 400
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("head", [b"1.1\r\nHost: x\r\nConnection: close", b"1.0"])
async def test_what_follows_the_last_request_does_not_reset_its_answer(head: bytes) -> None:
    """Bytes behind a request that is its connection's last are dropped, also those that arrive behind its answer."""
    app = Echo()
    async with server_of(app) as running:
        reader, writer = await running.connect(b"POST /held HTTP/" + head + b"\r\nContent-Length: 3\r\n\r\nabc")
        await until(lambda: app.begun == ["/held"])
        writer.write(b"\r\n")
        await until(lambda: running.connection.cycle.transport is not running.connection.transport)
        app.free.set()
        writer.write(bytes(6_000_000))
        await writer.drain()
        status, headers, body = await answer(reader)
        assert (status, headers["connection"], body) == (200, "close", b"/held abc")
        assert await reader.read() == b""
        writer.close()


async def test_a_refusal_is_not_lost_to_a_sender_that_goes_on() -> None:
    """What arrives behind a refused request is read and dropped, so the connection is not reset under the answer."""
    async with server_of(Echo()) as running:
        reader, writer = await running.connect(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n" + bytes(3_000_000)
        )
        await writer.drain()
        assert (await answer(reader))[0] == 400
        writer.close()


async def test_a_refusal_comes_behind_the_answers_of_earlier_requests() -> None:
    """A malformed request behind good ones is answered in its turn, and not in the place of one of them."""
    app = Echo()
    async with server_of(app) as running:
        for broken in (b"nonsense\r\n\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"):
            app.free.clear()
            reader, writer = await running.connect(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n" + GET % 2 + broken)
            await until(lambda: "/held" in app.begun)
            app.free.set()
            assert [(await answer(reader))[0] for _ in range(3)] == [200, 200, 400]
            assert await reader.read() == b""
            writer.close()
            app.begun.clear()


async def test_a_broken_body_ends_the_work_for_it() -> None:
    """A chunk that is malformed gets its request a 400, and its endpoint the end of its caller."""
    app = Echo()
    async with server_of(app) as running:
        reader, writer = await running.connect(
            b"POST /held HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        )
        await until(lambda: app.begun == ["/held"])
        writer.write(b"no size\r\n")
        assert (await answer(reader))[0] == 400
        await until(lambda: app.left == ["/held"])
        writer.close()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_half_closed_caller_gets_its_answer(version: str) -> None:
    """A caller that closed its sending half behind its request is still there."""
    app = Echo()
    async with server_of(app) as running:
        reader, writer = await running.connect(
            f"POST /held HTTP/{version}\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".encode()
        )
        writer.write_eof()
        await until(lambda: app.begun == ["/held"])
        app.free.set()
        status, _, body = await answer(reader)
        if status == 100:  # an interim response, which callers ignore
            status, _, body = await answer(reader)
        assert (status, body) == (200, b"/held abc")
        assert await reader.read() == b""
        assert app.left == []
        writer.close()


async def test_a_caller_that_left_is_no_half_closed_one() -> None:
    """A caller that closed its connection sends the same as one that closed its sending half; its work ends."""
    app = Echo()
    async with server_of(app) as running:
        _, writer = await running.connect(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: app.begun == ["/held"])
        writer.close()
        await until(lambda: app.left == ["/held"])


async def test_a_caller_that_leaves_in_its_body_is_noticed() -> None:
    """The end of what a caller sends, before its body's end, ends the request."""
    app = Echo()
    async with server_of(app) as running:
        reader, writer = await running.connect(b"POST /held HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\nabc")
        await until(lambda: app.begun == ["/held"])
        writer.write_eof()
        await until(lambda: app.left == ["/held"])
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("at_once", [True, False])
async def test_thousands_of_pipelined_requests_are_answered_in_order(at_once: bool) -> None:
    """Requests of megabytes in all, with bodies and without, are each answered, however they arrive."""
    post = b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n" + b"x" * 3000
    requests = [(post if n % 10 == 0 else GET) % n for n in range(5000)]
    async with server_of(Echo()) as running:
        reader, writer = await running.connect(b"" if not at_once else b"".join(requests))

        async def send() -> None:
            for request in [] if at_once else requests:
                writer.write(request)
                await writer.drain()

        sending = asyncio.create_task(send())
        for n in range(5000):
            status, _, body = await answer(reader)
            assert (status, body.split()[0]) == (200, b"/%d" % n)
            assert len(body) > 3000 or n % 10
        await sending
        writer.close()


async def test_requests_that_wait_are_few() -> None:
    """Behind an unanswered request few others are parsed, and the socket is not read: the rest waits at its sender."""
    app = Echo()
    async with server_of(app) as running:
        reader, writer = await running.connect(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: app.begun == ["/held"])
        writer.write((GET % 1) * 300_000)
        (connection,) = running.server.server_state.connections
        await until(lambda: bool(connection.pipeline))  # type: ignore[union-attr]
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(connection.pipeline) < 60  # type: ignore[union-attr]
        assert writer.transport.get_write_buffer_size() > 0
        app.free.set()
        for _ in range(1000):
            assert (await answer(reader))[0] == 200
        writer.transport.abort()


class FewBytes(Connections):
    max_pipelined_bytes = 100_000
    max_unread_bytes = 15_000_000


async def test_unparsed_requests_of_all_connections_are_bounded() -> None:
    """Beyond the bound a connection gets its answers so far, then a 503 with Retry-After; others go on."""
    app = Echo()
    async with server_of(app, kind=FewBytes) as running:
        reader, writer = await running.connect(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: app.begun == ["/held"])
        writer.write(b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\n" * 40_000)
        await until(lambda: running.ended(ConnectionEnd.PIPELINED) == 1)
        other, other_writer = await running.connect(GET % 7)
        assert (await answer(other))[2] == b"/7 "
        app.free.set()
        answers: list[tuple[int, dict[str, str], bytes]] = []
        while not answers or answers[-1][0] == 200:
            answers.append(await answer(reader))
        assert answers[-1][0] == 503
        assert answers[-1][1]["retry-after"] == "1"
        assert await reader.read() == b""
        for one in (writer, other_writer):
            one.close()


async def test_answers_that_nobody_reads_are_bounded() -> None:
    """Beyond the bound the longest unread answers cost their connections; who reads gets everything."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(bytes(12_000_000))(scope, receive, send)

    async with server_of(app, kind=FewBytes) as running:
        _, lazy = await running.connect(GET % 1)
        lazy.transport.pause_reading()  # type: ignore[attr-defined]
        accepted = running.server.server_state.connections
        await until(lambda: any(one.flow.write_paused for one in accepted))  # type: ignore[union-attr]
        reader, writer = await running.connect(GET % 2)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: running.ended(ConnectionEnd.UNREAD) == 1)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len((await answer(reader))[2]) == 12_000_000
        for one in (lazy, writer):
            one.transport.abort()


@pytest.mark.parametrize("last", [b"", b"Connection: close\r\n"])
async def test_a_caller_that_takes_nothing_is_lost(last: bytes) -> None:
    """A connection whose peer takes no byte of its answer ends after a while, also when it is closing already."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("this system has no TCP_USER_TIMEOUT")

    class Impatient(BoundedHttp):
        unread_answer_s = 1.0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(bytes(12_000_000))(scope, receive, send)

    async with server_of(app, protocol=Impatient) as running:
        _, writer = await running.connect()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + last + b"\r\n")
        await until(lambda: running.ended(ConnectionEnd.UNREAD) == 1)
        assert running.server.server_state.connections == set()
        writer.transport.abort()


async def test_bodies_in_small_chunks_arrive_whole() -> None:
    """A body in chunks of one byte costs its sender, and arrives as it was sent."""
    body = bytes(97 + n % 26 for n in range(100_000))
    async with server_of(Echo()) as running:
        reader, writer = await running.connect(b"POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(2):
            writer.write(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
            assert (await answer(reader))[2] == b"/1 " + body
            writer.write(b"POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.close()


async def test_small_chunks_wait_for_their_reader() -> None:
    """An endpoint that does not read stops the sender of small chunks as any other, and then gets the whole body."""
    ready = asyncio.Event()
    lengths: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await ready.wait()
        lengths.append(len(await Request(scope, receive).body()))
        await Response(b"")(scope, receive, send)

    async with server_of(app) as running:
        reader, writer = await running.connect(b"POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        count = 1_500_000
        writer.write(b"1\r\nx\r\n" * count + b"0\r\n\r\n")
        await until(lambda: bool(running.server.server_state.connections))
        (connection,) = running.server.server_state.connections
        await until(lambda: connection.flow is not None and connection.flow.read_paused)  # type: ignore[union-attr]
        assert len(connection.cycle.body) < 2 * 2**20  # type: ignore[union-attr]
        assert writer.transport.get_write_buffer_size() > 2**20
        ready.set()
        assert (await answer(reader))[0] == 200
        assert lengths == [count]
        writer.close()


async def test_trailers_are_no_headers() -> None:
    """A field behind a body does not become a header of the request, and endless ones are refused."""
    app = Echo()
    head = b"POST /1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    async with server_of(app) as running:
        reader, writer = await running.connect(head + b"Authorization: Bearer key\r\n\r\n")
        assert (await answer(reader))[0] == 200
        assert "authorization" not in app.headers[0]
        writer.write(head + b"X: " + b"y" * 2 * MAX_HEAD_BYTES)
        assert (await answer(reader))[0] == 431
        writer.close()


@pytest.mark.parametrize("cut", [0, 40, 110, 115])
@pytest.mark.parametrize("body", [b"", b"hello", b"hello" * 1000])
async def test_an_offer_of_another_protocol_is_ignored(cut: int, body: bytes) -> None:
    """Java's HttpClient and `curl --http2` offer h2c. Their requests are answered, with their bodies, in any pieces."""
    app = Echo()
    offer = (
        b"POST /offer HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AA\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    async with server_of(app) as running:
        reader, writer = await running.connect()
        for data in ((GET % 1) + offer + offer + (GET % 2), offer):
            writer.write(data[:cut])
            await writer.drain()
            await asyncio.sleep(0)
            writer.write(data[cut:])
        bodies = [(await answer(reader))[2] for _ in range(5)]
        offered = b"/offer " + body
        assert bodies == [b"/1 ", offered, offered, b"/2 ", offered]
        assert all("upgrade" not in headers for headers in app.headers)
        writer.close()


@pytest.mark.parametrize("cut", [0, 100, 200, 5000])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("nbytes", [1, 40_000, 400_000])
async def test_the_first_request_may_offer_another_protocol(nbytes: int, chunked: bool, cut: int) -> None:
    """A connection that begins with an offer is answered, whatever its body's size and form; so is what follows."""
    body = b"x" * nbytes
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % nbytes
    offer = b"POST /offer HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n" + framing + b"\r\n\r\n"
    if chunked:
        half = nbytes // 2
        chunks = [chunk for chunk in (body[:half], body[half:]) if chunk]
        offer += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    else:
        offer += body
    async with server_of(Echo()) as running:
        reader, writer = await running.connect(offer[:cut])
        await asyncio.sleep(0)
        writer.write(offer[cut:] + offer + (GET % 2))
        bodies = [(await answer(reader))[2] for _ in range(3)]
        assert bodies == [b"/offer " + body, b"/offer " + body, b"/2 "]
        writer.close()


class ShortKeepAlive(Connections):
    keep_alive_s = 0.2
    idle_look_s = 0.02


async def test_a_connection_that_waits_too_long_is_closed() -> None:
    """A connection without another request ends after the keep-alive time; one whose request is answered does not."""
    app, stop = Echo(), asyncio.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    service = HttpService(app, Probe(), ShortKeepAlive(10, FrontEndMetrics(CollectorRegistry())))
    serving = asyncio.create_task(serve(service, [listener], stop, 1.0))
    held, held_writer = await asyncio.open_connection(*listener.getsockname())
    held_writer.write(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: app.begun == ["/held"])
    idle, idle_writer = await asyncio.open_connection(*listener.getsockname())
    idle_writer.write(b"GET /idle HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await answer(idle))[0] == 200
    async with asyncio.timeout(PATIENCE_S):
        assert await idle.read() == b""
    app.free.set()
    assert (await answer(held))[0] == 200
    stop.set()
    await serving
    held_writer.close()
    idle_writer.close()


async def test_idle_connections_give_way_at_the_limit() -> None:
    """At the limit those that were idle the longest are closed, and a new caller is served."""
    async with server_of(Echo(), limit=4) as running:
        idle = []
        for n in range(4):
            idle.append(await running.connect(GET % n))
            assert (await answer(idle[-1][0]))[0] == 200
            await asyncio.sleep(0.01)  # uvloop's clock has milliseconds
        await asyncio.sleep(1.1)  # a connection that became idle just now may have a request on the way
        reader, writer = await running.connect(GET % 9)
        assert (await answer(reader))[2] == b"/9 "
        async with asyncio.timeout(PATIENCE_S):
            assert await idle[0][0].read() == b""
        assert running.ended(ConnectionEnd.LIMIT) >= 1
        for _, one in idle:
            one.close()
        writer.close()


async def test_beyond_the_limit_the_reserve_answers() -> None:
    """While every connection has a request, others get the reserve's answer and their end, however many wait there."""
    app = Echo()
    async with server_of(app, limit=2) as running:
        held = [await running.connect(b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(2)]
        await until(lambda: len(app.begun) == 2)
        silent = [await running.connect() for _ in range(RESERVED)]
        await until(lambda: len(running.server.server_state.connections) == 2 + RESERVED)
        late, late_writer = await running.connect(GET % 1)
        assert (await answer(late))[2] == b"reserve"
        assert await late.read() == b""
        assert await silent[0][0].read() == b""
        assert running.registry.get_sample_value("convmlp_connections") == 1 + RESERVED
        app.free.set()
        for one, _ in held:
            assert (await answer(one))[2] == b"/held "
        for _, writer in (*held, *silent, (late, late_writer)):
            writer.close()
        await until(lambda: running.registry.get_sample_value("convmlp_connections") == 0)


async def test_json_of_a_refusal_is_the_documented_form() -> None:
    """A refusal has the members of every other error."""
    async with server_of(Echo()) as running:
        reader, writer = await running.connect(b"nonsense\r\n\r\n")
        assert set(json.loads((await answer(reader))[2])) == {"type", "title", "status", "detail", "instance", "error"}
        writer.close()
