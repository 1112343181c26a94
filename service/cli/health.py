"""`convmlp health`: whether a part of the service is healthy, or with `--live`, whether it is alive.

Made for HEALTHCHECK in a container: without arguments it checks the part that the container runs, with that part's
flags. Healthy means that the part answers predictions. Alive means that it needs no restart: a part that starts,
drains, has no worker or has a damaged model is alive; one whose event loop or device hangs is not.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from service.cli.console import print_error, print_output
from service.cli.flags import settings_of_flags
from service.cli.parts import SETTINGS_OF
from service.frontend.core.tls import (
    CertificateFiles,
    InvalidCertificates,
    Transport,
    certificate_files,
    own_client_context,
)
from service.settings import Settings

if TYPE_CHECKING:
    from service.wire.messages import State

LIVE = "--live"

TIMEOUT_S = 5.0
"""How long each reply may take."""
MAX_SILENCE_S = 30.0
"""The longest time since the device last answered. An idle worker pings it every few seconds."""
MAX_START_S = 600.0
"""How long a worker may take to open its device and to load and verify its models."""
MAX_LOAD_S = 120.0
"""How long a worker may take to load a further model onto the device, in addition to a batch's limit."""


class Part(StrEnum):
    """The parts of the service, named as their commands."""

    SERVE = "serve"
    REST = "rest"
    GRPC = "grpc"
    WORKER = "worker"


HELP = f"""usage: convmlp health [--live] [{"|".join(Part)} [--FLAG VALUE …]]

Check whether a part of the service is healthy: whether it answers predictions. The flags are those
that the part was started with. Without a part: the part that this container runs, with its flags.

options:
  --live      Check only whether the part is alive: whether it can work without a restart.
  -h, --help  Show this message and exit.

Exit status: 0 healthy (alive); 1 not healthy (not alive); 2 no part, wrong flag or setting."""


class CheckFailed(Exception):
    """The part is not healthy, or not alive; the message has the reason."""


def run_health(arguments: Sequence[str]) -> int:
    """Check one part and print the result.

    Args:
        arguments: the part's command and flags, as it was started; none for the part that this container runs.
            `--live` anywhere checks only that it is alive.

    Returns:
        The exit status: 0 if the check passed, else 1.

    Raises:
        typer.Exit: with status 2, if no part is named or a flag is wrong.
    """
    live = LIVE in arguments
    arguments = [argument for argument in arguments if argument != LIVE]
    if arguments and arguments[0] in ("-h", "--help"):
        print_output(HELP)
        return 0
    part, flags = _part_and_flags(arguments or _command_of_this_container())
    wanted = "alive" if live else "healthy"
    command, about = f"convmlp health {part}", "Check this part. The flags are its own."
    settings = settings_of_flags(flags, command, about, listed=SETTINGS_OF[part])
    try:
        match part:
            case Part.SERVE | Part.REST:
                _check_rest(settings, live=live)
            case Part.GRPC:
                _check_grpc(settings, live=live)
            case Part.WORKER:
                _check_worker(settings, live=live)
    except (CheckFailed, OSError) as error:
        print_error(f"{part} is not {wanted}: {error}")
        return 1
    print_output(f"{part} is {wanted}")
    return 0


def _command_of_this_container() -> list[str]:
    """The command line of the first process: the part itself, or an init with the part as its arguments."""
    return Path("/proc/1/cmdline").read_text(encoding="utf-8").removesuffix("\0").split("\0")


def _part_and_flags(arguments: Sequence[str]) -> tuple[Part, list[str]]:
    """The first part among the arguments, and the arguments behind it.

    Raises:
        typer.Exit: with status 2, after an error message, if there is none.
    """
    for position, argument in enumerate(arguments, start=1):
        if argument in tuple(Part):
            return Part(argument), list(arguments[position:])
    print_error(f"which part? convmlp health [--live] {'|'.join(Part)}, and the flags that it was started with")
    raise typer.Exit(2)


def _check_rest(settings: Settings, *, live: bool) -> None:
    host, port = _reachable(settings.host), settings.http_port
    connection: http.client.HTTPConnection
    if (files := _certificates(settings, "http")) is None:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=own_client_context(files))
    try:
        connection.request("GET", "/livez" if live else "/readyz")
        response = connection.getresponse()
        body = response.read()
    except http.client.HTTPException as error:
        raise CheckFailed(f"the reply at port {port} is not HTTP: {error!r}") from None
    except TimeoutError:
        raise CheckFailed(f"no reply at port {port} within {TIMEOUT_S:g} s") from None
    except ssl.SSLCertVerificationError:
        if live:
            return  # the server answers, and a restart does not repair a certificate
        raise
    except OSError as error:
        raise _not_connected(port, error) from None
    finally:
        connection.close()
    if response.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        raise CheckFailed(json.loads(body).get("detail", ""))
    if response.status != http.HTTPStatus.OK:
        raise CheckFailed(f"HTTP status {response.status}")


