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
import re
import socket
import ssl
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer
import zmq

from service.cli.words import complain, settings_or_exit
from service.settings import Settings
from service.wire.messages import PROTOCOL, Hello, MalformedMessage, Phase, State, decode_to_front_end, encode

TIMEOUT_S = 5.0
MAX_SILENCE_S = 30.0
"""How long ago the device may have answered last. An idle worker asks it every few seconds."""
START_S = 600.0
"""How long a worker may take, from when it has opened the device, to load its models and have them prove themselves."""
TAKE_IN_S = 120.0
"""How long it may take to put a further model on the device, beyond what a batch may take."""
LIVE = "--live"


class Part(StrEnum):
    """By the names of their commands."""

    SERVE = "serve"
    REST = "rest"
    GRPC = "grpc"
    WORKER = "worker"


class Unhealthy(Exception):
    """The part does not do its work, or is not alive; the message says why."""


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
                _ask_worker(settings, live=live)
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


def _ask_worker(settings: Settings, *, live: bool) -> None:
    state = _state_of_worker(settings)
    if live:
        _require_sign_of_life(state, settings.batch_timeout_ms / 1000)
        return
    if state.phase is not Phase.READY:
        raise Unhealthy(state.reason)
    unproven = ", ".join(model.name for model in state.models if not model.ready)
    if unproven:
        raise Unhealthy(f"these models do not give their committed answers: {unproven}")
    if state.silent_s > MAX_SILENCE_S:
        raise Unhealthy(f"the device has not answered for {state.silent_s:.0f} s")


def _require_sign_of_life(state: State, batch_timeout_s: float) -> None:
    """That the worker answered is half of it. One whose batch hangs ends by itself, unless that end hangs as well; one
    whose device hangs as it takes in a model does not."""
    limit_s = START_S if state.phase is Phase.STARTING else batch_timeout_s + TAKE_IN_S
    if state.silent_s > limit_s:
        raise Unhealthy(f"the device has not answered for {state.silent_s:.0f} s")


def _state_of_worker(settings: Settings) -> State:
    if not settings.worker_address:
        raise Unhealthy("--worker-address is needed, or CONVMLP_WORKER_ADDRESS")
    # One that listens everywhere listens here as well.
    address = re.sub(r"^tcp://(\*|0\.0\.0\.0)", "tcp://127.0.0.1", settings.worker_address[0])
    with zmq.Context() as context, context.socket(zmq.DEALER) as wire:
        wire.linger = 0
        wire.connect(address)
        wire.send(encode(Hello(PROTOCOL, ())))
        if not wire.poll(int(TIMEOUT_S * 1000)):
            raise Unhealthy(f"no answer at {address} within {TIMEOUT_S:g} s")
        try:
            answer = decode_to_front_end(wire.recv_multipart()[0])
        except MalformedMessage as error:
            raise Unhealthy(f"what is at {address} does not speak this protocol: {error}") from None
    if not isinstance(answer, State):
        raise Unhealthy(f"the worker answers {type(answer).__name__} to a greeting")
    return answer


def _near(host: str) -> str:
    """Where a part that listens at `host` is found from here."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
