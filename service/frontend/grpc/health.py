"""grpc.health.v1: true readiness, of the service as a whole and of each model, pushed to whoever watches.

Why not the package's own servicer: it is a mirror that someone must keep up to date, one watcher that reads slowly
holds up all changes, and one that leaves takes the others' changes with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from service.errors import Unavailable
from service.frontend.core.engine import Engine
from service.frontend.grpc.status import Context

HEALTH = "grpc.health.v1.Health"
LAST_WORD_S = 1.0
"""How long a drain waits until all watchers have heard of it."""


def add_health(server: grpc.aio.Server, engine: Engine, services: Collection[str]) -> Health:
    """Make the server tell its health; `services` are the names of the others that it has."""
    health = Health(engine, services)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    return health


class Health(health_pb2_grpc.HealthServicer):
    """Tells the health of "" (all there is), of each gRPC service, and of each model under its own name."""

    def __init__(self, engine: Engine, services: Collection[str]) -> None:
        self._engine = engine
        self._services = {"", HEALTH, *services}
        self._draining = False
        self._change = asyncio.Event()
        self._watches: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Watchers hear of the engine's changes within."""
        following = asyncio.create_task(self._follow(), name="health")
        try:
            yield
        finally:
            following.cancel()

    async def drain(self) -> None:
        """From now on nothing is serving. Returns when all watchers were told, or did not listen for a while."""
        self._draining = True
        self._changed()
        if self._watches:
            await asyncio.wait(self._watches, timeout=LAST_WORD_S)

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:  # noqa: N802
        status = self._status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"there is no service and no model {request.service!r} here; known: {', '.join(self._known())}",
            )
        return HealthCheckResponse(status=status)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:  # noqa: N802
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        try:
            told = None
            while True:
                change = self._change  # before looking, so that none is missed while a slow caller is told
                status = self._status(request.service)
                if status != told:
                    await context.write(HealthCheckResponse(status=status))
                    told = status
                if self._draining:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "this process is shutting down")
                await change.wait()
        finally:
            self._watches.discard(task)

    def _status(self, name: str) -> int:
        if name in self._services:
            ready = self._engine.readiness().ready
        elif (model := self._models().get(name)) is not None:
            ready = model
        else:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if ready and not self._draining else HealthCheckResponse.NOT_SERVING

    def _models(self) -> dict[str, bool]:
        try:
            return {model.config.name: model.ready for model in self._engine.models()}
        except Unavailable:  # no worker has said yet what it serves
            return {}

    def _known(self) -> list[str]:
        return [*sorted(self._services - {""}), *self._models()]

    async def _follow(self) -> None:
        while True:
            await self._engine.next_change().wait()
            self._changed()

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
