"""One machine of a cluster: Ray's processes, in the foreground, with the environment that the service needs.

Nothing here imports Ray.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.cluster.environment import node_environment

HEAD_PORT = 6379
END_S = 10.0
"""How long what a command left is looked for and ended."""
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Node:
    """A machine. Without the `head`'s HOST:PORT it is the head. None: as Ray finds on the machine."""

    head: str | None = None
    port: int = HEAD_PORT
    address: str | None = None
    cpus: int | None = None
    gpus: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    temp_dir: Path | None = None
    redis: str | None = None
    """HOST:PORT of a Redis in which the head keeps the cluster's state, so that another head can go on with it."""
    slow: bool = False

    def command(self) -> list[str]:
        """`ray start`, which runs until a signal."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        if self.head is None:
            command += ["--head", f"--port={self.port}", "--include-dashboard=false"]
            if self.temp_dir is not None:
                command.append(f"--temp-dir={self.temp_dir}")
        else:
            command.append(f"--address={self.head}")
        for flag, value in (("node-ip-address", self.address), ("num-cpus", self.cpus), ("num-gpus", self.gpus)):
            if value is not None:
                command.append(f"--{flag}={value}")
        if self.resources:
            command.append(f"--resources={json.dumps(dict(self.resources))}")
        return command

    def environment(self, own: Mapping[str, str]) -> dict[str, str]:
        """The environment of Ray's processes; what the operator set in `own` is left as it is."""
        redis = {"RAY_REDIS_ADDRESS": self.redis} if self.redis else {}
        return {**node_environment(slow=self.slow), **own, **redis}

    def run(self) -> int:
        """Run Ray's processes until a signal, and end all of them; the exit status."""
        return run_with_descendants(self.command(), self.environment(os.environ))


def run_with_descendants(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command, and pass SIGTERM and SIGINT on to it as SIGTERM; when it has ended, end all that it left.

    Ray leaves its HAProxy behind where it ends: it would go on listening, without front-ends.
    """
    stopped = False
    process: subprocess.Popen[bytes] | None = None

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True
        if process is not None:
            process.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    _adopt_orphans()
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    if stopped:
        process.terminate()
    status = process.wait()
    end_s = time.monotonic() + END_S
    while (left := _children()) and time.monotonic() < end_s:  # the children of those that end come to this process
        for child in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in left:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)
    return 0 if stopped else status if status >= 0 else 128 - status


def _adopt_orphans() -> None:
    """Make this process the parent of its descendants' orphans, where the system can (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children() -> list[int]:
    """The processes whose parent is this one; none where the system has no /proc."""
    own, found = str(os.getpid()), []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            # Behind the command, which may have spaces and brackets: state, parent.
            if stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1] == own:
                found.append(int(stat.parent.name))
    return found
