"""The gRPC front-end process: composition root of `convmlp grpc`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import structlog
from prometheus_client import CollectorRegistry

from service.errors import Overloaded, Refusal
from service.frontend.api.oip.grpc import SERVICE as OPEN_INFERENCE
from service.frontend.api.oip.grpc import add_open_inference
from service.frontend.api.vision.servicer import SERVICE as VISION
from service.frontend.api.vision.servicer import add_vision
from service.frontend.core.auth import Auth, InvalidKeysFile
from service.frontend.core.engine import Engine
from service.frontend.core.frontend import FrontEnd, open_front_end
from service.frontend.core.request_log import RequestLog
from service.frontend.core.tls import CertificateFiles, InvalidCertificates, certificate_files
from service.frontend.grpc.drain import Drain
from service.frontend.grpc.health import HEALTH, Health, add_health
from service.frontend.grpc.receive import Receiver
from service.frontend.grpc.reflection import add_reflection
from service.frontend.grpc.server import KeepAlive, create_server, listen_at, serve_until
from service.observability.exposition import metrics_server
from service.observability.metrics import FrontEndMetrics
from service.observability.tracing import NO_TRACING, Tracing, TracingUnavailable, open_tracing
from service.process import (
    EXIT_CONFIG,
    CannotListen,
    KeptMemory,
    hold_port,
    host_port,
    inherited_socket,
    port_errors,
    run_process,
)
from service.settings import Settings
from service.wire.curve import InsecureWire

SERVICES = (VISION, OPEN_INFERENCE)
PROBES = frozenset(
    f"/{service}/{method}"
    for service, methods in ((HEALTH, ("Check", "Watch")), (OPEN_INFERENCE, ("ServerLive", "ServerReady")))
    for method in methods
)
MESSAGES = KeptMemory(64 << 20, 8 << 20)
"""gRPC buffers messages in small pieces, which would leave gaps among whole ones."""

log = structlog.get_logger(__name__)


def run_grpc(settings: Settings) -> int:
    """Serve gRPC until a signal; the exit status."""
    return run_process("grpc", settings, lambda stop: _serve(settings, stop), MESSAGES)


@dataclass(frozen=True, slots=True)
class Rpc:
    """A server that is not started yet, and what its shutdown needs."""

    server: grpc.aio.Server
    health: Health
    drain: Drain


def create_rpc(
    engine: Engine,
    auth: Auth,
    settings: Settings,
    metrics: FrontEndMetrics,
    keep_alive: KeepAlive | None = None,
    tracing: Tracing = NO_TRACING,
) -> Rpc:
    """The server with all its services."""
    receiver = Receiver(settings, lambda: engine.threads.held_bytes, engine.retry_after_s)
    # Twice the engine's limit, which is reached first: the rest is for messages still arriving, and idle streams.
    max_calls = 2 * settings.max_in_flight

    def refuse() -> Overloaded:
        detail = f"{max_calls} calls are open, which is the limit; end idle streams, or try again later"
        error = Overloaded(detail, engine.retry_after_s(), Refusal.IN_FLIGHT)
        metrics.count_error(error)
        return error

    drain = Drain(receiver, max_calls, PROBES, refuse)
    server = create_server(settings, drain, keep_alive)
    request_log = RequestLog("grpc", metrics, tracing, access_log=settings.access_log)
    add_vision(server, engine, auth, settings, request_log)
    add_open_inference(server, engine, auth, settings, request_log)
    health = add_health(server, engine, SERVICES)
    add_reflection(server, (*SERVICES, HEALTH))
    return Rpc(server, health, drain)


async def _serve(settings: Settings, stop: asyncio.Event) -> int:
    try:
        inherited = inherited_socket()
        with port_errors("--grpc-port", settings.grpc_port):
            held = inherited or hold_port(settings.host, settings.grpc_port)
        files = certificate_files(settings, "grpc")
        with open_tracing(settings, "grpc") as tracing:
            async with open_front_end(settings) as front_end:
                # Under a supervisor REST's /metrics has the metrics of all processes.
                metrics = contextlib.nullcontext() if inherited else serving_metrics(front_end.registry, settings)
                with metrics:
                    await _serve_at(held, front_end, files, settings, stop, tracing)
    except CannotListen as error:
        error.log(settings.host)
    except InvalidCertificates as error:
        log.error("cannot use the TLS certificates", error=str(error))
    except InvalidKeysFile as error:
        log.error("cannot read the API keys", error=str(error))
    except InsecureWire as error:
        log.error("cannot reach the workers", error=str(error))
    except TracingUnavailable as error:
        log.error("cannot trace", error=str(error))
    else:
        return 0
    return EXIT_CONFIG


async def _serve_at(
    held: socket.socket,
    front_end: FrontEnd,
    files: CertificateFiles | None,
    settings: Settings,
    stop: asyncio.Event,
    tracing: Tracing,
) -> None:
    rpc = create_rpc(front_end.engine, front_end.auth, settings, front_end.metrics, tracing=tracing)
    with port_errors("--grpc-port", held.getsockname()[1]):
        address = listen_at(rpc.server, held, files)
    await rpc.server.start()
    log.info("listening", address=address, tls=files is not None)
    await serve_until(stop, rpc.server, rpc.health, rpc.drain, settings.drain_timeout_ms / 1000)


@contextlib.contextmanager
def serving_metrics(registry: CollectorRegistry, settings: Settings) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with port_errors("--grpc-metrics-port", settings.grpc_metrics_port):
            port = stack.enter_context(metrics_server(registry, settings.host, settings.grpc_metrics_port))
        log.info("serving metrics", url=f"http://{host_port(settings.host, port)}/metrics")
        yield
