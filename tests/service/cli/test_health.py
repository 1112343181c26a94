"""`convmlp health` for each part of the service, at that part's own port."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1.health_pb2 import HealthCheckRequest
from prometheus_client import CollectorRegistry

from model.types import Task
from service.cli.health import state_of_worker
from service.frontend.core.tls import TRANSPORTS, CertificateFiles, Transport
from service.frontend.grpc.addresses import is_taken, probe_listeners
from service.frontend.grpc.drain import RESERVED
from service.frontend.grpc.server import listen_at
from service.observability.metrics import WorkerMetrics
from service.settings import Settings
from service.wire.messages import ModelState, Phase, State
from service.wire.worker_endpoint import WorkerEndpoint
from service.worker.worker import Worker
from tests.fakes import FakeRunner, fake_bundle, fake_worker, store_bundle
from tests.service.cli.convmlp_command import Completed, convmlp
from tests.service.frontend.both_transports import open_pair, open_pair_at
from tests.service.frontend.grpc_server import health_of, open_rpc
from tests.service.frontend.rest_server import open_rest

NO_WORKER = "ipc:///tmp/convmlp-no-worker"
READY = State("one", Phase.READY, "ready", 0.0, (ModelState("cats", "1", True, "cpu", "fp32"),), {})


async def health(*arguments: str) -> Completed:
    return await convmlp("health", *arguments)


async def test_parts_that_answer_predictions_are_healthy() -> None:
    """Front-ends with a ready worker are healthy, and so is that worker."""
    async with open_pair() as pair:
        port = str(pair.http.base_url.port)
        assert (await health("rest", "--http-port", port)).status == 0
        assert (await health("serve", "--http-port", port, "--host", "0.0.0.0")).status == 0
        assert (await health("grpc", "--grpc-port", str(pair.rpc.port))).status == 0
        ran = await health("worker", "--worker-address", pair.worker.address)
        assert (ran.status, ran.lines) == (0, ["worker is healthy"])


async def test_front_ends_without_a_worker_are_alive_but_not_healthy() -> None:
    """A front-end without a worker answers no prediction. The message gives the reason."""
    async with open_pair_at(NO_WORKER, Settings(heartbeat_interval_ms=50)) as pair:
        rest = await health("rest", "--http-port", str(pair.http.base_url.port))
        rpc = await health("grpc", "--grpc-port", str(pair.rpc.port))
        alive = await health("--live", "rest", "--http-port", str(pair.http.base_url.port))
        assert (alive.status, alive.lines) == (0, ["rest is alive"])
        assert (await health("grpc", "--grpc-port", str(pair.rpc.port), "--live")).status == 0
    assert (rest.status, rpc.status) == (1, 1)
    assert "there is no worker at the moment" in rest.err
    assert "NOT_SERVING" in rpc.err


async def test_a_missing_part_is_neither_healthy_nor_alive() -> None:
    """The message is one line, never a traceback."""
    for arguments in (
        ("rest", "--http-port", "1"),
        ("grpc", "--grpc-port", "1"),
        ("worker", "--worker-address", NO_WORKER),
    ):
        ran = await health(*arguments)
        assert ran.status == 1
        assert ran.err.startswith(f"convmlp: {arguments[0]} is not healthy: ")
        assert len(ran.err.splitlines()) == 1
    assert "cannot connect to port 1: connection refused" in (await health("rest", "--http-port", "1")).err
    assert "grpc is not alive: " in (await health("--live", "grpc", "--grpc-port", "1")).err


@asynccontextmanager
async def worker_in_state(state: State, folder: Path) -> AsyncIterator[str]:
    """The address of a worker endpoint that answers each greeting with this state."""
    async with WorkerEndpoint(f"ipc://{folder}/worker") as endpoint:
        answering = asyncio.create_task(
            endpoint.run(lambda envelope: endpoint.send_state(envelope.sender, state), lambda: None)
        )
        try:
            yield endpoint.address
        finally:
            answering.cancel()


def _starting(silent_s: float) -> State:
    return State("one", Phase.STARTING, "the worker is loading its models", 2.0, (), {}, silent_s)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (_starting(599.0), "is loading its models"),
        (State("one", Phase.DRAINING, "the worker is shutting down", 2.0, READY.models, {}), "is shutting down"),
        (State("one", Phase.READY, "", 0.0, (ModelState("cats", "1", False, "cpu", "fp32"),), {}), "self-check: cats"),
        (State("one", Phase.READY, "", 0.0, READY.models, {}, 31.0), "the device has not answered for 31 s"),
    ],
    ids=["loading", "draining", "self-check", "silent"],
)
async def test_a_worker_is_as_healthy_as_its_state(state: State, reason: str, tmp_path: Path) -> None:
    """A worker that loads, drains, has a model that fails its self-check, or a silent device, is not healthy. It is
    alive: a restart would not help."""
    async with worker_in_state(READY, tmp_path) as address:
        assert (await health("worker", "--worker-address", address)).status == 0
    async with worker_in_state(state, tmp_path) as address:
        ran = await health("worker", "--worker-address", address)
        alive = await health("worker", "--live", "--worker-address", address)
    assert ran.status == 1
    assert reason in ran.err
    assert (alive.status, alive.lines) == (0, ["worker is alive"])


@pytest.mark.parametrize(
    ("state", "lives"),
    [
        (State("one", Phase.READY, "", 0.0, READY.models, {}, 129.0), True),
        (State("one", Phase.DRAINING, "", 0.0, READY.models, {}, 131.0), False),
        (_starting(601.0), False),
    ],
    ids=["busy", "hung", "hung at its start"],
)
async def test_a_worker_whose_device_hangs_is_not_alive(state: State, lives: bool, tmp_path: Path) -> None:
    """A device silent for longer than a batch and a model's loading may take, or a whole start, hangs."""
    async with worker_in_state(state, tmp_path) as address:
        ran = await health("--live", "worker", "--worker-address", address, "--batch-timeout-ms", "10000")
    assert (ran.status == 0) == lives
    assert lives or "the device has not answered for" in ran.err


