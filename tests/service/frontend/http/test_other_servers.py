"""The REST application under an ASGI server that knows nothing of this service: plain uvicorn, and a bare caller."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from model.types import Task
from service.frontend.core.frontend import open_front_end
from service.frontend.http.server import Server
from service.frontend.http_main import RestApplication
from service.settings import Settings
from tests.fakes import FakeWorker, fake_worker
from tests.service.frontend.rest_server import picture
from tests.waiting import until

SETTINGS = Settings(heartbeat_interval_ms=50, access_log=False)


@asynccontextmanager
async def ready_worker(settings: Settings = SETTINGS) -> AsyncIterator[FakeWorker]:
    async with fake_worker(settings, tasks=[Task.CLASSIFY]) as worker:
        ready = partial(worker.registry.get_sample_value, "convmlp_model_ready", {"model": "fake_classify"})
        await until(lambda: ready() == 1)
        yield worker


def application(worker: FakeWorker, settings: Settings = SETTINGS) -> RestApplication:
    settings = settings.with_changes(worker_address=worker.address)
    return RestApplication(settings, partial(open_front_end, settings))


@asynccontextmanager
async def plain_server(app: RestApplication) -> AsyncIterator[tuple[httpx2.AsyncClient, int]]:
    """uvicorn with its own protocol class."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    server = Server(uvicorn.Config(app, lifespan="on", ws="none", log_config=None, http="httptools"))
    serving = asyncio.create_task(server.serve([listener]))
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            yield http, port
    finally:
        server.should_exit = True
        await serving


async def test_another_server_serves_the_application() -> None:
    """Predictions, errors and metrics are as under this service's own server, on connections that are used again."""
    async with ready_worker() as worker, plain_server(application(worker)) as (http, _):
        for grey in (7, 9):
            answer = await http.post("/classify", content=picture(grey), headers={"Content-Type": "image/png"})
            assert answer.json()["results"][0]["labels"][0]["label"] == f"grey {grey}"
            assert len(answer.headers.get_list("x-request-id")) == 1
        two = await http.post("/classify", files=[("image", picture(3)), ("image", picture(4))])
        assert [result["labels"][0]["label"] for result in two.json()["results"]] == ["grey 3", "grey 4"]
        unread = await http.post("/classify?model=none", content=picture())
        assert (unread.status_code, unread.json()["title"]) == (404, "Model not found")
        assert (await http.get("/readyz")).status_code == 200
        assert 'outcome="ok"' in (await http.get("/metrics")).text


async def test_a_caller_that_leaves_costs_nothing_more() -> None:
    """Without this service's own connections, too, the job of a caller that left is removed from the worker's queue."""
    settings = SETTINGS.with_changes(max_batch_images=1)
    async with (
        ready_worker(settings) as worker,
        plain_server(application(worker)) as (http, port),
    ):
        worker.runner.unblocked.clear()
        head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
        callers = []
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head % len(picture()) + picture())
            callers.append(writer)
        depth = partial(worker.registry.get_sample_value, "convmlp_queue_depth", {"model": "fake_classify"})
        await until(lambda: depth() == 2)
        for writer in callers:
            writer.close()
            await writer.wait_closed()
        await until(lambda: depth() == 0)
        worker.runner.unblocked.set()
        answer = await http.post("/classify", content=picture(5), headers={"Content-Type": "image/png"})
        assert answer.json()["results"][0]["labels"][0]["label"] == "grey 5"
        counted = 'convmlp_requests_total{model="fake_classify",outcome="cancelled"'
        assert f'{counted},task="classify",transport="rest"}} 3.0' in (await http.get("/metrics")).text


class Caller:
    """A caller without a server: its messages, and what it is sent."""

    def __init__(self, body: bytes) -> None:
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self.sent: list[Message] = []

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @staticmethod
    def scope() -> Scope:
        return {
            **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"},
            **{"path": "/classify", "raw_path": b"/classify", "query_string": b"", "root_path": ""},
            **{"headers": [(b"host", b"x"), (b"content-type", b"image/png")], "client": None, "server": None},
        }


@asynccontextmanager
async def opened(app: RestApplication) -> AsyncIterator[list[Message]]:
    """The application between its startup and its shutdown; what it reported about them."""
    messages: asyncio.Queue[Message] = asyncio.Queue()
    messages.put_nowait({"type": "lifespan.startup"})
    reported: list[Message] = []

    async def send(message: Message) -> None:
        reported.append(message)

    living = asyncio.create_task(run(app, {"type": "lifespan"}, messages.get, send))
    await until(lambda: bool(reported))
    yield reported
    messages.put_nowait({"type": "lifespan.shutdown"})
    await living


async def run(app: Any, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ANN401
    await app(scope, receive, send)


@pytest.mark.parametrize("cancels", [False, True])
async def test_a_server_may_cancel_the_request_of_a_caller_that_left(cancels: bool) -> None:
    """Some servers cancel a request's task as well. It is counted as the caller's, and the caller is sent nothing."""
    async with ready_worker() as worker:
        app = application(worker)
        async with opened(app) as reported:
            worker.runner.unblocked.clear()
            caller = Caller(picture())
            asked = asyncio.create_task(run(app, caller.scope(), caller.incoming.get, caller.send))
            ran = len(worker.runner.batches)
            await until(lambda: len(worker.runner.batches) > ran)
            caller.incoming.put_nowait({"type": "http.disconnect"})
            if cancels:
                await asyncio.sleep(0)
                asked.cancel()
            await asyncio.wait([asked])
            assert caller.sent == []
            worker.runner.unblocked.set()
        assert [message["type"] for message in reported] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_an_application_that_cannot_open_reports_why(tmp_path: Path) -> None:
    """A wrong setting ends the server's start with its reason, and not the first request."""
    async with ready_worker() as worker:
        app = application(worker, SETTINGS.with_changes(api_keys_file=tmp_path / "missing"))
        async with opened(app) as reported:
            assert reported[0]["type"] == "lifespan.startup.failed"
            assert "missing" in reported[0]["message"]
            caller = Caller(b"")
            with pytest.raises(RuntimeError, match=r"no lifespan\.startup"):
                await run(app, caller.scope(), caller.incoming.get, caller.send)
