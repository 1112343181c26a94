"""Reads and writes of a disk that does not answer."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import Overloaded
from service.worker.disk import MAX_READS, DiskReads, write_to_disk


@pytest.fixture
def answering() -> Iterator[threading.Event]:
    """While it is not set, reads of it hang."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_read_gives_its_result_or_its_error() -> None:
    """Values and exceptions reach the caller as they are."""
    reads = DiskReads()
    assert await reads.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await reads.run(divmod, 7, 0)


async def test_a_read_that_hangs_does_not_hold_the_next_one(answering: threading.Event) -> None:
    """A read that was given up keeps its own thread only. Beyond the bound a read is refused, until one has ended."""
    reads = DiskReads()
    hung = [asyncio.create_task(reads.run(answering.wait, 60)) for _ in range(MAX_READS - 1)]
    await asyncio.sleep(0)
    assert await reads.run(divmod, 7, 2) == (3, 1)
    hung.append(asyncio.create_task(reads.run(answering.wait, 60)))
    await asyncio.sleep(0)
    for task in hung:
        task.cancel()
    assert all(isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*hung, return_exceptions=True))
    with pytest.raises(Overloaded, match="still read from disk"):
        await reads.run(divmod, 7, 2)
    answering.set()

    async def read() -> bool:
        try:
            return await reads.run(divmod, 7, 2) == (3, 1)
        except Overloaded:
            return False

    async with asyncio.timeout(60):
        while not await read():
            await asyncio.sleep(0.002)


async def test_a_write_ends_before_the_caller_that_is_cancelled(answering: threading.Event, tmp_path: Path) -> None:
    """What waits for the caller finds the file written, and nothing is written afterwards."""

    def write(path: Path) -> None:
        assert answering.wait(60)
        path.write_text("written")

    file = tmp_path / "file"
    task = asyncio.create_task(write_to_disk(write, file))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    answering.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert file.read_text() == "written"


async def test_a_write_gives_its_error() -> None:
    """The caller learns why nothing was written."""
    with pytest.raises(FileNotFoundError):
        await write_to_disk(os.unlink, "/nowhere/file")


HANGS = """
import asyncio, threading
from service.worker.disk import DiskReads, write_to_disk

async def main():
    hanging = [
        asyncio.create_task(DiskReads().run(threading.Event().wait)),
        asyncio.create_task(write_to_disk(threading.Event().wait)),
    ]
    await asyncio.sleep(0)
    for one in hanging:
        one.cancel()
    await asyncio.wait(hanging)

asyncio.run(main())
"""


def test_a_disk_that_hangs_does_not_hold_the_end_of_the_process() -> None:
    """A process with a read and a write that never end exits by itself; the write's caller waits for a moment only."""
    subprocess.run([sys.executable, "-c", HANGS], check=True, timeout=60)
