"""Faults of processes, files and pipes, each with the ends of requests that it excuses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.soak.account import End
from benchmarks.soak.callers import Callers
from benchmarks.soak.running import Service

SHORT_STOP_S = 2.0
LONG_STOP_S = 8.0
"""Longer than `worker_timeout_ms`: the supervisor kills the worker meanwhile."""
BLOCKED_LOG_S = 4.0
FULL_S = 4.0
BURST = 100
"""Connections that are opened and broken at once."""
FOLDER_BYTES = 16 << 20
"""Size of the runtime folder's file system, where it can be mounted."""


class Fault:
    """`cause` returns when the fault has ended. `excuses`: ends of requests that are right until the recovery."""

    def __init__(self, cause: Callable[[], Awaitable[None]], *excuses: End) -> None:
        self.cause = cause
        self.excuses = excuses


@dataclass(slots=True)
class Faults:
    """The faults of one run. `mounted`: the runtime folder is a small file system of its own, which can be filled."""

    service: Service
    callers: Callers
    mounted: bool

    def kinds(self) -> Mapping[str, Fault]:
        """By name."""
        kinds = {
            "worker killed": Fault(lambda: self._kill("worker")),
            # New connections wait in the listening socket, which the supervisor holds, for the successor.
            "REST front-end killed": Fault(lambda: self._kill("rest"), End.CUT, End.UNANSWERED),
            "gRPC front-end killed": Fault(lambda: self._kill("grpc"), End.CUT),
            "worker stopped for 2 s": Fault(lambda: self._stop("worker", SHORT_STOP_S), End.TIMED_OUT),
            "worker stopped for 8 s": Fault(lambda: self._stop("worker", LONG_STOP_S), End.TIMED_OUT),
            "REST front-end stopped for 2 s": Fault(lambda: self._stop("rest", SHORT_STOP_S), End.TIMED_OUT),
            "gRPC front-end stopped for 2 s": Fault(lambda: self._stop("grpc", SHORT_STOP_S), End.TIMED_OUT),
            "runtime folder's files deleted": Fault(self._delete),
            "log not read for 4 s": Fault(self._block_log),
            "100 connections broken at once": Fault(self._burst),
        }
        if self.mounted:
            kinds["runtime folder full for 4 s"] = Fault(self._fill)
        return kinds

    async def _kill(self, role: str) -> None:
        self._signal(role, signal.SIGKILL)

    async def _stop(self, role: str, seconds: float) -> None:
        process = self._signal(role, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def _signal(self, role: str, number: signal.Signals) -> psutil.Process | None:
        process = self.service.processes().get(role)
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return process

    async def _delete(self) -> None:
        """As a cleaner of temporary folders would. No request may notice."""
        for path in self.service.runtime.iterdir():
            if path.name != "state":
                shutil.rmtree(path, ignore_errors=True)

    async def _fill(self) -> None:
        ballast = self.service.runtime / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            for _ in range(2 * FOLDER_BYTES // 4096):
                file.write(bytes(4096))
        await asyncio.sleep(FULL_S)
        ballast.unlink()

    async def _block_log(self) -> None:
        self.service.reading.clear()
        await asyncio.sleep(BLOCKED_LOG_S)
        self.service.reading.set()

    async def _burst(self) -> None:
        await asyncio.gather(*(self.callers.leave(0.7) for _ in range(BURST)))


@contextmanager
def small_file_system(folder: Path) -> Iterator[bool]:
    """Mount a small file system at `folder` if this process may; yields whether it could."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        yield False
        return
    command = ["mount", "-t", "tmpfs", "-o", f"size={FOLDER_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)
