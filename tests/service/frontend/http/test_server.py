"""Connections: draining, heads that are too long or too slow, unread bodies, and uvicorn's private parts."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx2
import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.frontend.core.request_log import RequestLog
from service.frontend.http.connections import MAX_HEAD_BYTES, Connections
from service.frontend.http.middleware import HttpRequest
from service.frontend.http.protocol import CONNECTION, BoundedHttp, HttpService
from service.frontend.http.server import Server
from service.observability.metrics import FrontEndMetrics
from service.observability.tracing import NO_TRACING
from tests.service.frontend.rest_server import Rest, picture, problem_of
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def never(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    raise AssertionError("no request was complete")


@asynccontextmanager
async def connection_server(
    protocol: type[BoundedHttp], app: ASGIApp = never
) -> AsyncIterator[tuple[Server, tuple[str, int]]]:
    """A server, by default for what happens before a request is complete; and its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    service = HttpService(app, app, Connections(100, FrontEndMetrics(CollectorRegistry())))
    http = partial(protocol, service)
    server = Server(uvicorn.Config(app, http=http, lifespan="off", ws="none", log_config=None))  # type: ignore[arg-type]
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield server, listener.getsockname()
    finally:
        server.should_exit = True
        await serving


async def test_requests_in_flight_are_finished_on_drain(fresh_rest: Rest) -> None:
    """After the word to exit no connection is accepted, but who waits gets the answer, and the connection's end."""
    fresh_rest.worker.runner.unblocked.clear()
    held = asyncio.create_task(fresh_rest.http.post("/classify", content=picture(5)))
    await fresh_rest.until("convmlp_in_flight_requests", 1)
    fresh_rest.stop.set()
    async with asyncio.timeout(PATIENCE_S):
        while await _accepts(fresh_rest.port):
            await asyncio.sleep(0.01)
    fresh_rest.worker.runner.unblocked.set()
    response = await held
    assert response.status_code == 200
    assert response.json()["results"][0]["labels"][0]["index"] == 5
    assert response.headers["connection"] == "close"
    await fresh_rest.serving


@pytest.mark.settings(drain_timeout_s=1)
async def test_drain_ends_in_time(fresh_rest: Rest) -> None:
    """A request that outlasts the drain is answered 503, and the server ends."""
    fresh_rest.worker.runner.unblocked.clear()
    held = asyncio.create_task(fresh_rest.http.post("/classify", content=picture()))
    await fresh_rest.until("convmlp_in_flight_requests", 1)
    fresh_rest.stop.set()
    response = await held
    assert (response.status_code, problem_of(response.content)["type"]) == (503, "/problems/unavailable")
    assert "shutting down" in response.json()["detail"]
    await fresh_rest.serving


async def test_a_connection_serves_many_requests(rest: Rest) -> None:
    """Connections are kept alive, also after an error of the body's content."""
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{rest.port}", timeout=60) as http:
        for body in (picture(), b"%PDF", picture()):
            response = await http.post("/classify", content=body)
            assert "connection" not in response.headers


