"""`convmlp health`: whether a part of the service does its work, asked at its own front door.

Made for HEALTHCHECK in a container: without words it asks the part that the container runs, by the words that this
was started with. Healthy means that predictions are answered, not only that a process is there. With `--live` it asks
for less: whether the part can still do its work, or only a new process would. One that loads, drains, lacks a worker
or has a bad model is alive; one whose loop or device hangs is not.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from service.cli.unhealthy import TIMEOUT_S, Unhealthy
from service.cli.words import complain, settings_or_exit
from service.settings import Settings

LIVE = "--live"


class Part(StrEnum):
    """By the names of their commands."""

    SERVE = "serve"
    REST = "rest"
    GRPC = "grpc"
    WORKER = "worker"


def run_health(words: Sequence[str]) -> int:
    """Ask one part, and say what came of it; the exit status, 0 where it is healthy.

    Args:
        words: the part's command and flags, as it was started; none for what this container runs. `--live` anywhere
            asks only whether it is alive.
    """
    live = LIVE in words
    part, flags = _part_of([word for word in words if word != LIVE] or _words_of_this_container())
    wanted = "alive" if live else "healthy"
    settings = settings_or_exit(_cli_parse_args=flags, _cli_prog_name=f"convmlp health {part}")
    try:
        match part:
            case Part.SERVE | Part.REST:
                _ask_rest(settings, live=live)
            case Part.GRPC:
                _ask_grpc(settings, live=live)
            case Part.WORKER:
                # It is asked in the wire's words, and with them comes NumPy: not with a thread a core for so little.
                os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
                from service.cli.health_worker import ask_worker

                ask_worker(settings, live=live)
    except (Unhealthy, OSError) as error:
        complain(f"{part} is not {wanted}: {error}")
        return 1
    typer.echo(f"{part} is {wanted}")
    return 0


def _words_of_this_container() -> list[str]:
    """What the first process was started with: the part itself, or an init in front of it."""
    return Path("/proc/1/cmdline").read_text(encoding="utf-8").removesuffix("\0").split("\0")


def _part_of(words: Sequence[str]) -> tuple[Part, list[str]]:
    """The part that is named first, and the words behind it.

    Raises:
        typer.Exit: with status 2, after saying so, where none is named.
    """
    for place, word in enumerate(words, start=1):
        if word in tuple(Part):
            return Part(word), list(words[place:])
    complain(f"say which part: convmlp health {'|'.join(Part)}, with the flags that it was started with")
    raise typer.Exit(2)


def _ask_rest(settings: Settings, *, live: bool) -> None:
    connection = http.client.HTTPConnection(_near(settings.host), settings.http_port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/livez" if live else "/readyz")
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise Unhealthy(f"what is at port {settings.http_port} does not speak HTTP: {error!r}") from None
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise Unhealthy(json.loads(body).get("detail", "") if answer.status == 503 else f"it answers {answer.status}")


def _ask_grpc(settings: Settings, *, live: bool) -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is told here, in a line
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    host, port = _near(settings.host), settings.grpc_port
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if settings.grpc_tls_certificate is None:
        channel = grpc.insecure_channel(address)
    else:
        # The server is known by the certificate that it was given, and where callers must show one, so is this one.
        chain = settings.grpc_tls_certificate.read_bytes()
        key = settings.grpc_tls_key.read_bytes() if settings.grpc_tls_client_ca and settings.grpc_tls_key else None
        credentials = grpc.ssl_channel_credentials(chain, key, chain if key else None)
        try:
            name = _certified_name(settings, host)
        except ssl.SSLCertVerificationError:
            if live:
                return  # it answers; what its certificate lacks, such as time, no new process mends
            raise
        channel = grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", name)])
    with channel:
        health: Any = HealthStub(channel)
        try:
            status = health.Check(HealthCheckRequest(), timeout=TIMEOUT_S).status
        except grpc.RpcError as error:
            if live and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                return  # full of calls, as it can say
            raise Unhealthy(f"no answer at port {port}: {error.code().name}: {error.details()}") from None
    if not live and status != HealthCheckResponse.SERVING:
        raise Unhealthy(f"it answers {HealthCheckResponse.ServingStatus.Name(status)}")


def _certified_name(settings: Settings, host: str) -> str:
    """A name that the server's certificate is for: it is hardly ever for the address that is asked here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(settings.grpc_tls_certificate)
    if settings.grpc_tls_client_ca is not None and settings.grpc_tls_certificate is not None:
        context.load_cert_chain(settings.grpc_tls_certificate, settings.grpc_tls_key)
    with (
        socket.create_connection((host, settings.grpc_port), TIMEOUT_S) as raw,
        context.wrap_socket(raw) as connection,
    ):
        certificate: dict[str, Any] = connection.getpeercert() or {}
    for _, name in certificate.get("subjectAltName", ()):
        return str(name).replace("*", "any")
    raise Unhealthy("the server's certificate names no host (subjectAltName), so no caller can trust it")


def _near(host: str) -> str:
    """Where a part that listens at `host` is found from here."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
