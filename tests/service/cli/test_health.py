"""`convmlp health`: true about each part, at its own front door."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1.health_pb2 import HealthCheckRequest
from prometheus_client import CollectorRegistry

from model.types import Task
from service.cli.health_worker import state_of_worker
from service.frontend.grpc.tls import CertificateFiles, server_credentials
from service.observability.metrics import WorkerMetrics
from service.settings import Settings
from service.wire.messages import ModelState, Phase, State
from service.wire.worker_endpoint import WorkerEndpoint
from service.worker.worker import Worker
from tests.fakes import FakeRunner, fake_bundle, fake_worker, store_bundle
from tests.service.cli.command import Ran, convmlp
from tests.service.frontend.both_transports import open_pair, open_pair_at
from tests.service.frontend.grpc_server import health_of, open_rpc

NOBODY = "ipc:///tmp/convmlp-there-is-nobody"
READY = State("one", Phase.READY, "ready", 0.0, (ModelState("cats", "1", True, "cpu", "fp32"),), {})


async def health(*words: str) -> Ran:
    return await convmlp("health", *words)


async def test_parts_that_answer_are_healthy() -> None:
    """Front-ends with a worker that has proven itself, and that worker."""
    async with open_pair() as pair:
        port = str(pair.http.base_url.port)
        assert (await health("rest", "--http-port", port)).status == 0
        assert (await health("serve", "--http-port", port, "--host", "0.0.0.0")).status == 0
        assert (await health("grpc", "--grpc-port", str(pair.rpc.port))).status == 0
        told = await health("worker", "--worker-address", pair.worker.address)
        assert (told.status, told.lines) == (0, ["worker is healthy"])


async def test_front_ends_without_a_worker_are_not() -> None:
    """They listen and answer, but no prediction; the reason is told. They are alive all the same."""
    async with open_pair_at(NOBODY, Settings(heartbeat_interval_ms=50)) as pair:
        rest = await health("rest", "--http-port", str(pair.http.base_url.port))
        rpc = await health("grpc", "--grpc-port", str(pair.rpc.port))
        alive = await health("--live", "rest", "--http-port", str(pair.http.base_url.port))
        assert (alive.status, alive.lines) == (0, ["rest is alive"])
        assert (await health("grpc", "--grpc-port", str(pair.rpc.port), "--live")).status == 0
    assert (rest.status, rpc.status) == (1, 1)
    assert "there is no worker at the moment" in rest.err
    assert "NOT_SERVING" in rpc.err


async def test_where_nobody_is_nothing_is_healthy() -> None:
    """Each part's absence is an answer, in a line, and never a trace; nothing there is alive either."""
    for words in (("rest", "--http-port", "1"), ("grpc", "--grpc-port", "1"), ("worker", "--worker-address", NOBODY)):
        told = await health(*words)
        assert told.status == 1
        assert told.err.startswith(f"convmlp: {words[0]} is not healthy: ")
        assert len(told.err.splitlines()) == 1
    assert "grpc is not alive: " in (await health("--live", "grpc", "--grpc-port", "1")).err


@asynccontextmanager
async def worker_that_says(state: State, folder: Path) -> AsyncIterator[str]:
    """The address of a worker by hand, that greets whoever comes with this."""
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
        (State("one", Phase.READY, "", 0.0, (ModelState("cats", "1", False, "cpu", "fp32"),), {}), "answers: cats"),
        (State("one", Phase.READY, "", 0.0, READY.models, {}, 31.0), "the device has not answered for 31 s"),
    ],
    ids=["loading", "draining", "unproven", "silent"],
)
async def test_a_worker_is_as_healthy_as_it_says(state: State, reason: str, tmp_path: Path) -> None:
    """Loading, draining, with a model that answers wrongly, or with a device that is silent, it is not healthy; but
    alive, for a new one would fare no better."""
    async with worker_that_says(READY, tmp_path) as address:
        assert (await health("worker", "--worker-address", address)).status == 0
    async with worker_that_says(state, tmp_path) as address:
        told = await health("worker", "--worker-address", address)
        alive = await health("worker", "--live", "--worker-address", address)
    assert told.status == 1
    assert reason in told.err
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
    """Beyond what a batch and a model that is put on the device may take, or all of a start, it is wedged."""
    async with worker_that_says(state, tmp_path) as address:
        told = await health("--live", "worker", "--worker-address", address, "--batch-timeout-ms", "10000")
    assert (told.status == 0) == lives
    assert lives or "the device has not answered for" in told.err


