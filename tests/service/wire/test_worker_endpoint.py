"""A worker's address: its socket's file is made again when something deleted it; where it cannot listen."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import structlog

from service.wire.messages import PROTOCOL, Hello, ProtocolMismatch, encode
from service.wire.worker_endpoint import AddressUnavailable, Envelope, WorkerEndpoint
from tests.service.wire.raw_front_end import RawFrontEnd
from tests.waiting import until

HELLO = encode(Hello(PROTOCOL, ()))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="convmlp-test-") as name:
        folder = Path(name) / "run"
        folder.mkdir()
        yield folder


async def test_a_deleted_socket_is_made_again(folder: Path) -> None:
    """Connections from before live on, and new ones are accepted, once the socket's folder exists again."""
    file = folder / "worker"
    received: list[Envelope] = []
    async with WorkerEndpoint(f"ipc://{file}") as endpoint:
        serving = asyncio.create_task(endpoint.run(received.append, lambda: None))
        async with RawFrontEnd(endpoint.address) as old:
            old.send(HELLO)
            await until(lambda: len(received) == 1)
            shutil.rmtree(folder)
            old.send(HELLO)
            await until(lambda: len(received) == 2)
            await asyncio.to_thread(folder.mkdir)
            await until(file.exists)
            async with RawFrontEnd(endpoint.address) as new:
                for connection in (old, new):
                    connection.send(HELLO)
                await until(lambda: len(received) == 4)
        assert len({envelope.sender for envelope in received}) == 2
        serving.cancel()


async def test_a_greeting_in_another_protocol_is_answered_with_this_one(folder: Path) -> None:
    """Whatever else a later Hello has, its front-end learns this worker's protocol; the log has each reason once."""
    later = {"type": "hello", "protocol": PROTOCOL + 1, "knows": {}, "more": [1]}
    with structlog.testing.capture_logs() as logged:
        async with WorkerEndpoint(f"ipc://{folder / 'worker'}") as endpoint:
            serving = asyncio.create_task(endpoint.run(lambda _: None, lambda: None))
            async with RawFrontEnd(endpoint.address) as front_end:
                for _ in range(3):
                    front_end.send(b"garbage")
                    front_end.send(msgspec.msgpack.encode(later))
                    assert await front_end.receive() == ProtocolMismatch(PROTOCOL)
            serving.cancel()
    assert len(logged) == 2
    assert f"a front-end speaks protocol {PROTOCOL + 1}, this worker {PROTOCOL}" in logged[1]["error"]


async def test_an_address_where_nothing_can_listen_is_named(tmp_path: Path) -> None:
    """A worker that cannot listen reports where and why, over either transport."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for address, reason in (
            (f"ipc://{tmp_path}/missing/w", "No such file"),
            (f"ipc://{tmp_path}/{'long' * 30}", "path too long"),
            (f"tcp://127.0.0.1:{taken.getsockname()[1]}", "in use"),
        ):
            with pytest.raises(AddressUnavailable, match=f"{re.escape(address)}: .*{reason}"):
                async with WorkerEndpoint(address):
                    pass
