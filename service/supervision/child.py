"""A child process of the supervisor, restarted until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import structlog

from service.process import BEAT_INTERVAL_S, EXIT_CONFIG, LIFELINE_FD, LISTEN_FD, ROLE
from service.supervision.heartbeat import Heartbeat

FIRST_BACKOFF_S = 0.2
LAST_BACKOFF_S = 30.0
HEALTHY_AFTER_S = 60.0
"""A child that ran for this long restarts with the first back-off."""

log = structlog.get_logger(__name__)


class Misconfigured(Exception):
    """The child's configuration is wrong; its own log line has the reason."""


class Loss(StrEnum):
    """Why a process is restarted."""

    EXITED = "exited"
    UNRESPONSIVE = "unresponsive"
    """It was killed, because its event loop no longer ran."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child process: its role, its command, the longest silence of its event loop, and the listening socket that
    it inherits, if any."""

    role: str
    command: str
    timeout_s: float
    listen_fd: int | None = None


class ChildProcess(Protocol):
    """A running process: the part of `asyncio.subprocess.Process` that is used here."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int: ...

    def send_signal(self, number: int, /) -> None: ...


StartProcess = Callable[[str, Mapping[str, str], Sequence[int]], Awaitable[ChildProcess]]
"""Starts `convmlp COMMAND` with an environment, and with descriptors that it inherits under their numbers."""


async def start_process(command: str, environment: Mapping[str, str], descriptors: Sequence[int]) -> ChildProcess:
    """Start a new interpreter: a `StartProcess`. Raises OSError if the system lacks processes or memory."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.cli", command),
        env=environment,
        pass_fds=descriptors,
        stdin=asyncio.subprocess.DEVNULL,
    )


class Child:
    """Runs one child process and restarts it until `stop`. `on_lost` is called after each unexpected exit.

    `inherited` returns the descriptors that a new process gets beside its socket and its lifeline.
    """

    def __init__(
        self,
        spec: ChildSpec,
        environment: dict[str, str],
        inherited: Callable[[], list[int]],
        on_lost: Callable[[Loss], None],
        start: StartProcess = start_process,
    ) -> None:
        self._spec = spec
        self._environment = environment
        self._inherited = inherited
        self._on_lost = on_lost
        self._start_process = start
        self._process: ChildProcess | None = None
        self._stopping = False
        self._loss = Loss.EXITED

    async def run(self) -> None:
        """Start the process, and restart it whenever it exits.

        Raises:
            Misconfigured: it exited with EXIT_CONFIG.
        """
        backoff_s = FIRST_BACKOFF_S
        while True:
            started_s, self._loss = time.monotonic(), Loss.EXITED
            try:
                status: int | str = await self._run_once()
            except OSError as error:  # the system lacks processes, descriptors or memory
                status = str(error)
            if self._stopping:
                return
            if status == EXIT_CONFIG:
                raise Misconfigured(self._spec.role)
            if time.monotonic() - started_s > HEALTHY_AFTER_S:
                backoff_s = FIRST_BACKOFF_S
            log.error("process exited; restarting it", part=self._spec.role, status=status, after_s=backoff_s)
            self._on_lost(self._loss)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)

    async def _run_once(self) -> int:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._process = process = await self._start(theirs.fileno())
            log.info("started", part=self._spec.role, pid=process.pid)
            if self._stopping:  # `stop` was called while it started
                self.signal(signal.SIGTERM)
            watching = asyncio.create_task(self._watch(Heartbeat(ours, self._spec.timeout_s)))
            try:
                return await process.wait()
            finally:
                watching.cancel()

    async def _start(self, lifeline: int) -> ChildProcess:
        environment = {**self._environment, LIFELINE_FD: str(lifeline), ROLE: self._spec.role}
        descriptors = [lifeline, *self._inherited()]
        if self._spec.listen_fd is not None:
            environment[LISTEN_FD] = str(self._spec.listen_fd)
            descriptors.append(self._spec.listen_fd)
        return await self._start_process(self._spec.command, environment, descriptors)

    async def _watch(self, heartbeat: Heartbeat) -> None:
        """Kill the process if its event loop stops. `stop` has a limit of its own."""
        while not self._stopping:
            await asyncio.sleep(BEAT_INTERVAL_S)
            if heartbeat.is_silent():
                log.error("process does not respond; killed", part=self._spec.role, timeout_s=self._spec.timeout_s)
                self._loss = Loss.UNRESPONSIVE
                self.signal(signal.SIGKILL)
                return

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def stop(self, running: asyncio.Task[None], grace_s: float) -> None:
        """Send SIGTERM, and SIGKILL after `grace_s` seconds."""
        self._stopping = True
        self.signal(signal.SIGTERM)
        if self._process is None or self._process.returncode is not None:
            running.cancel()  # it waits for its back-off
        _, pending = await asyncio.wait([running], timeout=grace_s)
        if pending:
            log.error("did not stop in time; killed", part=self._spec.role)
            self.signal(signal.SIGKILL)
            await asyncio.wait([running])
