"""A cluster of nodes on this machine, each at a loopback address of its own, and callers of the service on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

from service.cluster.settings import ClusterSettings
from tests.service.frontend.rest_server import picture

START_S = 120.0
GAVE_UP = "The current node timed out during startup"
START_ATTEMPTS = 5
"""Ray gives a node up that has not registered within 30 s, which it does not let one change: here on a busy machine."""
DEPLOY_S = 300.0
REPOSITORY = Path(__file__).parents[2]
JPEG = picture(100, form="JPEG")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def environment() -> dict[str, str]:
    return {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'client'}", "RAY_AUTH_MODE": "disabled"}


@dataclass
class LocalNode:
    """A node: its `convmlp cluster up`, and all that runs below it. HAProxy listens at `http_port` for it."""

    address: str
    http_port: int
    process: subprocess.Popen[bytes]
    log: Path

    def processes(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    def replicas(self, part: str) -> list[psutil.Process]:
        """The processes of the replicas of a deployment."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                title = " ".join(process.cmdline())
                if title.startswith("ray::ServeReplica") and f":{part}" in title:
                    found.append(process)
        return found

    def kill(self) -> None:
        """SIGKILL to every process of the node, at one time."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        before = self.processes()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        for process in before:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


@dataclass
class LocalCluster:
    folder: Path
    head_port: int
    http_port: int
    grpc_port: int
    grpc_metrics_port: int
    redis: str | None = None
    nodes: list[LocalNode] = field(default_factory=list)

    @property
    def head(self) -> str:
        return f"127.0.0.2:{self.head_port}"

    def start_node(self, resources: dict[str, float] | None = None, cpus: int = 8) -> LocalNode:
        """Start another node, and wait until it is one of the cluster's."""
        number = len(self.nodes)
        node = self._start(number, {f"node{number}": 100, **(resources or {})}, cpus)
        self.nodes.append(node)
        return node

    def restart_head(self, cpus: int) -> None:
        """Start the first node again, where it was. Its files lie elsewhere: with those of the first Ray would take the
        other nodes' processes, which are of the same machine here, for a head that runs."""
        self.nodes[0] = self._start(0, {"node0": 100}, cpus, "again")

    def _start(self, number: int, resources: dict[str, float], cpus: int, temp_dir: str = "ray") -> LocalNode:
        address = f"127.0.0.{2 + number}"
        own = {
            **os.environ,
            **environment(),
            **{"RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()), "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port())},
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(self.folder / "haproxy" / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(self.folder / "haproxy" / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(self.folder / "haproxy"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(self.folder / "haproxy" / "state"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(self.folder / "haproxy" / "metrics.sock"),
        }
        own.pop("OMP_NUM_THREADS", None)
        command = [sys.executable, "-m", "service.cli", "cluster", "up", "--node-ip", address, "--cpus", str(cpus)]
        command += ["--slow-start", "--resources", json.dumps(resources)]
        http_port = self.http_port
        if number:
            http_port = free_port()
            own["RAY_SERVE_WORKER_PROXY_HTTP_PORT"] = str(http_port)
            command += ["--address", self.head]
        else:
            command += ["--port", str(self.head_port), "--temp-dir", str(self.folder / temp_dir)]
            command += ["--redis-address", self.redis] if self.redis else []
        log = self.folder / f"node-{number}.log"
        for attempt in range(START_ATTEMPTS):
            with log.open("wb") as file:
                process = subprocess.Popen(command, env=own, stdout=file, stderr=file, start_new_session=True)
            end_s = time.monotonic() + START_S
            while b"Ray runtime started" not in log.read_bytes() and process.poll() is None:
                assert time.monotonic() < end_s, log.read_text()
                time.sleep(0.2)
            if process.poll() is None:
                break
            assert attempt < START_ATTEMPTS - 1, log.read_text()
            assert GAVE_UP in log.read_text(), log.read_text()
        return LocalNode(address, http_port, process, log)

    def deploy(self, settings: ClusterSettings, image_s: float = 0.02) -> float:
        """Deploy with the fake device, which takes `image_s` for an image; the seconds until it ran."""
        started_s = time.monotonic()
        self.run(
            *("tests.cluster.deploy_timed", self.head, str(self.http_port), str(image_s)), settings.model_dump_json()
        )
        return time.monotonic() - started_s

    def run(self, module: str, *arguments: str) -> str:
        """Run a module as a program that succeeds, and return its output."""
        done = self.ask(module, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a module as a program."""
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **environment()},
            capture_output=True,
            text=True,
            timeout=DEPLOY_S,
            check=False,
        )

    def running(self, part: str) -> int:
        """Replicas of a deployment that run."""
        return sum(len(node.replicas(part)) for node in self.nodes if node.process.poll() is None)


@contextmanager
def local_cluster(nodes: int, redis: str | None = None, head_cpus: int = 8) -> Iterator[LocalCluster]:
    # Sockets lie there, whose paths are short: not in the folder of a test.
    with tempfile.TemporaryDirectory(prefix="cm-", ignore_cleanup_errors=True) as folder:
        cluster = LocalCluster(Path(folder), free_port(), free_port(), free_port(), free_port(), redis)
        try:
            for number in range(nodes):
                cluster.start_node(cpus=8 if number else head_cpus)
            yield cluster
        finally:
            for node in reversed(cluster.nodes):
                node.stop()


@dataclass
class Load:
    """What callers got."""

    statuses: Counter[str] = field(default_factory=Counter)
    answered_by: Counter[str] = field(default_factory=Counter)
    """By the fake device's name: models and host."""
    failures: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def answered(self) -> int:
        return self.statuses["200"]


@asynccontextmanager
async def load(port: int, callers: int, path: str = "/classify", image: bytes = JPEG) -> AsyncIterator[Load]:
    """So many callers that send a picture again as soon as it is answered; none of them tries again."""
    result, stop, started_s = Load(), asyncio.Event(), time.monotonic()
    headers = {"Content-Type": "image/jpeg"}
    limits = httpx2.Limits(max_connections=callers, max_keepalive_connections=callers)

    async def call(http: httpx2.AsyncClient) -> None:
        while not stop.is_set():
            sent_s = time.monotonic()
            try:
                answer = await http.post(path, content=image, headers=headers)
            except httpx2.HTTPError as error:
                result.statuses[type(error).__name__] += 1
                result.failures.append(repr(error))
                await asyncio.sleep(0.05)
                continue
            result.waits_s.append(time.monotonic() - sent_s)
            result.statuses[str(answer.status_code)] += 1
            if answer.is_success:
                result.answered_by[answer.headers.get("x-model-precision", "").removeprefix("fp32 ")] += 1
            else:
                result.failures.append(f"{dict(answer.headers)} {answer.text}")
                await asyncio.sleep(0.05)

    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as http:
        calling = [asyncio.create_task(call(http)) for _ in range(callers)]
        try:
            yield result
        finally:
            stop.set()
            await asyncio.gather(*calling)
            result.seconds = time.monotonic() - started_s


def cluster_settings(**changes: Any) -> ClusterSettings:  # noqa: ANN401
    groups = changes.pop("groups", [{"name": "a", "models": ["fake_a"], "min_workers": 2, "cpus": 1}])
    return ClusterSettings.model_validate({"groups": groups, "front_ends": 2, **changes})
