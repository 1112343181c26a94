"""The service of a soak: `convmlp serve` in a folder of its own, whose log goes to a pipe that faults can block."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import psutil

START_TIMEOUT_S = 180.0
LAST_LINES = 200
ROLES = ("worker", "rest", "grpc")


class CannotStart(Exception):
    """The service did not become ready, or does not answer what disturbs nothing."""


class Service:
    """A running `convmlp serve`. `url` and `grpc_address` (HOST:PORT) are known once it is ready."""

    def __init__(self, flags: tuple[str, ...], runtime: Path) -> None:
        self.url = ""
        self.grpc_address = ""
        self.runtime = runtime
        self.lines: deque[str] = deque(maxlen=LAST_LINES)
        self.reading = threading.Event()
        """Cleared: nobody reads the log, and its pipe fills."""
        self.reading.set()
        self._ready = threading.Event()
        ports = ("--http-port", "0", "--grpc-port", "0", "--worker-metrics-port", "0")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", "--log-format", "json", *ports, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**_environment(runtime / "state"), "XDG_RUNTIME_DIR": str(runtime)},
        )
        assert self._process.stderr is not None
        self._log: IO[bytes] = self._process.stderr
        threading.Thread(target=self._read, daemon=True).start()

    def wait_until_ready(self) -> None:
        """Raises CannotStart."""
        if not self._ready.wait(START_TIMEOUT_S) or self._process.poll() is not None:
            raise CannotStart("\n".join(["the service did not become ready; its last log lines:", *self.lines]))

    def processes(self) -> Mapping[str, psutil.Process]:
        """The living processes by role; the supervisor is one."""
        found = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(self._process.pid)
            found["supervisor"] = supervisor
            for child in supervisor.children():
                with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                    if (role := child.cmdline()[-1]) in ROLES:
                        found[role] = child
        return found

    def stop(self, longest_s: float) -> list[str]:
        """Send SIGTERM; what went wrong: another exit status than 0, too long, or processes that stay."""
        family = list(self.processes().values())
        self._process.send_signal(signal.SIGTERM)
        wrong = []
        try:
            status = self._process.wait(longest_s)
            if status != 0:
                wrong.append(f"after SIGTERM the exit status was {status}, not 0")
        except subprocess.TimeoutExpired:
            wrong.append(f"SIGTERM did not end the service within {longest_s:g} s")
            self._process.kill()
        _, alive = psutil.wait_procs(family, timeout=5.0)
        for process in alive:
            wrong.append(f"process {process.pid} stayed after its supervisor")
            process.kill()
        return wrong

    def close_log(self) -> None:
        """Close the reading end of the log's pipe for good."""
        self.reading.clear()
        time.sleep(0.1)
        self._log.close()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while self.reading.wait() and (line := os.read(self._log.fileno(), 65536)):
                for text in line.decode(errors="replace").splitlines():
                    self._note(text)
        self._ready.set()

    def _note(self, text: str) -> None:
        self.lines.append(text)
        if self._ready.is_set():
            return
        with contextlib.suppress(ValueError):
            entry = json.loads(text)
            if entry.get("event") == "ready" and entry.get("role") == "supervisor":
                self.url, self.grpc_address = entry["url"], entry["grpc_address"]
                self._ready.set()


def _environment(state: Path) -> dict[str, str]:
    """This process's, without settings of the service. `state`: the state folder where the environment names none."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("CONVMLP_")}
    return {"XDG_STATE_HOME": str(state), **own}
