"""grpc.health.v1: the readiness of the service and of each model, pushed to watchers.

The package's own servicer does not fit: its copy of the state must be kept up to date, one slow watcher delays every
change, and a watcher that disconnects loses the other watchers' changes.
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
WATCHERS_S = 1.0
"""How long a drain waits until all watchers have received it."""


def add_health(server: grpc.aio.Server, engine: Engine, services: Collection[str]) -> Health:
    """Add the health service to a server; `services` are the names of its other services."""
    health = Health(engine, services)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    return health


class Health(health_pb2_grpc.HealthServicer):
    """The health of the whole server (""), of each gRPC service, and of each model and version under its name."""

    def __init__(self, engine: Engine, services: Collection[str]) -> None:
        self._engine = engine
        self._services = {"", HEALTH, *services}
        self._draining = False
        self._change = asyncio.Event()
        self._watches: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Inside the context, watchers receive the engine's changes."""
        following = asyncio.create_task(self._follow(), name="health")
        try:
            yield
        finally:
            following.cancel()

    async def drain(self) -> None:
        """Report NOT_SERVING from now on. Returns when all watchers have received it, or after `WATCHERS_S`."""
        self._draining = True
        self._changed()
        if self._watches:
            await asyncio.wait(self._watches, timeout=WATCHERS_S)

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:  # noqa: N802
        status = self._status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"unknown service or model {request.service!r}; known: {', '.join(self._known())}",
            )
        return HealthCheckResponse(status=status)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:  # noqa: N802
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        try:
            sent = None
            while True:
                change = self._change  # read before the status, so that no change is missed during a slow write
                status = self._status(request.service)
                if status != sent:
                    await context.write(HealthCheckResponse(status=status))
                    sent = status
                if self._draining:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "this process is shutting down")
                await change.wait()
        finally:
            self._watches.discard(task)

    def _status(self, name: str) -> int:
        if name in self._services:
            ready = self._engine.readiness().ready
        elif (model_ready := self._models().get(name)) is not None:
            ready = model_ready
        else:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if ready and not self._draining else HealthCheckResponse.NOT_SERVING

    def _models(self) -> dict[str, bool]:
        try:
            return self._engine.readiness_of_models()
        except Unavailable:  # no worker has reported its models yet
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
