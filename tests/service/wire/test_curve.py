"""The wire between hosts: who may connect with which key, what is refused without one, and the largest frame."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from service.process import EXIT_CONFIG
from service.settings import Settings
from service.types import StoredModel
from service.wire.curve import PLAIN, CurveKeys, InsecureWire, WireOptions, front_end_wire, make_key_file, worker_wire
from service.wire.messages import PROTOCOL, Hello, ListStore, Phase, State, decode_to_front_end, encode
from service.wire.worker_client import WorkerClient
from service.wire.worker_endpoint import Envelope, WorkerEndpoint
from tests.service.cli.convmlp_command import convmlp
from tests.waiting import PATIENCE_S, until

STATE = State("instance", Phase.READY, "", 0.0, (), {})
LOOPBACK = "tcp://127.0.0.1:0"


def new_keys() -> CurveKeys:
    return CurveKeys(*zmq.curve_keypair())


@asynccontextmanager
async def answering(options: WireOptions) -> AsyncIterator[WorkerEndpoint]:
    """A worker's end on TCP that answers each greeting with a state."""
    async with WorkerEndpoint(LOOPBACK, options) as endpoint:

        def on_message(envelope: Envelope) -> None:
            if isinstance(envelope.message, Hello):
                endpoint.send_state(envelope.sender, STATE)
            elif isinstance(envelope.message, ListStore):
                endpoint.send_store(envelope.sender, envelope.message.job, ())

        running = asyncio.create_task(endpoint.run(on_message, endpoint.flush))
        try:
            yield endpoint
        finally:
            running.cancel()


def client_of(endpoint: WorkerEndpoint, options: WireOptions) -> WorkerClient:
    return WorkerClient(endpoint.address, 0.05, 30.0, lambda: None, lambda: None, options)


async def test_the_same_key_file_connects(tmp_path: Path) -> None:
    """Front-ends and workers with one key file of `convmlp wire-key` exchange messages over TCP."""
    ran = await convmlp("wire-key", str(tmp_path / "wire.key"))
    assert ran.status == 0, ran.err
    settings = Settings(wire_key_file=tmp_path / "wire.key")
    async with answering(worker_wire(settings)) as endpoint, client_of(endpoint, front_end_wire(settings)) as client:
        async with asyncio.timeout(PATIENCE_S):
            await client.wait_for_state()
            stored: tuple[StoredModel, ...] = await client.repository(asyncio.get_running_loop().time() + 20)
        assert stored == ()


async def test_the_check_of_a_worker_uses_the_key(tmp_path: Path) -> None:
    """`convmlp health worker` reaches a worker with the worker's own flags, and not without its key file."""
    make_key_file(tmp_path / "key")
    key = ("--wire-key-file", str(tmp_path / "key"))
    async with answering(worker_wire(Settings(wire_key_file=tmp_path / "key"))) as endpoint:
        health = ("health", "worker", "--worker-address", endpoint.address)
        checked = await convmlp(*health, *key)
        assert checked.status == 0, checked.err
        assert (await convmlp(*health)).status == 1


async def handshake(address: str, options: WireOptions) -> int:
    """The event that ends the handshake of a caller."""
    ends = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    with zmq.Context() as context:
        caller = context.socket(zmq.DEALER)
        caller.linger = 0
        monitor = caller.get_monitor_socket(ends | zmq.EVENT_DISCONNECTED)
        options.apply(caller, address, server=False)
        caller.connect(address)
        assert await asyncio.to_thread(monitor.poll, 20_000)
        event = parse_monitor_message(monitor.recv_multipart())["event"]
        caller.disable_monitor()
        monitor.close(0)
        caller.close(0)
    return int(event)


async def test_other_keys_and_none_are_refused() -> None:
    """A caller without keys, with others, or that knows the public key alone, is not admitted; its peers are."""
    keys, other = new_keys(), new_keys()
    knows_public = WireOptions(keys=CurveKeys(keys.public, keys.secret))

    class OtherPair(WireOptions):
        """Has learnt the worker's public key, and has a key pair of its own."""

        def apply(self, socket: zmq.Socket[bytes], address: str, *, server: bool) -> None:
            super().apply(socket, address, server=server)
            socket.curve_publickey, socket.curve_secretkey = other

    async with answering(WireOptions(keys=keys)) as endpoint:
        assert await handshake(endpoint.address, knows_public) == zmq.EVENT_HANDSHAKE_SUCCEEDED
        for options in (PLAIN, WireOptions(keys=other), OtherPair(keys=keys)):
            assert await handshake(endpoint.address, options) != zmq.EVENT_HANDSHAKE_SUCCEEDED
        async with client_of(endpoint, WireOptions(keys=keys)) as client, asyncio.timeout(PATIENCE_S):
            await client.wait_for_state()


async def test_a_front_end_trusts_its_own_key_alone() -> None:
    """A worker with another key, or with none, gets no job of a front-end: the handshake fails at its side."""
    keys = new_keys()
    for options in (PLAIN, WireOptions(keys=new_keys())):
        async with answering(options) as endpoint:
            assert await handshake(endpoint.address, WireOptions(keys=keys)) != zmq.EVENT_HANDSHAKE_SUCCEEDED


