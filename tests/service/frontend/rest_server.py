"""A real front-end on a free port: uvicorn, real sockets, the real engine and wire; only the device is a fake."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
import PIL.Image
from prometheus_client import CollectorRegistry

from model.bundle import Bundle
from model.types import Task
from service.frontend.core.engine import Engine
from service.frontend.core.frontend import open_front_end
from service.frontend.http.server import serve
from service.frontend.http_main import create_app
from service.settings import Settings
from tests.fakes import FakeWorker, fake_settings, fake_worker
from tests.waiting import PATIENCE_S, until


@dataclass(frozen=True)
class Rest:
    """A running front-end, a client for it, and the worker behind it."""

    http: httpx2.AsyncClient
    engine: Engine
    worker: FakeWorker
    settings: Settings
    port: int
    stop: asyncio.Event
    serving: asyncio.Task[None]

    async def count(self, metric: str) -> float:
        """The value of one sample of `/metrics`, named with its labels as in the exposition; 0 if it is missing."""
        lines = (await self.http.get("/metrics")).text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(metric)), 0.0)

    async def until(self, metric: str, value: float) -> None:
        """Wait for `count(metric)` to be `value`."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.count(metric) != value:
                await asyncio.sleep(0.01)

    async def until_waiting(self, images: int) -> None:
        """Wait until so many images wait for the device, by the worker's own count."""
        labels = {"model": "fake_classify"}
        await until(lambda: self.worker.registry.get_sample_value("convmlp_queue_depth", labels) == images)


@asynccontextmanager
async def open_rest(
    *,
    with_worker: bool = True,
    drain_timeout_s: float = PATIENCE_S,
    registry: CollectorRegistry | None = None,
    tasks: Sequence[Task] = tuple(Task),
    more: Sequence[Bundle] = (),
    **overrides: Any,  # noqa: ANN401
) -> AsyncIterator[Rest]:
    """A front-end whose settings have the given `overrides`; `with_worker` or with nobody at the worker's address.

    The worker serves a fake model for each of `tasks`, and `more` after them.
    """
    base = fake_settings(**overrides)
    async with fake_worker(base, tasks=tasks, more=more) as worker:
        address = worker.address if with_worker else f"{worker.address}-nobody"
        settings = base.with_changes(worker_address=address)
        async with open_front_end(settings) as front_end:
            listener = socket.create_server(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            stop = asyncio.Event()
            service = create_app(
                front_end.engine,
                front_end.auth,
                settings,
                front_end.metrics,
                registry or front_end.registry,
            )
            serving = asyncio.create_task(serve(service, [listener], stop, drain_timeout_s))
            try:
                async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
                    while with_worker and not front_end.engine.readiness().ready:
                        await asyncio.sleep(0.01)
                    yield Rest(http, front_end.engine, worker, settings, port, stop, serving)
            finally:
                worker.runner.unblocked.set()
                stop.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving


def picture(grey: int = 100, width: int = 80, height: int = 60, form: str = "PNG") -> bytes:
    """An encoded picture of one grey level, which is the class that the fake device gives it."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((height, width, 3), grey, np.uint8)).save(file, form)
    return file.getvalue()


def oversized_png(width: int, height: int) -> bytes:
    """A small PNG with a header of a large one."""
    png = picture()
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def problem_of(body: bytes) -> dict[str, Any]:
    """A problem+json body, its members checked."""
    problem: dict[str, Any] = json.loads(body)
    assert list(problem) == ["type", "title", "status", "detail", "instance", "error"]
    assert problem["error"] == problem["detail"]
    return problem
