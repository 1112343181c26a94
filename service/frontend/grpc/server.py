"""The gRPC server: limits, keep-alive, port, and shutdown."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

import grpc
import structlog

from service.frontend.core.tls import CertificateFiles
from service.frontend.grpc.addresses import is_taken, probe_listeners
from service.frontend.grpc.drain import Drain
from service.frontend.grpc.health import Health
from service.frontend.grpc.tls import server_credentials
from service.process import address_of, connection_limit
from service.settings import Settings

log = structlog.get_logger(__name__)

EXTRA_BYTES = 4 * 2**20
"""A message this much over the limit still gets this service's own error. gRPC itself refuses longer ones by their
announced length, with RESOURCE_EXHAUSTED."""
HANDSHAKE_MS = 10_000
"""Time for the TLS handshake, and for the first frames of HTTP/2."""
IDLE_MS = 600_000
"""A connection without a call for so long is closed. Clients connect again by themselves."""
MAX_OPTION = 2**31 - 1
"""The largest number gRPC accepts; no protobuf message is longer."""
ABORT_S = 2.0
"""Time to send the status of calls that outlast the drain."""

COMPRESSION = {
    "none": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Pings that keep connections open through proxies, and detect a dead peer."""

    interval_ms: int = 30_000
    """Below the idle timeouts of common load balancers, 60 s to 350 s."""
    timeout_ms: int = 10_000
    """The connection of a peer that does not answer a ping for this long is closed, and its calls are cancelled."""
    client_interval_ms: int = 5_000
    """Clients may ping this often, with or without calls. gRPC's default of 5 min disconnects clients that ping every
    10 s to 20 s, a common setting."""


def create_server(settings: Settings, drain: Drain, keep_alive: KeepAlive | None = None) -> grpc.aio.Server:
    """A server without services and without a port. Give `drain` to `serve_until` as well."""
    return grpc.aio.server(
        options=_options(settings, keep_alive or KeepAlive()),
        interceptors=[drain],
        compression=COMPRESSION[settings.grpc_compression],
    )


def _options(settings: Settings, keep_alive: KeepAlive) -> list[tuple[str, int]]:
    listeners = 1 + len(probe_listeners(settings.host, settings.grpc_port))
    options = [
        # This also limits a decompressed message.
        ("grpc.max_receive_message_length", max(settings.max_request_bytes, settings.max_image_bytes) + EXTRA_BYTES),
        # The request's parameters, which have limits, bound the reply.
        ("grpc.max_send_message_length", -1),
        # Of each listener. Further ones are closed at once. gRPC calls this experimental; a test fails if it no longer
        # works.
        ("grpc.max_allowed_incoming_connections", connection_limit(listeners * settings.max_connections) // listeners),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", IDLE_MS),
        ("grpc.max_concurrent_streams", settings.max_in_flight),
        # A call's window stays at 64 KiB until its message is read: see `service.frontend.grpc.receive`.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.so_reuseport", 1),
        ("grpc.keepalive_time_ms", keep_alive.interval_ms),
        ("grpc.keepalive_timeout_ms", keep_alive.timeout_ms),
        ("grpc.http2.ping_timeout_ms", keep_alive.timeout_ms),  # its default of 60 s would outlast the line above
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", keep_alive.client_interval_ms),
    ]
    if settings.grpc_max_connection_age_ms:
        options.append(("grpc.max_connection_age_ms", settings.grpc_max_connection_age_ms))
    if settings.grpc_max_connection_age_grace_ms:
        options.append(("grpc.max_connection_age_grace_ms", settings.grpc_max_connection_age_grace_ms))
    return [(name, min(value, MAX_OPTION)) for name, value in options]


def listen_at(server: grpc.aio.Server, held: socket.socket, files: CertificateFiles | None) -> str:
    """Listen at the port that `held` reserves (see `service.process.hold_port`). Returns its address, `HOST:PORT`.

    Probes on this machine have listeners beside it, and so limits of connections of their own.

    Raises:
        OSError: the port cannot be used.
        InvalidCertificates: the files are invalid now.
    """
    address = address_of(held)
    beside = [one for one in probe_listeners(*held.getsockname()[:2]) if not is_taken(one)]
    for one in (address, *beside):
        try:
            if files is None:
                server.add_insecure_port(one)
            else:  # of each listener its own: gRPC gives the certificate to the first listener alone
                server.add_secure_port(one, server_credentials(files))
        except RuntimeError as error:
            if one == address:
                raise OSError(str(error)) from error
            log.warning("no connections are kept for probes", address=one, error=str(error))
    return address


async def serve_until(
    should_exit: asyncio.Event, server: grpc.aio.Server, health: Health, drain: Drain, drain_timeout_s: float
) -> None:
    """Run a started server until `should_exit`; then finish the calls in flight, and stop it.

    First, watchers of the health service receive NOT_SERVING. From then on no connection and no call is accepted,
    clients receive GOAWAY, and streams read no more messages. A call that is not finished within `drain_timeout_s` ends
    with UNAVAILABLE.
    """
    async with health.following():
        await should_exit.wait()
        await health.drain()
    drain.begin()
    stopping = asyncio.create_task(server.stop(drain_timeout_s + ABORT_S))
    await asyncio.wait({stopping}, timeout=drain_timeout_s)
    drain.give_up()
    await stopping