async def test_a_frame_beyond_the_bound_costs_its_sender() -> None:
    """A peer that sends more than any legal message has is disconnected; the others go on."""
    async with answering(WireOptions(max_frame_bytes=100_000)) as endpoint, client_of(endpoint, PLAIN) as client:
        async with asyncio.timeout(PATIENCE_S):
            await client.wait_for_state()
        with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as caller:
            caller.linger = 0
            monitor = caller.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            caller.connect(endpoint.address)
            await caller.send_multipart([encode(Hello(PROTOCOL, ())), bytes(99_000)])
            reply = decode_to_front_end((await caller.recv_multipart())[0])
            assert isinstance(reply, State)
            await caller.send_multipart([encode(Hello(PROTOCOL, ())), bytes(101_000)])
            async with asyncio.timeout(PATIENCE_S):
                await monitor.recv_multipart()
            caller.disable_monitor()
            monitor.close(0)
        assert client.phase is Phase.READY
        assert await client.repository(asyncio.get_running_loop().time() + 20) == ()


def test_bounds_are_those_of_the_settings() -> None:
    """The largest answer of the largest picture passes, and the largest input that a queue admits."""
    settings = Settings(max_image_mpx=100, max_queue_mpx=300)
    assert front_end_wire(settings).max_frame_bytes > 2 * 100 * 10**6
    assert 3 * 300 * 10**6 < worker_wire(settings).max_frame_bytes < 2**30
    assert front_end_wire(Settings(max_image_mpx=1)).max_frame_bytes < 2**25


@pytest.mark.parametrize(
    ("address", "stays"),
    [
        ("ipc:///run/worker", True),
        ("tcp://127.0.0.1:5555", True),
        ("tcp://127.9.9.9:5555", True),
        ("tcp://localhost:5555", True),
        ("tcp://[::1]:5555", True),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://*:5555", False),
        ("tcp://worker:5555", False),
        ("tcp://10.0.0.7:5555", False),
        ("tcp://[::]:5555", False),
    ],
)
def test_an_address_on_a_network_needs_keys(address: str, stays: bool, tmp_path: Path) -> None:
    """Without a key file only addresses of this host are accepted, unless the setting declares the network private."""
    make_key_file(tmp_path / "key")
    for build in (front_end_wire, worker_wire):
        for settings in (
            Settings(worker_address=address, wire_key_file=tmp_path / "key"),
            Settings(worker_address=address, insecure_wire=True),
            *([Settings(worker_address=address)] if stays else []),
        ):
            build(settings)
        if not stays:
            with pytest.raises(InsecureWire, match="wire_key_file"):
                build(Settings(worker_address=address))


@pytest.mark.parametrize("part", ["worker", "rest", "grpc"])
async def test_parts_end_without_keys_for_a_network(part: str) -> None:
    """`convmlp worker`, `rest` and `grpc` name the setting, and end with the status of a wrong configuration."""
    ports = ("--http-port", "0", "--grpc-port", "0", "--grpc-metrics-port", "0", "--worker-metrics-port", "0")
    ran = await convmlp(part, "--worker-address", "tcp://0.0.0.0:1", *ports)
    assert ran.status == EXIT_CONFIG
    assert "wire_key_file" in ran.err
    assert "Traceback" not in ran.err


def test_a_key_file_is_secret_and_never_overwritten(tmp_path: Path) -> None:
    """Only its owner may read it, and an existing file is left as it is: its parts would no longer connect."""
    path = tmp_path / "key"
    make_key_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        make_key_file(path)
    assert path.read_bytes() == before


def test_key_files_that_cannot_be_used(tmp_path: Path) -> None:
    """The error names the file and how to make one, and quotes no key."""
    good, other = tmp_path / "good", tmp_path / "other"
    make_key_file(good)
    make_key_file(other)
    lines, other_lines = good.read_text().splitlines(), other.read_text().splitlines()
    secret = lines[-1]
    cases = {
        "missing": None,
        "empty": "",
        "no secret": "\n".join(lines[:-1]),
        "no public": "\n".join([*lines[:-2], secret]),
        "no pair": "\n".join([*lines[:-1], other_lines[-1]]),
        "short": "\n".join([*lines[:-1], '    secret-key = "abc"']),
        "text": "\n".join([*lines[:-1], '    secret-key = "' + "é" * 40 + '"']),
    }
    for name, text in cases.items():
        path = tmp_path / f"case {name}"
        if text is not None:
            path.write_text(text)
        with pytest.raises(InsecureWire, match="expected a file of `convmlp wire-key`") as refused:
            worker_wire(Settings(wire_key_file=path))
        assert str(path) in str(refused.value)
        assert secret.split('"')[1] not in str(refused.value)


async def test_the_wire_of_one_host_takes_no_keys(tmp_path: Path) -> None:
    """A key file changes nothing for a socket file: who may open it decides, and nothing is encrypted."""
    options = WireOptions(keys=new_keys())
    async with WorkerEndpoint(f"ipc://{tmp_path}/worker", options) as endpoint:
        seen: list[Envelope] = []
        running = asyncio.create_task(endpoint.run(seen.append, endpoint.flush))
        async with client_of(endpoint, PLAIN):
            await until(lambda: bool(seen))
        running.cancel()