async def test_a_device_that_hangs_as_it_is_opened_is_silent(tmp_path: Path) -> None:
    """The silence of a worker that waits for its device counts from its start, so at last it is not alive."""
    settings = Settings(worker_address=(f"ipc://{tmp_path}/worker",))
    opened, stop = threading.Event(), asyncio.Event()

    def open_device(_: Settings) -> FakeRunner:
        assert opened.wait(60)
        return FakeRunner()

    bundle = store_bundle(tmp_path, fake_bundle(Task.CLASSIFY))
    metrics = WorkerMetrics(CollectorRegistry(), {bundle.config.name: "classify"})
    async with WorkerEndpoint(settings.worker_address[0]) as endpoint:
        serving = asyncio.create_task(Worker([bundle], open_device, settings, metrics).run(endpoint, stop))
        try:
            states = [await asyncio.to_thread(state_of_worker, settings) for _ in range(2)]
        finally:
            opened.set()
            stop.set()
            await serving
    assert [state.phase for state in states] == [Phase.STARTING, Phase.STARTING]
    assert 0 < states[0].silent_s < states[1].silent_s


async def test_a_front_end_at_its_limit_of_calls_is_alive() -> None:
    """Some health checks are answered beyond the limit of calls. One more is refused: the front-end is not ready, but
    needs no restart."""
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    async with open_rpc(max_in_flight=1) as rpc, AsyncExitStack() as channels:
        port = rpc.address.rpartition(":")[2]
        watches = []
        for _ in range(2 + RESERVED):
            channel = await channels.enter_async_context(grpc.aio.insecure_channel(rpc.address, own_connection))
            watches.append(health_of(channel).Watch(HealthCheckRequest()))
            await watches[-1].read()
            if len(watches) == 2:
                beyond = await health("grpc", "--grpc-port", port)
        ran, alive = await health("grpc", "--grpc-port", port), await health("--live", "grpc", "--grpc-port", port)
        for watch in watches:
            watch.cancel()
    assert beyond.status == 0
    assert ran.status == 1
    assert "RESOURCE_EXHAUSTED" in ran.err
    assert alive.status == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0"])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_grpc_front_end_at_its_limit_of_connections_is_healthy(host: str, tls: bool, tmp_path: Path) -> None:
    """Whatever address it listens at, its checks have a listener of their own, and so room of their own."""
    files = _certificates(tmp_path / "own", mutual=False) if tls else None
    limit = 8  # a check with TLS takes two connections, and the server notices later that they ended
    async with open_rpc(host=host, max_connections=limit, files=files) as rpc:
        flags = ["--host", host, "--grpc-port", str(rpc.port), *(_flags("grpc", files) if files else [])]
        # 127.0.0.2 is an address of this machine that is no probe's.
        address = "127.0.0.2" if host == "0.0.0.0" else host
        silent = [await asyncio.open_connection(address, rpc.port) for _ in range(limit)]
        beyond, writer = await asyncio.open_connection(address, rpc.port)
        assert await beyond.read() == b""
        for live in ([], ["--live"]) * 2:
            ran = await health("grpc", *flags, *live)
            assert ran.status == 0, ran.err
        for one in (writer, *(one for _, one in silent)):
            one.close()