async def test_unread_body_does_not_cost_the_answer(rest: Rest) -> None:
    """A body that is refused unread is dropped after the answer, so the connection is not reset under it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rest.port)
    size = 4_000_000
    writer.write(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    writer.write(bytes(size))
    await writer.drain()
    assert problem_of(await reader.read())["status"] == 404
    writer.close()


async def test_head_that_is_too_long_is_refused(rest: Rest) -> None:
    """A request line or headers without end are cut off, in whatever pieces they come."""
    for begin, more in (
        (b"GET /", b"a" * 1000),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"b" * 1000),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: c\r\n" * 200),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", rest.port)
        writer.write(begin)
        for _ in range(MAX_HEAD_BYTES // len(more) + 1):
            writer.write(more)
            await asyncio.sleep(0)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 431 ")
        writer.close()


async def test_long_head_within_the_limit_is_served(rest: Rest) -> None:
    """Large cookies and the like pass."""
    response = await rest.http.get("/livez", headers={"X-Large": "x" * 30_000})
    assert response.status_code == 200


async def test_body_may_be_longer_than_a_head(rest: Rest) -> None:
    """The bound on heads does not touch bodies, nor the next request on the same connection."""
    for _ in range(2):
        response = await rest.http.post("/classify", content=picture() + bytes(4 * MAX_HEAD_BYTES))
        assert response.status_code == 200


async def test_head_that_is_too_slow_is_refused() -> None:
    """A connection on which no head comes to its end is closed, before the first byte or in the middle."""

    class Hasty(BoundedHttp):
        head_timeout_s = 0.05

    async with connection_server(Hasty) as (_, address):
        for begin in (b"", b"GET / HTTP/1.1\r\nHost"):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(begin)
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
            writer.close()


async def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Nagle's algorithm is off: a long answer is several writes, and the second would wait for 40 ms."""

    async with connection_server(BoundedHttp) as (server, address):
        _, writer = await asyncio.open_connection(*address)
        await until(lambda: bool(server.server_state.connections))
        (connection,) = server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()


async def test_head_and_body_leave_together() -> None:
    """An answer is one write, which wakes its caller once; a head without a body is not held back for one."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"body")(scope, receive, send)

    async with connection_server(BoundedHttp, app) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.read(65536)
        assert (answer[:15], answer[-8:]) == (b"HTTP/1.1 200 OK", b"\r\n\r\nbody")
        writer.write(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\nbody")
        writer.close()


async def test_a_caller_that_expects_a_word_gets_it_at_once(rest: Rest) -> None:
    """`100 Continue` is no head of an answer, and is not held back."""
    body = picture(9)
    reader, writer = await asyncio.open_connection("127.0.0.1", rest.port)
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(head)
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_callers_of_the_old_version_expect_nothing(rest: Rest) -> None:
    """An interim answer would be the whole answer to a caller of HTTP/1.0 (RFC 9110, section 10.1.1)."""
    body = picture(9)
    reader, writer = await asyncio.open_connection("127.0.0.1", rest.port)
    writer.write(b"POST /classify HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_garbage_is_refused(rest: Rest) -> None:
    """What is no HTTP at all gets a 400, and the service goes on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rest.port)
    writer.write(b"\x16\x03\x01\x02\x00\x01\x00")
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()
    assert (await rest.http.get("/livez")).status_code == 200


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    return True


