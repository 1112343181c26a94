"""Unix sockets between front-ends and workers: foreign, oversized, stuck and killed peers, and the socket's file."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import structlog
import zmq

from service.wire.addresses import open_listener
from service.wire.curve import WireOptions
from service.wire.message_stream import BUFFER_BYTES, FOREIGN, GREETING, MAX_UNSENT_BYTES
from service.wire.transport import HEADER_BYTES, Frames, Listener, NotSent
from service.wire.unix_socket import UnixListener
from tests.service.wire.raw_front_end import RawFrontEnd
from tests.waiting import PATIENCE_S, until

MAX_FRAME = 1000


@asynccontextmanager
async def listening(file: Path) -> AsyncIterator[tuple[Listener, list[bytes]]]:
    """A listener, and the headers that it receives."""
    headers: list[bytes] = []

    def take(_sender: bytes, header: memoryview, _frames: Frames) -> None:
        headers.append(bytes(header))

    async with open_listener(f"ipc://{file}", WireOptions(MAX_FRAME)) as listener:
        running = asyncio.create_task(listener.run(take, lambda: None))
        try:
            yield listener, headers
        finally:
            running.cancel()
            await asyncio.wait([running])


def announced(header_bytes: int, *frames: int) -> bytes:
    return struct.pack(f"<II{len(frames)}Q", header_bytes, len(frames), *frames)


@pytest.mark.parametrize("piece_bytes", [1, 13, BUFFER_BYTES, 1 << 30])
async def test_messages_arrive_whole_however_they_are_cut(tmp_path: Path, piece_bytes: int) -> None:
    """Messages whose headers and frames are empty, small, or larger than the buffer arrive as they were sent, whether
    each byte comes by itself or all come at once."""
    sent = [
        (b"h", []),
        (b"no byte", [b"", b""]),
        (b"some", [b"1", b"", b"23"]),
        (bytes(range(256)) * (BUFFER_BYTES // 64), [b"after a large header"]),
        (b"a large frame", [b"before", bytes(range(256)) * (BUFFER_BYTES // 128), b"after"]),
        (b"last", []),
    ]
    stream = GREETING + b"".join(
        announced(len(header), *map(len, frames)) + header + b"".join(frames) for header, frames in sent
    )
    received: list[tuple[bytes, list[bytes]]] = []

    def take(_sender: bytes, header: memoryview, frames: Frames) -> None:
        received.append((bytes(header), [bytes(frame) for frame in frames]))

    async with open_listener(f"ipc://{tmp_path}/w", WireOptions(2 * BUFFER_BYTES)) as listener:
        running = asyncio.create_task(listener.run(take, lambda: None))
        _, writer = await asyncio.open_unix_connection(tmp_path / "w")
        for start in range(0, len(stream), piece_bytes):
            writer.write(stream[start : start + piece_bytes])
            await asyncio.sleep(0)  # the listener reads in between
        await until(lambda: len(received) >= len(sent))
        writer.close()
        running.cancel()
        await asyncio.wait([running])
    assert received == sent


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f",
        GREETING + announced(0),
        GREETING + announced(HEADER_BYTES + 1),
        GREETING + struct.pack("<II", 1, 1 << 30),
        GREETING + announced(1, MAX_FRAME + 1) + b"h",
    ],
    ids=["ZeroMQ", "no header", "large header", "many frames", "large frame"],
)
async def test_a_peer_that_sends_no_message_is_disconnected(tmp_path: Path, sent: bytes) -> None:
    """Its connection ends, with a line in the log; another front-end of the same worker does not notice."""
    with structlog.testing.capture_logs() as logged:
        async with listening(tmp_path / "w") as (listener, headers), RawFrontEnd(listener.address) as good:
            reader, writer = await asyncio.open_unix_connection(tmp_path / "w")
            assert await reader.readexactly(len(GREETING)) == GREETING
            writer.write(sent)
            with contextlib.suppress(ConnectionResetError):  # where something was left unread
                assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
            writer.close()
            good.send(b"hello")
            await until(lambda: headers == [b"hello"])
    assert [line["event"] for line in logged] == ["a front-end was disconnected"]


async def test_a_worker_of_another_format_is_named(tmp_path: Path) -> None:
    """A front-end learns why it cannot use a worker whose socket speaks ZeroMQ."""
    front_end = RawFrontEnd(f"ipc://{tmp_path}/w")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as worker:
        worker.bind(f"ipc://{tmp_path}/w")
        connecting = asyncio.create_task(front_end.__aenter__())
        await until(lambda: front_end.losses[:1] == [FOREIGN])
        connecting.cancel()
        await asyncio.wait([connecting])
        await front_end.__aexit__()


async def test_a_socket_that_cannot_be_reached_is_named_once(tmp_path: Path) -> None:
    """What no start of a worker mends, such as a lack of rights or a wrong path, is reported, and mended by hand."""
    folder = tmp_path / "folder"
    folder.touch()
    front_end = RawFrontEnd(f"ipc://{folder}/w")
    connecting = asyncio.create_task(front_end.__aenter__())
    await until(lambda: front_end.losses == ["its socket: Not a directory"])
    folder.unlink()
    await until(lambda: front_end.losses[1:] == [""])
    folder.mkdir()
    async with listening(folder / "w"):
        await connecting
        await front_end.__aexit__()
    assert len(front_end.losses) == 2


async def test_a_message_of_a_killed_front_end_is_dropped(tmp_path: Path) -> None:
    """A process that is killed within a message leaves nothing behind: no message, no connection, no memory."""
    message = GREETING + announced(5, MAX_FRAME) + b"hello" + bytes(MAX_FRAME // 2)
    script = (
        f"import socket, signal; s = socket.socket(socket.AF_UNIX); s.connect({str(tmp_path / 'w')!r}); "
        f"s.sendall({message!r}); print('sent', flush=True); signal.pause()"
    )
    async with listening(tmp_path / "w") as (listener, headers):
        assert isinstance(listener, UnixListener)
        killed = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
        assert killed.stdout is not None
        await killed.stdout.readline()
        await until(lambda: len(listener._streams) == 1)
        killed.kill()
        await killed.wait()
        await until(lambda: not listener._streams)
        async with RawFrontEnd(listener.address) as next_one:
            next_one.send(b"next")
            await until(lambda: headers == [b"next"])


async def test_a_stuck_peer_costs_no_more_than_the_bound(tmp_path: Path) -> None:
    """What waits for a peer that does not read is bounded: then messages are refused, as without a connection."""
    part = np.zeros(MAX_UNSENT_BYTES // 2, np.uint8)  # lent again and again
    with socket.socket(socket.AF_UNIX) as stuck:
        async with listening(tmp_path / "w") as (listener, _):
            stuck.connect(str(tmp_path / "w"))
            stuck.sendall(GREETING)
            assert isinstance(listener, UnixListener)
            await until(lambda: any(stream.is_open for stream in listener._streams.values()))
            (identity,) = listener._streams
            for _ in range(3):
                listener.send(identity, b"answer", part.data)
            with pytest.raises(NotSent, match="unread"):
                listener.send(identity, b"answer")


async def test_the_file_of_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    """A socket that nobody listens at does not keep a worker from starting; what is no socket is not deleted. The file
    has the rights that the umask leaves, and goes when the worker does, unless it is another's by then."""
    file = tmp_path / "w"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(file))
    before = os.umask(0o077)
    try:
        async with listening(file) as (first, _):
            assert stat.S_IMODE(file.stat().st_mode) == 0o700
            async with listening(file), RawFrontEnd(first.address):
                await first.__aexit__()
                assert file.exists()
        assert not file.exists()
    finally:
        os.umask(before)
    file.write_text("not a socket")
    with pytest.raises(OSError, match="in use"):
        async with listening(file):
            pass
    assert file.read_text() == "not a socket"


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_that_comes_at_the_end_is_closed(tmp_path: Path, turns: int) -> None:
    """In whichever turn of the event loop the listener stops accepting, no accepted socket is left open: warnings about
    one are errors. The same holds each time that it looks at its file."""
    async with open_listener(f"ipc://{tmp_path}/w", WireOptions(MAX_FRAME)) as listener:
        running = asyncio.create_task(listener.run(lambda _sender, _header, _frames: None, lambda: None))
        for _ in range(5):
            await asyncio.sleep(0)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(tmp_path / "w"))
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait([running])
    gc.collect()