def _check_grpc(settings: Settings, *, live: bool) -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are printed here, in one line
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    from service.frontend.grpc.addresses import connect_for_probe

    port = settings.grpc_port
    try:
        connection, address = connect_for_probe(settings.host, port, TIMEOUT_S)
    except OSError as error:
        raise _not_connected(port, error) from None
    if (files := _certificates(settings, "grpc")) is None:
        connection.close()
        channel = grpc.insecure_channel(address)
    else:
        # The server's own certificate is the trusted one; with mTLS it is also this client's.
        chain = files.certificate.read_bytes()
        key = files.key.read_bytes() if files.client_ca else None
        credentials = grpc.ssl_channel_credentials(chain, key, chain if key else None)
        try:
            name = _certified_name(files, connection)
        except ssl.SSLCertVerificationError:
            if live:
                return  # the server answers, and a restart does not repair a certificate
            raise
        channel = grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", name)])
    with channel:
        health: Any = HealthStub(channel)
        try:
            status = health.Check(HealthCheckRequest(), timeout=TIMEOUT_S).status
        except grpc.RpcError as error:
            if live and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                return  # it answers: it is at its limit of calls
            raise CheckFailed(f"no reply at port {port}: {error.code().name}: {error.details()}") from None
    if not live and status != HealthCheckResponse.SERVING:
        raise CheckFailed(f"gRPC health status {HealthCheckResponse.ServingStatus.Name(status)}")


def _certificates(settings: Settings, transport: Transport) -> CertificateFiles | None:
    """Raises CheckFailed where the settings of TLS are incomplete."""
    try:
        return certificate_files(settings, transport)
    except InvalidCertificates as error:
        raise CheckFailed(str(error)) from None


def _not_connected(port: int, error: OSError) -> CheckFailed:
    return CheckFailed(f"cannot connect to port {port}: {(error.strerror or str(error)).lower()}")


def _certified_name(files: CertificateFiles, raw: socket.socket) -> str:
    """A name that the server's certificate is for; it is rarely for the address that is called here. Closes `raw`."""
    with raw, own_client_context(files).wrap_socket(raw) as connection:
        certificate: dict[str, Any] = connection.getpeercert() or {}
    for _, name in certificate.get("subjectAltName", ()):
        return str(name).replace("*", "any")
    raise CheckFailed("the server's certificate has no subjectAltName, so no client accepts it")


def _check_worker(settings: Settings, *, live: bool) -> None:
    """Raises CheckFailed if the worker cannot answer for all of its models, or with `live` if it needs a restart."""
    state = state_of_worker(settings)
    from service.wire.messages import Phase

    if live:
        # A worker whose batch hangs exits by itself, unless its exit hangs as well; one whose device hangs while it
        # loads a model does not.
        starting = state.phase is Phase.STARTING
        limit_s = MAX_START_S if starting else settings.batch_timeout_ms / 1000 + MAX_LOAD_S
    else:
        if state.phase is not Phase.READY:
            raise CheckFailed(state.reason)
        if unverified := ", ".join(model.name for model in state.models if not model.ready):
            raise CheckFailed(f"models that fail their self-check: {unverified}")
        limit_s = MAX_SILENCE_S
    if state.silent_s > limit_s:
        raise CheckFailed(f"the device has not answered for {state.silent_s:.0f} s")


def state_of_worker(settings: Settings) -> State:
    """The worker's reply to a greeting. Raises CheckFailed if there is none."""
    # The wire imports NumPy, whose OpenBLAS would start a thread per core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import asyncio

    from service.wire.addresses import ask
    from service.wire.curve import InsecureWire, front_end_wire
    from service.wire.messages import (
        PROTOCOL,
        UPDATE_BOTH,
        Hello,
        MalformedMessage,
        ProtocolMismatch,
        State,
        decode_to_front_end,
        encode,
    )
    from service.wire.transport import ConnectionFailed

    if not settings.worker_address:
        raise CheckFailed("--worker-address or CONVMLP_WORKER_ADDRESS is required")
    # A worker that listens on all interfaces is reachable on this one.
    address = re.sub(r"^tcp://(\*|0\.0\.0\.0)", "tcp://127.0.0.1", settings.worker_address[0])
    try:
        options = front_end_wire(settings)
    except InsecureWire as error:
        raise CheckFailed(str(error)) from None
    try:
        reply = decode_to_front_end(asyncio.run(ask(address, options, encode(Hello(PROTOCOL, ())), TIMEOUT_S)))
    except TimeoutError:
        raise CheckFailed(f"no reply at {address} within {TIMEOUT_S:g} s") from None
    except ConnectionFailed as error:
        raise CheckFailed(f"the worker at {address} cannot be used: {error}") from None
    except MalformedMessage as error:
        raise CheckFailed(f"the reply at {address} is of another protocol: {error}") from None
    if isinstance(reply, ProtocolMismatch):
        raise CheckFailed(
            f"the worker at {address} speaks protocol {reply.protocol}, this command {PROTOCOL}; {UPDATE_BOTH}"
        )
    if not isinstance(reply, State):
        raise CheckFailed(f"the worker replies {type(reply).__name__} to a greeting")
    return reply


def _reachable(host: str) -> str:
    """The address at which this machine reaches a part that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