class Uploads:
    """An ASGI application that answers with the number of messages and of bytes of each body, and keeps the bodies."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        chunks = []
        more = True
        while more:
            message = await receive()
            chunks.append(message["body"])
            more = message["more_body"]
        self.bodies.append(b"".join(chunks))
        await Response(f"{len(chunks)} {len(self.bodies[-1])}")(scope, receive, send)


class Answers:
    """Answers each request by `HttpRequest.respond`. `hidden`: behind a wrapper of `send`."""

    def __init__(self, hidden: bool, body: bytes = b"{}") -> None:
        self._hidden = hidden
        self._body = body
        self._log = RequestLog("rest", FrontEndMetrics(CollectorRegistry()), NO_TRACING, access_log=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def wrapper(message: Message) -> None:
            await send(message)

        request = HttpRequest(scope, receive, wrapper if self._hidden else send, self._log)
        with request.record:
            while (await request.receive())["more_body"]:
                pass
            await request.respond(self._body, "application/json", ((b"vary", b"Accept"),))


@pytest.mark.parametrize("nbytes", [1, 65_536, 200_000, 300_000, 3_000_000])
@pytest.mark.parametrize("pieces", [1, 3])
async def test_bodies_arrive_as_they_were_sent(nbytes: int, pieces: int) -> None:
    """`BoundedHttp.on_body` sets uvicorn's own buffer: no byte is lost or doubled, whatever the size and the pieces."""
    body = (bytes(range(256)) * (nbytes // 256 + 1))[:nbytes]
    head = f"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {nbytes}\r\n\r\n".encode()
    application = Uploads()
    async with connection_server(BoundedHttp, application) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        for _ in range(2):  # the second one on the kept connection
            writer.write(head)
            size = nbytes // pieces + 1
            for start in range(0, nbytes, size):
                writer.write(body[start : start + size])
                await writer.drain()
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200")
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            assert (await reader.readexactly(length)).split()[1] == str(nbytes).encode()
        writer.close()
    assert application.bodies == [body, body]


async def test_uvicorn_has_the_private_parts_in_use() -> None:
    """The attributes of uvicorn's that `BoundedHttp` and `HttpRequest` use exist, and are what these rely on."""
    seen: dict[str, object] = {}

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        connection: BoundedHttp = scope[CONNECTION]
        cycle = connection.cycle
        seen.update(
            body=type(cycle.body),
            event=type(cycle.message_event),
            complete=cycle.response_complete,
            receive=getattr(receive, "__self__", None) is cycle,
            happened=connection.disconnect.happened,
            send=send == cycle.send,
            on_response=cycle.on_response == connection.on_response_complete,
            queue=(connection.pipeline.copy(), connection.timeout_keep_alive_task),
            transport=cycle.transport is connection.transport,
            kept=cycle.keep_alive,
            more=type(cycle.more_body),
            paused=connection.flow.write_paused,
            flags=(cycle.disconnected, cycle.response_started, cycle.waiting_for_100_continue),
            headers={type(part) for header in cycle.default_headers for part in header},
        )
        await Response("")(scope, receive, send)

    async with connection_server(BoundedHttp, application) as (_, (host, port)), httpx2.AsyncClient(timeout=60) as http:
        await http.post(f"http://{host}:{port}", content=b"x")
    assert seen["body"] in (bytes, bytearray)
    del seen["body"]
    assert seen == {
        "event": asyncio.Event,
        "complete": False,
        "receive": True,
        "happened": False,
        "send": True,
        "on_response": True,
        "queue": (deque(), None),
        "transport": True,
        "kept": True,
        "more": bool,
        "paused": False,
        "flags": (False, False, False),
        "headers": {bytes},
    }


@pytest.mark.parametrize(
    "request_line", ["HTTP/1.1", "HTTP/1.1\r\nConnection: close", "HTTP/1.0", "HTTP/1.1\r\nExpect: 100-continue"]
)
async def test_an_answer_sent_whole_is_the_one_of_the_messages(request_line: str) -> None:
    """`HttpRequest.respond` writes what uvicorn's `send` would, and leaves the connection as `send` does."""
    answers = []
    for hidden in (False, True):
        async with connection_server(BoundedHttp, Answers(hidden)) as (_, address):
            reader, writer = await asyncio.open_connection(*address)
            head = f"POST / {request_line}\r\nHost: h\r\nX-Request-Id: one\r\nContent-Length: 1\r\n\r\nx"
            writer.write(head.encode())
            answer = await reader.readuntil(b"{}")
            if "close" in request_line or "1.0" in request_line:
                assert await reader.read() == b""
            else:
                writer.write(head.encode())
                answer += await reader.readuntil(b"{}")
            writer.close()
            answers.append(
                [line for line in answer.split(b"\r\n") if not line.startswith((b"date:", b"server-timing:"))]
            )
    assert answers[0] == answers[1]
    assert b"HTTP/1.1 200 OK" in answers[0]


async def test_an_answer_of_any_size_arrives_whole() -> None:
    """A caller that reads slowly gets all of a long answer, and the next one."""
    body = bytes(range(256)) * 40_000
    async with connection_server(BoundedHttp, Answers(hidden=False, body=body)) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        for _ in range(2):
            writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(body)) == body
        writer.close()
