"""Replicas that run a front-end: REST behind Ray's HAProxy, and gRPC at a port of its node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import structlog
from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.cluster.controller import follow_controller
from service.cluster.replica import node_address, node_addresses, start_process, wire_keys
from service.frontend.core.frontend import FrontEnd, open_front_end
from service.frontend.core.tls import certificate_files
from service.frontend.grpc.server import listen_at, serve_until
from service.frontend.grpc_main import create_rpc, serving_metrics
from service.frontend.http_main import RestApplication
from service.observability.tracing import open_tracing
from service.process import hold_port
from service.settings import Settings
from service.wire.members import Members

REQUEST_ID = b"x-request-id"

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_in_cluster(settings: Settings, groups: Sequence[str]) -> AsyncIterator[FrontEnd]:
    """A front-end whose workers are the replicas of the deployments `groups` of this replica's own application."""
    app = serve.get_replica_context().app_name
    async with open_front_end(settings, wire_keys(settings)) as front_end:
        members = Members(front_end.workers, groups, settings.drain_timeout_ms / 1000)
        async with follow_controller(members, app, groups):
            await members.wait_for_workers()
            yield front_end


class RequestIdOnce:
    """ASGI middleware inside Serve's own, which adds the header X-Request-Id to every answer: leaves out ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [header for header in message["headers"] if header[0] != REQUEST_ID]
            await send(message)

        await self._app(scope, receive, send_without if scope["type"] == "http" else send)


class ClusterRest:
    """The REST application of a replica, made where it starts: the definition travels to the node without it."""

    def __init__(self, settings: Settings, groups: Sequence[str]) -> None:
        self._settings = settings
        self._groups = tuple(groups)
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            start_process(self._settings, "rest")
            settings = self._settings
            if not settings.trusted_proxies:  # HAProxy of every node adds its callers' addresses
                settings = settings.with_changes(trusted_proxies=("127.0.0.1", *node_addresses()))
            opened = partial(open_in_cluster, settings, self._groups)
            self._app = RequestIdOnce(RestApplication(settings, opened))
        await self._app(scope, receive, send)


class FrontPart:
    """The replica's class of REST. `parts` are the other deployments of the application."""

    def __init__(self, *parts: Any) -> None:  # noqa: ANN401  (Ray's handles)
        self._parts = parts


class GrpcPart:
    """The replica's class of gRPC: a server at the settings' port of its node, and its metrics at another."""

    async def __init__(self, settings: Settings, groups: Sequence[str]) -> None:  # type: ignore[misc]  # Ray awaits it
        start_process(settings, "grpc")
        host = node_address()
        settings = settings.with_changes(host=host)
        files = certificate_files(settings, "grpc")
        self._stop = asyncio.Event()
        async with AsyncExitStack() as stack:
            held = stack.enter_context(hold_port(host, settings.grpc_port))
            tracing = stack.enter_context(open_tracing(settings, "grpc"))
            front_end = await stack.enter_async_context(open_in_cluster(settings, groups))
            stack.enter_context(serving_metrics(front_end.registry, settings))
            rpc = create_rpc(front_end.engine, front_end.auth, settings, front_end.metrics, tracing=tracing)
            self._address = listen_at(rpc.server, held, files)
            await rpc.server.start()
            drain_s = settings.drain_timeout_ms / 1000
            self._serving = asyncio.create_task(
                serve_until(self._stop, rpc.server, rpc.health, rpc.drain, drain_s), name="grpc"
            )
            self._open = stack.pop_all()
        log.info("listening", address=self._address)

    def record_replica_metadata(self) -> dict[str, Any]:
        return {"grpc_address": self._address}

    def check_health(self) -> None:
        """Raises RuntimeError: the server ended."""
        if self._serving.done():
            raise RuntimeError("the gRPC server ended")

    async def __del__(self) -> None:
        if hasattr(self, "_serving"):  # else it could not start
            self._stop.set()
            await self._serving
            await self._open.aclose()
