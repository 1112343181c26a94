"""Starts `convmlp serve`, or a part of it, on free ports, and reads its log.

Where a fork server runs (`tests/fork_server.py`), the processes are forked from it, unless a test wants new
interpreters: `fresh`. They take several times as long to start. Only they inherit limits, and have the memory, the
libraries and the parents of an installed service.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fork_server import COMMAND_LINE, FORK_SERVER, STDERR, STDOUT, ForkedProcess

START_TIMEOUT_S = 240.0
"""On a GPU a start measures the models."""
STATE_HOME = "XDG_STATE_HOME"
"""Environment variable of the folder in which workers keep what they measured: see `tests/kept_measurements.py`."""


@dataclass
class RunningService:
    """A process and its log so far. `url` and `grpc_address` (HOST:PORT) are set for a whole service."""

    process: subprocess.Popen[str] | ForkedProcess
    lines: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    grpc_address: str = ""
    _reading: threading.Event = field(default_factory=threading.Event)
    _paused: threading.Event = field(default_factory=threading.Event)
    _unread: queue.Queue[dict[str, Any] | None] = field(default_factory=queue.Queue)

    def read(self) -> None:
        """Read the log until the process closes it."""
        assert self.process.stderr is not None
        self._reading.set()
        for text in self.process.stderr:
            if not self._reading.is_set():
                self._paused.set()
                return
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                line = {"event": text.rstrip()}
            self.lines.append(line)
            self._unread.put(line)
        self._unread.put(None)

    def stop_reading(self) -> None:
        """Stop reading the log, for good, with its pipe full."""
        assert self.process.stderr is not None
        self._reading.clear()
        pipe = os.open(f"/proc/self/fd/{self.process.stderr.fileno()}", os.O_WRONLY | os.O_NONBLOCK)
        try:
            while True:
                os.write(pipe, b"full\n")
        except BlockingIOError:
            # The reader has taken some; what it left free is less than a line of the log.
            if not self._paused.wait(START_TIMEOUT_S):
                raise TimeoutError from None
        finally:
            os.close(pipe)

    def wait_for(self, event: str, **values: object) -> dict[str, Any]:
        """The next log line with this event and these values."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            line = self._unread.get(timeout=max(0.0, deadline_s - time.monotonic()))
            assert line is not None, f"ended without {event!r}: {self.lines}"
            if line["event"] == event and all(line.get(name) == value for name, value in values.items()):
                return line

    @property
    def peak_bytes(self) -> int:
        """The most memory that the process has had, by Linux."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        (line,) = [one for one in status.splitlines() if one.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

    def pid_of(self, part: str) -> int:
        """The process that now runs this part, such as `worker-0`."""
        started = [line for line in self.lines if line["event"] == "started" and line["part"] == part]
        return int(started[-1]["pid"])


@contextmanager
def running_service(
    *flags: str, environment: Mapping[str, str] | None = None, fresh: bool = False
) -> Iterator[RunningService]:
    """`convmlp serve` with these flags and variables, ready; stopped gracefully at the end."""
    with started_service(*flags, environment=environment, fresh=fresh) as service:
        ready = service.wait_for("ready", role="supervisor")
        service.url, service.grpc_address = ready["url"], ready["grpc_address"]
        yield service


@contextmanager
def started_service(
    *flags: str, environment: Mapping[str, str] | None = None, fresh: bool = False
) -> Iterator[RunningService]:
    """As `running_service`, but it may not be ready yet."""
    ports = ("--http-port", "0", "--grpc-port", "0", "--worker-metrics-port", "0")
    with started("serve", *ports, *flags, environment=environment, fresh=fresh) as service:
        yield service


@contextmanager
def started(
    command: str, *flags: str, environment: Mapping[str, str] | None = None, fresh: bool = False
) -> Iterator[RunningService]:
    """`convmlp COMMAND` with these flags and variables; it gets SIGTERM at the end, if it still runs."""
    arguments = (command, "--log-format", "json", *flags)
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
    process = _new(arguments, variables) if fresh or FORK_SERVER not in os.environ else _forked(arguments, variables)
    service = RunningService(process)
    reader = threading.Thread(target=service.read, daemon=True)
    reader.start()
    try:
        yield service
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(START_TIMEOUT_S)
        finally:
            process.kill()
        reader.join(timeout=10)
        assert process.stderr is not None
        process.stderr.close()


def _new(arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", COMMAND_LINE, *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def _forked(arguments: Sequence[str], environment: Mapping[str, str]) -> ForkedProcess:
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "wb") as log:
        process = ForkedProcess(arguments, environment, {STDOUT: STDOUT, STDERR: log.fileno()})
    process.stderr = os.fdopen(ours)
    return process


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
