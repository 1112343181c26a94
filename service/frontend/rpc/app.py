"""What the gRPC front-end serves. Its port, starting and stopping is done outside."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from grpc_reflection.v1alpha import reflection

from service.frontend.engine import Engine
from service.frontend.gate import Gate
from service.frontend.journal import Journal
from service.frontend.oip.servicer import SERVICE as OPEN_INFERENCE
from service.frontend.oip.servicer import add_open_inference
from service.frontend.rpc.drain import Drain
from service.frontend.rpc.health import HEALTH, Health, add_health
from service.frontend.rpc.server import KeepAlive, create_server
from service.frontend.rpc.servicer import SERVICE as VISION
from service.frontend.rpc.servicer import add_vision
from service.metrics import FrontEndMetrics
from service.settings import Settings
from service.spans import NO_TRACING, Tracing

SERVICES = (VISION, OPEN_INFERENCE)


@dataclass(frozen=True, slots=True)
class Rpc:
    """A server that was not started yet, and what is needed to stop it well."""

    server: grpc.aio.Server
    health: Health
    drain: Drain


def create_rpc(
    engine: Engine,
    gate: Gate,
    settings: Settings,
    metrics: FrontEndMetrics,
    keep_alive: KeepAlive | None = None,
    tracing: Tracing = NO_TRACING,
) -> Rpc:
    """The server with all its services."""
    drain = Drain()
    server = create_server(settings, drain, keep_alive)
    journal = Journal("grpc", tracing, access_log=settings.access_log)
    add_vision(server, engine, settings, metrics, gate, journal)
    add_open_inference(server, engine, settings, metrics, gate, journal)
    health = add_health(server, engine, SERVICES)
    reflection.enable_server_reflection((*SERVICES, HEALTH, reflection.SERVICE_NAME), server)
    return Rpc(server, health, drain)
