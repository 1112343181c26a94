"""Memory that a process has freed, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHURN = """
import resource, threading
from service.process import keep_freed_memory
keep_freed_memory()

def churn():
    for _ in range(20):
        blocks = [bytearray(4 << 20) for _ in range(8)]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=churn)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""
"""Twenty times 32 MiB, 8,192 pages each time, in a thread that is not the first of its kind."""


def faults(**environment: str) -> int:
    """Pages that the kernel had to give a process that takes and frees the same memory again and again."""
    ran = subprocess.run(
        [sys.executable, "-c", CHURN], env={**os.environ, **environment}, capture_output=True, check=True
    )
    return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_freed_memory_is_kept() -> None:
    """Blocks as large as a batch's reuse freed memory, not new memory of the kernel; an operator's own settings take
    precedence."""
    assert faults() < 8192
    assert faults(MALLOC_TRIM_THRESHOLD_="1000000", MALLOC_MMAP_THRESHOLD_="1000000") > 10 * 8192


IDLE = """
import asyncio, os
from pathlib import Path
from service.process import keep_freed_memory, release_when_idle
keep_freed_memory()

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

async def main():
    before = resident()
    blocks = [bytearray(b"x" * (4 << 20)) for _ in range(32)]
    del blocks
    assert resident() > before + (96 << 20)
    releasing = asyncio.create_task(release_when_idle(0.2))
    async with asyncio.timeout(60):
        while resident() > before + (16 << 20):
            await asyncio.sleep(0.1)
    releasing.cancel()

asyncio.run(main())
"""
"""128 MiB are taken and freed; then nothing happens."""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_an_idle_process_gives_memory_back() -> None:
    """What the allocator keeps for the next batch returns to the system when no batch comes."""
    subprocess.run([sys.executable, "-c", IDLE], check=True)
