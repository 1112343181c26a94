"""The probes of deploy/k8s put to the real parts, as a kubelet puts them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from model.types import Task
from service.settings import Settings
from tests.deploy.k8s import FRONT_ENDS, deployed, port_of
from tests.deploy.kustomize import Object
from tests.e2e.convmlp_process import RunningService, started
from tests.fakes import fake_worker, lying_bundle
from tests.fork_server import ForkedProcess, run

FOLDER = "overlays/cpu"
MODEL = ("--models", "convmlp_pets_breed")


@dataclass(frozen=True)
class Running:
    """A part that runs here: where each port of its container really is, and the settings that its container has
    otherwise."""

    part: str
    ports: dict[int, int]
    settings: dict[str, str]

    async def passes(self, name: str) -> bool:
        """Whether the part's probe of that name succeeds."""
        container = deployed(FOLDER).container(self.part)
        probe = container[name]
        (how,) = probe.keys() & {"httpGet", "grpc", "tcpSocket", "exec"}
        if how == "exec":
            return await self._runs(probe[how]["command"])
        port = self.ports[port_of(container, probe[how]["port"])]
        return await PUT[how](probe[how], port)

    async def _runs(self, command: list[str]) -> bool:
        convmlp, *words = command
        assert convmlp == "convmlp"
        status, _, _ = await asyncio.to_thread(run, words, environment={**os.environ, **self.settings})
        return status == 0


async def _get(probe: Object, port: int) -> bool:
    async with httpx2.AsyncClient(timeout=60) as http:
        return (await http.get(f"http://127.0.0.1:{port}{probe['path']}")).status_code < 400


async def _check(probe: Object, port: int) -> bool:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        health: Any = HealthStub(channel)
        answer = await health.Check(HealthCheckRequest(service=probe.get("service", "")), timeout=60)
        return bool(answer.status == HealthCheckResponse.SERVING)


async def _connect(probe: Object, port: int) -> bool:
    assert probe.keys() == {"port"}
    with socket.create_connection(("127.0.0.1", port), timeout=60):
        return True


PUT = {"httpGet": _get, "grpc": _check, "tcpSocket": _connect}


async def test_probes_follow_the_state_of_each_part(tmp_path: Path) -> None:
    """Front-ends are ready while there is a worker, and alive without one; a worker is ready after its self-check; a
    part that hangs is not alive."""
    address = f"ipc://{tmp_path}/worker"
    with ExitStack() as parts:

        def start(*words: str) -> RunningService:
            return parts.enter_context(started(*words, "--worker-address", address))

        at_worker = {"CONVMLP_WORKER_ADDRESS": address}
        rest = start("rest", "--http-port", "0")
        rpc = start("grpc", "--grpc-port", "0", "--grpc-metrics-port", "0")
        rpc_port = _port(f"//{rpc.wait_for('listening')['address']}")
        front_ends = [
            Running("rest", {8000: _port(rest.wait_for("listening")["url"])}, at_worker),
            Running("grpc", {8001: rpc_port}, {**at_worker, "CONVMLP_GRPC_PORT": str(rpc_port)}),
        ]
        assert [one.part for one in front_ends] == list(FRONT_ENDS)
        for one in front_ends:
            assert await one.passes("startupProbe")
            assert await one.passes("livenessProbe")
            assert not await one.passes("readinessProbe")

        with started("worker", *MODEL, "--worker-address", address, "--worker-metrics-port", "0") as service:
            worker = Running("worker", {}, at_worker)
            await asyncio.to_thread(service.wait_for, "ready")
            for name in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert await worker.passes(name)
            for one in front_ends:
                await _until(one, ready=True)
            for process, part in ((service.process, worker), (rpc.process, front_ends[1])):
                with _hanging(process):
                    assert not await part.passes("livenessProbe")
                assert await part.passes("livenessProbe")
        assert not await worker.passes("readinessProbe")
        for one in front_ends:
            await _until(one, ready=False)
            assert await one.passes("livenessProbe")


async def test_a_worker_with_a_bad_model_is_not_restarted(tmp_path: Path) -> None:
    """A worker with a bad model has started and is alive: it serves its other models, and a restart mends nothing. It
    is not ready, and names the model."""
    address = f"ipc://{tmp_path}/worker"
    async with fake_worker(Settings(), address, [Task.CLASSIFY], more=[lying_bundle("liar")]):
        worker = Running("worker", {}, {"CONVMLP_WORKER_ADDRESS": address})
        assert await worker.passes("startupProbe")
        assert await worker.passes("livenessProbe")
        assert not await worker.passes("readinessProbe")


@contextmanager
def _hanging(process: subprocess.Popen[str] | ForkedProcess) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


async def _until(one: Running, *, ready: bool) -> None:
    async with asyncio.timeout(60):
        while await one.passes("readinessProbe") != ready:
            await asyncio.sleep(0.1)


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port
