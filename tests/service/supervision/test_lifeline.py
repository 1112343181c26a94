"""A supervised process and its lifeline: beats while its event loop runs, and an end when the supervisor has died."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from service.process import EXIT_GRACE_S, LIFELINE_FD
from tests.waiting import PATIENCE_S

MAIN = """
import asyncio, sys, time
from service.process import run_process
from service.settings import Settings

async def main(stop):
    {body}
    return 0

sys.exit(run_process("part", Settings(drain_timeout_ms=1), main))
"""


@contextmanager
def supervised(body: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """A process whose main function is `body`, and the supervisor's end of its lifeline, with a timeout."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", MAIN.format(body=body)],
                env={**os.environ, LIFELINE_FD: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stderr=subprocess.DEVNULL,
            )
        ours.settimeout(PATIENCE_S)
        try:
            yield process, ours
        finally:
            process.kill()
            process.wait()


def test_a_running_loop_sends_beats_and_ends_with_its_supervisor() -> None:
    """It shuts down in order when the other end closes."""
    with supervised("await stop.wait()") as (process, lifeline):
        for _ in range(2):
            assert lifeline.recv(1)
        lifeline.close()
        assert process.wait(PATIENCE_S) == 0


def test_a_loop_that_hangs_does_not_outlive_its_supervisor() -> None:
    """Nobody is left to kill it, so it ends itself after its time to drain."""
    with supervised("await asyncio.sleep(0.1); time.sleep(10_000)") as (process, lifeline):
        assert lifeline.recv(1)
        lifeline.close()
        assert process.wait(EXIT_GRACE_S + PATIENCE_S) == 1
