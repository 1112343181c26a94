"""The gRPC server: its bounds, its connections' lives, its port, and how it is stopped."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

import grpc

from service.frontend.grpc.drain import Drain
from service.frontend.grpc.health import Health
from service.process import address_of
from service.settings import Settings

ROOM_BYTES = 32 * 2**20
"""What a message may have beyond the longest that is answered, so that a little too much is refused in the words of
the errors table. gRPC itself refuses what is longer still, by its announced length, with RESOURCE_EXHAUSTED."""
MAX_OPTION = 2**31 - 1
"""gRPC takes no larger numbers; no message of protobuf's is longer."""
GIVEN_UP_ANSWERS_S = 2.0
"""For calls that outlasted the drain to be told so."""

COMPRESSION = {
    "none": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Pings that keep a connection known to whatever lies between, and find out when the other end is gone."""

    interval_ms: int = 30_000
    """Below the idle time-outs of common load balancers, 60 s to 350 s."""
    timeout_ms: int = 10_000
    """A peer that does not answer a ping for this long is gone, and its calls are cancelled."""
    callers_interval_ms: int = 5_000
    """Callers may ping as often as this, with calls in hand or without. gRPC's own bound of 5 min would have clients
    that ping every 10 s to 20 s, as many are set up to, thrown out for too many pings."""


def create_server(settings: Settings, drain: Drain, keep_alive: KeepAlive | None = None) -> grpc.aio.Server:
    """A server without services and without a port. Give `drain` to `serve_until` as well."""
    return grpc.aio.server(
        options=_options(settings, keep_alive or KeepAlive()),
        interceptors=[drain],
        # As many again as may be in hand: for messages on their way in, idle streams, and health. The engine's own
        # bound is met first, and refuses in better words.
        maximum_concurrent_rpcs=2 * settings.max_in_flight,
        compression=COMPRESSION[settings.grpc_compression],
    )


def _options(settings: Settings, keep_alive: KeepAlive) -> list[tuple[str, int]]:
    options = [
        # Also the bound on what a compressed message may become.
        ("grpc.max_receive_message_length", max(settings.max_request_bytes, settings.max_image_bytes) + ROOM_BYTES),
        # What was asked for, which is bounded, decides how long a reply is.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", settings.max_in_flight),
        ("grpc.so_reuseport", 1),
        ("grpc.keepalive_time_ms", keep_alive.interval_ms),
        ("grpc.keepalive_timeout_ms", keep_alive.timeout_ms),
        ("grpc.http2.ping_timeout_ms", keep_alive.timeout_ms),  # else a minute, whatever the line above says
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", keep_alive.callers_interval_ms),
    ]
    if settings.grpc_max_connection_age_ms:
        options.append(("grpc.max_connection_age_ms", settings.grpc_max_connection_age_ms))
    if settings.grpc_max_connection_age_grace_ms:
        options.append(("grpc.max_connection_age_grace_ms", settings.grpc_max_connection_age_grace_ms))
    return [(name, min(value, MAX_OPTION)) for name, value in options]


def listen_at(server: grpc.aio.Server, held: socket.socket, credentials: grpc.ServerCredentials | None) -> str:
    """Give the server the port that `held` holds (see `service.process.hold_port`); its address, `HOST:PORT`.

    Raises:
        OSError: the port cannot be had.
    """
    address = address_of(held)
    try:
        if credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(str(error)) from error
    return address


async def serve_until(
    should_exit: asyncio.Event, server: grpc.aio.Server, health: Health, drain: Drain, drain_timeout_s: float
) -> None:
    """Let a started server serve until `should_exit`; then finish the calls in hand, and stop it.

    Watchers of the health service are told first. From then on no connection and no call is accepted, callers are
    told to go elsewhere (GOAWAY), and streams take in no more messages. A call that is not finished within
    `drain_timeout_s` is told UNAVAILABLE.
    """
    async with health.following():
        await should_exit.wait()
        await health.drain()
    drain.begin()
    stopping = asyncio.create_task(server.stop(drain_timeout_s + GIVEN_UP_ANSWERS_S))
    await asyncio.wait({stopping}, timeout=drain_timeout_s)
    drain.give_up()
    await stopping
