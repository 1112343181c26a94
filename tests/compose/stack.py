"""Docker as users run it: images built from this tree, and stacks brought up from the compose files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = "docker-compose.yml"
ON_CPU = (BASE, "docker-compose.cpu.yml")
VERSION = "compose-test"
FRONTEND, WORKER = f"convmlp-serving/frontend:{VERSION}", f"convmlp-serving/worker:{VERSION}-cpu"
SERVICES = ("worker", "rest", "grpc")
"""What needs no image from a registry."""
PATIENCE_S = 600.0


@dataclass(frozen=True, slots=True)
class Ran:
    status: int
    out: str
    err: str


def run(
    *words: str, environment: Mapping[str, str] | None = None, check: bool = True, timeout_s: float = PATIENCE_S
) -> Ran:
    """Run a command in the root of the tree; with `check` it must succeed."""
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert done.returncode == 0 or not check, f"{' '.join(words)}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return Ran(done.returncode, done.stdout, done.stderr)


def build(image: str, dockerfile: str) -> None:
    """Make a stand-in for an image that comes from a registry; skip where its packages are not available."""
    words = ["docker", "build", "--quiet", "--tag", image, "-"]
    done = subprocess.run(words, input=dockerfile, text=True, capture_output=True, check=False, timeout=PATIENCE_S)
    if done.returncode != 0:
        pytest.skip(f"{image} cannot be made here: {done.stderr[-500:]}")


def inspect(name: str) -> dict[str, Any]:
    """The engine's description of a container or an image."""
    found: list[dict[str, Any]] = json.loads(run("docker", "inspect", name).out)
    return found[0]


def send_signal(name: str, number: signal.Signals) -> None:
    """Signal a container's first process from outside: what happens to it, and not what a user of Docker does, after
    whose `docker kill` a container is not started again."""
    code = "import os, sys; os.kill(int(sys.argv[1]), int(sys.argv[2]))"
    pid = str(inspect(name)["State"]["Pid"])
    confined = ("--rm", "--pid=host", "--network=none", "--user=0", "--entrypoint=python")
    run("docker", "run", *confined, FRONTEND, "-c", code, pid, str(int(number)))


def eventually(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    """Wait until `condition()` holds; a deadline, not a measurement."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:g} s"
        time.sleep(0.5)


@dataclass(frozen=True)
class Stack:
    """A compose project of its own. Ports are published at free ones of this host."""

    project: str
    files: Sequence[str] = ON_CPU
    settings: Mapping[str, str] = field(default_factory=dict)

    def compose(self, *words: str, check: bool = True, timeout_s: float = PATIENCE_S) -> Ran:
        """`docker compose …` of this project, without whatever .env this tree has."""
        files = [word for name in self.files for word in ("-f", name)]
        environment = {
            "CONVMLP_VERSION": VERSION,
            "CONVMLP_PUBLISH_HTTP": "127.0.0.1:",
            "CONVMLP_PUBLISH_GRPC": "127.0.0.1:",
            **self.settings,
        }
        return run(
            *("docker", "compose", "--project-directory", str(ROOT), "--env-file", os.devnull),
            *("-p", self.project, *files, *words),
            environment=environment,
            check=check,
            timeout_s=timeout_s,
        )

    def up(self, *words: str) -> None:
        """Start what is not running, and wait until all of it is healthy."""
        done = self.compose("up", "--detach", "--no-build", "--wait", *words, check=False)
        assert done.status == 0, f"{done.err}\n{self.compose('logs', '--no-color', '--tail', '30').out}"

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers, running or not, by their numbers."""
        ids = self.compose("ps", "--all", "--quiet", service).out.split()
        return sorted(ids, key=lambda one: str(inspect(one)["Name"]))

    def container(self, service: str) -> dict[str, Any]:
        """The engine's description of a service's only container."""
        (one,) = self.containers(service)
        return inspect(one)

    def health(self, service: str) -> str:
        status: str = self.container(service)["State"]["Health"]["Status"]
        return status

    def python(self, service: str, code: str, *words: str, check: bool = True) -> Ran:
        """Run Python in a service's container; there is no shell."""
        return self.compose("exec", "-T", service, "python", "-c", code, *words, check=check)

    def fetch(self, url: str) -> str:
        """What a URL answers to a container on the inner network."""
        return self.python("rest", FETCH, url).out

    def address(self, service: str, port: int) -> str:
        """Where a service's port is published, as HOST:PORT."""
        return self.compose("port", service, str(port)).out.strip()


FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"


@contextmanager
def running(stack: Stack, *words: str) -> Iterator[Stack]:
    """The stack, up and healthy; nothing of it is left afterwards."""
    try:
        stack.up(*words)
        yield stack
    finally:
        stack.compose("down", "--volumes", "--remove-orphans", "--timeout", "5")
