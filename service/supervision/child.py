"""A child process of the supervisor, restarted until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from service.process import EXIT_CONFIG, LIFELINE_FD, LISTEN_FD, ROLE

FIRST_BACKOFF_S = 0.2
LAST_BACKOFF_S = 30.0
HEALTHY_AFTER_S = 60.0
"""A child that ran for this long restarts with the first back-off."""

log = structlog.get_logger(__name__)


class Misconfigured(Exception):
    """The child's configuration is wrong; its own log line has the reason."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child process: its role, its command, and the listening socket that it inherits, if any."""

    role: str
    command: str
    listen_fd: int | None = None


class Child:
    """Runs one child process and restarts it until `stop`. `on_lost` is called after each unexpected exit."""

    def __init__(self, spec: ChildSpec, environment: dict[str, str], on_lost: Callable[[], None]) -> None:
        self._spec = spec
        self._environment = environment
        self._on_lost = on_lost
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._started_s = 0.0

    def age_s(self) -> float:
        """Seconds since the last start of its process."""
        return time.monotonic() - self._started_s

    async def run(self) -> None:
        """Start the process, and restart it whenever it exits.

        Raises:
            Misconfigured: it exited with EXIT_CONFIG.
        """
        backoff_s = FIRST_BACKOFF_S
        while True:
            self._started_s = time.monotonic()
            status = await self._run_once()
            if self._stopping:
                return
            if status == EXIT_CONFIG:
                raise Misconfigured(self._spec.role)
            if self.age_s() > HEALTHY_AFTER_S:
                backoff_s = FIRST_BACKOFF_S
            log.error("process exited; restarting it", part=self._spec.role, status=status, after_s=backoff_s)
            self._on_lost()
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)

    async def _run_once(self) -> int:
        lifeline, write_end = os.pipe()
        try:
            environment = {**self._environment, LIFELINE_FD: str(lifeline), ROLE: self._spec.role}
            descriptors = [lifeline]
            if self._spec.listen_fd is not None:
                environment[LISTEN_FD] = str(self._spec.listen_fd)
                descriptors.append(self._spec.listen_fd)
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "service.cli", self._spec.command),
                env=environment,
                pass_fds=descriptors,
                stdin=asyncio.subprocess.DEVNULL,
            )
            log.info("started", part=self._spec.role, pid=self._process.pid)
            os.close(lifeline)
            lifeline = -1
            if self._stopping:  # `stop` was called while it started
                self.signal(signal.SIGTERM)
            return await self._process.wait()
        finally:
            for descriptor in (lifeline, write_end):
                if descriptor >= 0:
                    os.close(descriptor)

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
