"""Starts, measures and ends a server with all its processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36
STOP_S = 5.0
ORPHANS_S = 1.5
"""How long a server's other processes may take to end after it, or after a signal."""
IDLE_CORES = 0.2


def adopt_orphans() -> None:
    """Make this process the parent of orphaned processes, so that none is lost (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def free_ports(count: int) -> int:
    """The first of consecutive ports on which no process listens now."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = int(first.getsockname()[1])
        if port + count <= 65536 and all(_is_free(port + at) for at in range(count)):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds since the start of a server with all its processes, and its memory."""

    cpu_s: float
    resident_bytes: int


class ServerProcess:
    """A command in a session of its own. Its processes are its descendants, and processes orphaned since."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path) -> None:
        self._others = set(psutil.Process().children())
        self._seen: set[psutil.Process] = set()
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, longest_s: float) -> None:
        """Wait until it ends by itself. Raises subprocess.TimeoutExpired."""
        self._process.wait(longest_s)

    def usage(self) -> Usage:
        cpu_s, resident_bytes = 0.0, 0
        for process in self._family():
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    # This includes children that it waited for.
                    cpu_s += times.user + times.system + times.children_user + times.children_system
                    resident_bytes += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return Usage(cpu_s, resident_bytes)

    def cpu_by_part(self) -> dict[str, float]:
        """CPU seconds of each process: `main`, and the others by the last word of their command lines."""
        parts: dict[str, float] = {}
        for process in sorted(self._family(), key=lambda one: one.pid):
            try:
                first = process.pid == self.pid
                name = "main" if first else (process.cmdline() or [process.name()])[-1]
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            while name in parts:
                name += "'"
            parts[name] = times.user + times.system
        return parts

    def settle(self, longest_s: float) -> None:
        """Wait until it is idle: some servers warm up, or compile, after they are ready."""
        until_s = time.monotonic() + longest_s
        while time.monotonic() < until_s:
            before = self.usage().cpu_s
            time.sleep(1.0)
            if self.usage().cpu_s - before < IDLE_CORES:
                return

    def stop(self, patience_s: float = STOP_S) -> None:
        """Signal it to end, after `patience_s` its processes too, then kill the rest. A second Ctrl-C has to wait."""
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._stop(patience_s)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def _stop(self, patience_s: float) -> None:
        self._family()  # finds the processes that it would leave behind
        self._signal([psutil.Process(self.pid)] if not self.ended else [], signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._ended_within(ORPHANS_S):
                return
            self._signal(self._family(), number)
        self._ended_within(STOP_S)

    def _ended_within(self, patience_s: float) -> bool:
        until_s = time.monotonic() + patience_s
        while time.monotonic() < until_s:
            self._process.poll()
            family = self._family()
            for orphan in family:
                if orphan.pid != self.pid:
                    with contextlib.suppress(ChildProcessError):  # it has a parent of its own
                        os.waitpid(orphan.pid, os.WNOHANG)
            if not family and self.ended:
                return True
            time.sleep(0.05)
        return False

    def _family(self) -> list[psutil.Process]:
        """The living ones of its descendants, and of its descendants at the last call."""
        for child in psutil.Process().children():
            if child not in self._others:
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._seen |= {child, *child.children(recursive=True)}
        self._seen = {one for one in self._seen if one.is_running() and not self._is_done(one)}
        return list(self._seen)

    def _is_done(self, process: psutil.Process) -> bool:
        """Whether it ended and is at most a zombie of its parent."""
        try:
            return process.status() == psutil.STATUS_ZOMBIE and process.ppid() != os.getpid()
        except psutil.NoSuchProcess:
            return True

    @staticmethod
    def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