async def test_a_device_that_hangs_as_it_is_opened_is_silent(tmp_path: Path) -> None:
    """A worker that waits for its device from its start on is silent for as long, and so not alive at last."""
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


async def test_a_front_end_that_is_full_is_alive() -> None:
    """gRPC refuses calls beyond its bound, health checks too: it is not ready then, but a restart would cost calls."""
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    async with open_rpc(max_in_flight=1) as rpc, grpc.aio.insecure_channel(rpc.address, own_connection) as other:
        watches = [health_of(one).Watch(HealthCheckRequest()) for one in (rpc.channel, other)]
        for watch in watches:
            await watch.read()
        port = rpc.address.rpartition(":")[2]
        told, alive = await health("grpc", "--grpc-port", port), await health("--live", "grpc", "--grpc-port", port)
        for watch in watches:
            watch.cancel()
    assert told.status == 1
    assert "RESOURCE_EXHAUSTED" in told.err
    assert alive.status == 0


async def test_a_worker_that_listens_everywhere_is_found_here() -> None:
    """`tcp://0.0.0.0:PORT` is an address to listen at, not one to ask."""
    async with fake_worker(Settings(), "tcp://127.0.0.1:0", [Task.CLASSIFY]) as worker:
        port = worker.address.rpartition(":")[2]
        for host in ("0.0.0.0", "*"):
            assert (await health("worker", "--worker-address", f"tcp://{host}:{port}")).status == 0


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mtls"])
async def test_with_tls_the_front_end_is_known_by_its_certificate(mutual: bool, tmp_path: Path) -> None:
    """Its own certificate is trusted whatever name it is for; where callers must show one, that one is shown. What
    has another certificate at that port is not the front-end; but it lives, and a restart mends no certificate."""
    files, others = (_certificates(tmp_path / name, mutual=mutual) for name in ("ours", "others"))
    async with open_rpc(credentials=server_credentials(files)) as rpc:
        ours = await health("grpc", "--grpc-port", rpc.address.rpartition(":")[2], *_flags(files))
        theirs = await health("grpc", "--grpc-port", rpc.address.rpartition(":")[2], *_flags(others))
        alive = await health("--live", "grpc", "--grpc-port", rpc.address.rpartition(":")[2], *_flags(others))
    assert ours.status == 0, ours.err
    assert theirs.status == 1
    assert "certificate verify failed" in theirs.err
    assert alive.status == 0


def _certificates(folder: Path, *, mutual: bool) -> CertificateFiles:
    folder.mkdir()
    authority = trustme.CA()
    issued = authority.issue_cert("*.vision.example.org")
    files = CertificateFiles(folder / "server.pem", folder / "server.key", folder / "ca.pem" if mutual else None)
    files.certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(files.key)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return files


def _flags(files: CertificateFiles) -> list[str]:
    flags = ["--grpc-tls-certificate", str(files.certificate), "--grpc-tls-key", str(files.key)]
    return flags if files.client_ca is None else [*flags, "--grpc-tls-client-ca", str(files.client_ca)]


async def test_it_needs_to_know_which_part() -> None:
    """Where neither the words nor this machine's first process name a part, it says what to say."""
    told = await health()
    assert told.status == 2
    assert "convmlp health serve|rest|grpc|worker" in told.err
