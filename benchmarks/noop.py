"""The service without a network: real front-end processes, real wire, a real worker process; no decoding, and a device
that returns at once. What remains is the cost of the service itself.

The body of a request goes to the worker unchanged, as if it were the network's input. Decoding normally runs in
threads; without it they have no work and are left out, unless `--threads` is given.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from model.bundle import Bundle, BundleConfig
from model.containers.header import Header
from model.reference import REFERENCE_PARAMS, reference_input
from model.spec import CenterCropSpec, Preprocessing
from model.types import Batch, Geometry, Image, ModelInput, Size, Task
from service.frontend.core.auth import open_auth
from service.frontend.core.engine import Engine
from service.frontend.core.executor import PreparePool, Timed, Work
from service.frontend.http.server import serve
from service.frontend.http_main import create_app
from service.observability.exposition import open_metrics
from service.observability.metrics import METRICS_DIR, FrontEndMetrics, WorkerMetrics
from service.process import LIFELINE_FD, LISTEN_FD, ROLE, inherited_socket, open_listener, run_process
from service.settings import Settings, usable_cores
from service.types import PredictRequest
from service.wire.pool import WorkerPool
from service.wire.worker_endpoint import WorkerEndpoint
from service.worker.runner import Outputs
from service.worker.worker import Worker
from tests.fakes import FakeRunner, fake_answer, fake_bundle

SIDE = 180
"""An input of 180 x 180 pixels has 97,200 bytes: no more than a body of 100 KB."""
SIZE = Size(SIDE, SIDE)
THREADS = "BENCH_NOOP_THREADS"
"""Environment variable of the front-end processes: set if they use their threads."""
USES_THREADS = THREADS in os.environ


@dataclass
class NoRunner(FakeRunner):
    """Returns the reference answer for every input."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bundle = fake_bundle(Task.CLASSIFY)
        ready = reference_input(bundle.config.preprocessing)
        self.answer = fake_answer(Task.CLASSIFY, ready.pixels, ready.geometry, REFERENCE_PARAMS)

    def run(self, slot: str, batch: Batch, lanes: int) -> Outputs:  # noqa: ARG002  (the protocol's)
        return (self.answer,) * len(batch.params)


class NoDecoding(PreparePool):
    """Uses the body as the decoded picture."""

    def prepare(
        self,
        image: bytes | Image,
        spec: Preprocessing,  # noqa: ARG002
        header: Header | None = None,  # noqa: ARG002
    ) -> ModelInput:
        assert isinstance(image, bytes)
        return taken_as_input(image)

    def submit(self, work: Work[Any]) -> None:
        if USES_THREADS:
            super().submit(work)
            return
        work.future = asyncio.get_running_loop().create_future()
        started_s = time.monotonic()
        value = work.call(*work.args)
        work.future.set_result(Timed(value, started_s, time.monotonic() - started_s))


class NoHeader(Engine):
    """Does not read the size of an image from its header."""

    def preparation(self, request: PredictRequest, config: BundleConfig) -> Work[ModelInput]:
        args = (request.image, config.preprocessing)
        return Work(self.threads.prepare, args, request.deadline_s, request.caller, config.name)


def taken_as_input(body: bytes) -> ModelInput:
    pixels = np.frombuffer(body, np.uint8, SIDE * SIDE * 3).reshape(SIDE, SIDE, 3)
    return ModelInput(pixels, Geometry(SIZE, SIZE))


async def _rest(settings: Settings, stop: asyncio.Event) -> int:
    listener = inherited_socket()
    assert listener is not None
    counted = CollectorRegistry()
    metrics = FrontEndMetrics(counted)
    workshop = NoDecoding(usable_cores(), settings.decode_limits)
    heartbeat_s, timeout_s = settings.heartbeat_interval_ms / 1000, settings.worker_timeout_ms / 1000
    workers = WorkerPool(settings.worker_address, heartbeat_s=heartbeat_s, timeout_s=timeout_s, listener=metrics)
    async with open_auth(settings, metrics) as auth, workers:
        engine = NoHeader(workers, workshop, settings, metrics, auth.charge)
        with open_metrics(counted) as shared:
            registry = shared.of_all()
            service = create_app(engine, auth, settings, metrics, registry)
            await serve(service, [listener], stop, 1.0)
    workshop.close()
    return 0


async def _worker(settings: Settings, stop: asyncio.Event) -> int:
    # Its reference has the size of the inputs: the worker measures how batches of that size are best.
    config = fake_bundle(Task.CLASSIFY).config
    spec = CenterCropSpec(resize_shorter=SIDE, crop=SIDE)
    bundle = Bundle(Path(config.name), config.model_copy(update={"preprocessing": spec}))
    metrics = WorkerMetrics(CollectorRegistry(), {bundle.config.name: bundle.config.task.value})
    async with WorkerEndpoint(settings.worker_address[0]) as endpoint:
        await Worker([bundle], lambda _: NoRunner(), settings, metrics).run(endpoint, stop)
    return 0


def _all(port: int, rest_processes: int, *, threads: bool) -> None:
    """Start the parts, wait for a signal, end them by closing the lifeline."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    with tempfile.TemporaryDirectory(prefix="bench-noop-") as folder, open_listener("127.0.0.1", port) as listener:
        ours, lifeline = socket.socketpair()
        settings = Settings(worker_address=(f"ipc://{folder}/worker",), access_log=False)
        environment = {
            **os.environ,
            **settings.as_environment(),
            METRICS_DIR: folder,
            LIFELINE_FD: str(lifeline.fileno()),
        }
        if threads:
            environment[THREADS] = "1"
        parts = [("worker", "worker-0"), *(("rest", f"rest-{at}") for at in range(rest_processes))]
        children = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.noop", "--part", part],
                env={**environment, ROLE: role, LISTEN_FD: str(listener.fileno())},
                pass_fds=(lifeline.fileno(), listener.fileno()),
            )
            for part, role in parts
        ]
        lifeline.close()
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        ours.close()
        for child in children:
            child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noop", description=__doc__)
    parser.add_argument("--http-port", type=int, default=0)
    parser.add_argument("--rest-processes", type=int, default=1)
    parser.add_argument("--threads", action="store_true", help="pass each body through a thread")
    parser.add_argument("--part", choices=("rest", "worker"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is None:
        _all(arguments.http_port, arguments.rest_processes, threads=arguments.threads)
        return
    settings = Settings()
    part = _rest if arguments.part == "rest" else _worker
    sys.exit(run_process(arguments.part, settings, lambda stop: part(settings, stop)))


if __name__ == "__main__":
    main()
