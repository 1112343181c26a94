"""The gRPC front-end process: composition root of `convmlp grpc`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import grpc
import structlog
from prometheus_client import CollectorRegistry, start_http_server

from service.frontend.keys import KeysUnusable
from service.frontend.process import FrontEnd, open_front_end
from service.frontend.rpc.app import create_rpc
from service.frontend.rpc.server import listen_at, serve_until
from service.frontend.rpc.tls import CertificatesUnusable, certificate_files, server_credentials
from service.process import EXIT_CONFIG, hold_port, inherited_socket, run_process
from service.settings import Settings
from service.spans import Tracing
from service.tracing import TracingUnavailable, open_tracing

log = structlog.get_logger(__name__)


class CannotListen(Exception):
    """A port cannot be had."""

    def __init__(self, port: int, reason: str) -> None:
        super().__init__(f"port {port}: {reason}")
        self.port = port
        self.reason = reason


def run_grpc(settings: Settings) -> int:
    """Serve gRPC until a signal; the exit status."""
    return run_process("grpc", settings, lambda stop: _serve(settings, stop))


async def _serve(settings: Settings, stop: asyncio.Event) -> int:
    try:
        supervised = inherited_socket()
        with _opening(settings.grpc_port):
            held = supervised or hold_port(settings.host, settings.grpc_port)
        files = certificate_files(settings)
        credentials = server_credentials(files) if files else None
        with open_tracing(settings, "grpc") as tracing:
            async with open_front_end(settings) as front_end:
                # Under a supervisor all processes tell their metrics together, at REST's /metrics.
                telling = contextlib.nullcontext() if supervised else _telling_metrics(front_end.registry, settings)
                with telling:
                    await _serve_at(held, front_end, credentials, settings, stop, tracing)
    except CannotListen as error:
        log.error("cannot listen", host=settings.host, port=error.port, error=error.reason)
    except CertificatesUnusable as error:
        log.error("cannot use the TLS certificates", error=str(error))
    except KeysUnusable as error:
        log.error("cannot read the API keys", error=str(error))
    except TracingUnavailable as error:
        log.error("cannot trace", error=str(error))
    else:
        return 0
    return EXIT_CONFIG


async def _serve_at(
    held: socket.socket,
    front_end: FrontEnd,
    credentials: grpc.ServerCredentials | None,
    settings: Settings,
    stop: asyncio.Event,
    tracing: Tracing,
) -> None:
    rpc = create_rpc(front_end.engine, front_end.gate, settings, front_end.metrics, tracing=tracing)
    with _opening(held.getsockname()[1]):
        address = listen_at(rpc.server, held, credentials)
    await rpc.server.start()
    log.info("listening", address=address, tls=credentials is not None)
    await serve_until(stop, rpc.server, rpc.health, rpc.drain, settings.drain_timeout_ms / 1000)


@contextlib.contextmanager
def _telling_metrics(registry: CollectorRegistry, settings: Settings) -> Iterator[None]:
    with _opening(settings.grpc_metrics_port):
        exporter, _ = start_http_server(settings.grpc_metrics_port, settings.host, registry)
    log.info("telling metrics", url=f"http://{settings.host}:{exporter.server_port}/metrics")
    try:
        yield
    finally:
        exporter.shutdown()
        exporter.server_close()


@contextlib.contextmanager
def _opening(port: int) -> Iterator[None]:
    """An OSError within is a port that cannot be had."""
    try:
        yield
    except OSError as error:
        raise CannotListen(port, error.strerror or str(error)) from error