async def test_front_ends_that_share_a_port_have_one_listener_for_checks() -> None:
    """A second server at the port listens without it, and it is free once the first one has ended."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    async with open_rpc() as first:
        port = str(first.port)
        (listener,) = probe_listeners("127.0.0.1", first.port)
        with socket.socket() as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(("127.0.0.1", first.port))
            assert is_taken(listener)
            assert listen_at(server, held, None) == first.address
        assert (await health("grpc", "--grpc-port", port)).status == 0
    await server.stop(None)
    assert not is_taken(listener)


async def test_a_worker_that_listens_on_all_interfaces_is_checked_on_this_one() -> None:
    """`tcp://0.0.0.0:PORT` is an address to listen at, not one to connect to."""
    async with fake_worker(Settings(), "tcp://127.0.0.1:0", [Task.CLASSIFY]) as worker:
        port = worker.address.rpartition(":")[2]
        for host in ("0.0.0.0", "*"):
            assert (await health("worker", "--insecure-wire", "--worker-address", f"tcp://{host}:{port}")).status == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mtls"])
async def test_with_tls_only_the_front_ends_own_certificate_is_trusted(
    transport: Transport, mutual: bool, tmp_path: Path
) -> None:
    """The certificate is trusted whatever name it is for, and with mTLS it is the client's as well. A server with
    another certificate is not healthy. It is alive: a restart does not repair a certificate."""
    files, others = (_certificates(tmp_path / name, mutual=mutual) for name in ("ours", "others"))
    part = {"http": "rest", "grpc": "grpc"}[transport]
    async with _serving(transport, files) as port:
        address = (f"--{transport}-port", port)
        ours = await health(part, *address, *_flags(transport, files))
        theirs = await health(part, *address, *_flags(transport, others))
        alive = await health("--live", part, *address, *_flags(transport, others))
    assert ours.status == 0, ours.err
    assert theirs.status == 1
    assert "certificate verify failed" in theirs.err
    assert alive.status == 0


@asynccontextmanager
async def _serving(transport: Transport, files: CertificateFiles) -> AsyncIterator[str]:
    """The port of a front-end with these certificates."""
    if transport == "grpc":
        async with open_rpc(files=files) as rpc:
            yield rpc.address.rpartition(":")[2]
    else:
        paths: dict[str, Any] = {f"http_tls_{name}": path for name, path in _named(files).items()}
        async with open_rest(**paths) as rest:
            yield str(rest.port)


def _certificates(folder: Path, *, mutual: bool) -> CertificateFiles:
    folder.mkdir()
    authority = trustme.CA()
    issued = authority.issue_cert("*.vision.example.org")
    files = CertificateFiles(folder / "server.pem", folder / "server.key", folder / "ca.pem" if mutual else None)
    files.certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(files.key)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return files


def _named(files: CertificateFiles) -> dict[str, Path]:
    named = {"certificate": files.certificate, "key": files.key, "client_ca": files.client_ca}
    return {name: path for name, path in named.items() if path is not None}


def _flags(transport: Transport, files: CertificateFiles) -> list[str]:
    return [
        word
        for name, path in _named(files).items()
        for word in (f"--{transport}-tls-{name.replace('_', '-')}", str(path))
    ]


async def test_the_part_must_be_known() -> None:
    """If neither the arguments nor this machine's first process name a part, the message lists the parts."""
    ran = await health()
    assert ran.status == 2
    assert "convmlp health [--live] serve|rest|grpc|worker" in ran.err


async def test_help_needs_no_part() -> None:
    """`convmlp health --help` explains the command; with a part it lists that part's flags."""
    ran = await health("--live", "--help")
    assert (ran.status, ran.err) == (0, "")
    assert "--live" in ran.out.decode()
    ran = await health("rest", "--help")
    assert (ran.status, ran.err) == (0, "")
    assert "--http-port" in ran.out.decode()
