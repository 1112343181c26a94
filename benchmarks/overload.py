"""The service under more load than it can serve: its answers, how fast it refuses the rest, and whether its Retry-After
is true.

A real front-end process and a real worker process. The limit is the device, which takes a fixed time for each image; or
the device shared by three models that take unequal times, `mixture`; or decoding, which takes a fixed time; or the CPU,
with large pictures and an instant device. (Client and service share the machine's
cores, so where the CPU is the limit the capacity is less under overload than before it.) The capacity is measured with
a closed loop; then requests arrive as a Poisson process of a multiple of it, whatever the service does.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import PIL.Image
import structlog
from prometheus_client import CollectorRegistry

from model.containers.header import Header
from model.reference import REFERENCE_PICTURE
from model.spec import Preprocessing
from model.types import Batch, Image, ModelInput, Task
from service.cli.load.http import ConnectionBroken, Connections, request_bytes
from service.cli.load.loops import ANSWERED, Outcome, Status, closed_loop, open_loop
from service.frontend.core.auth import open_auth
from service.frontend.core.engine import Engine
from service.frontend.core.executor import PreparePool
from service.frontend.http.server import serve
from service.frontend.http_main import create_app
from service.observability.metrics import FrontEndMetrics, WorkerMetrics
from service.process import open_listener, run_process
from service.settings import Settings
from service.wire.pool import WorkerPool
from service.wire.worker_endpoint import WorkerEndpoint
from service.worker.runner import Outputs
from service.worker.worker import Worker
from tests.fakes import FakeRunner, fake_bundle

ROOT = Path(__file__).resolve().parent.parent
LISTENING = re.compile(r"listening.*127\.0\.0\.1:(\d+)")
DEVICE_S = "BENCH_OVERLOAD_DEVICE_S"
DECODE_S = "BENCH_OVERLOAD_DECODE_S"
"""Environment variables of the parts: seconds for an image, of the device by task as JSON, and of a thread that decodes
it."""
START_S = 60.0
STOP_S = 10.0


class Limit(NamedTuple):
    """Seconds for an image, of the device by task and of decoding; and the picture's width."""

    device_s: Mapping[Task, float]
    decode_s: float = 0.0
    width: int = 320


LIMITS = {
    "device": Limit({Task.CLASSIFY: 0.02}),
    "mixture": Limit({Task.CLASSIFY: 0.005, Task.DETECT: 0.03, Task.SEGMENT: 0.025}),
    "decode": Limit({Task.CLASSIFY: 0.0}, decode_s=0.02),
    "cpu": Limit({Task.CLASSIFY: 0.0}, width=2400),
}
"""By what limits the service. Each task gets equally many requests."""
CLIENTS = 16
"""Of the closed loop that measures the capacity."""
GRACE_S = 5.0
"""How long the client waits for an answer after its deadline: a late answer is counted, not cut off."""

log = structlog.get_logger(__name__)


class TimedRunner(FakeRunner):
    """Takes a fixed time for each image of a batch, by its task."""

    image_s = msgspec.json.decode(os.environ.get(DEVICE_S, "{}"), type=dict[Task, float])

    def run(self, slot: str, batch: Batch, lanes: int) -> Outputs:
        time.sleep(self.image_s[self.slots[slot].config.task] * len(batch))
        return super().run(slot, batch, lanes)


class SlowDecoding(PreparePool):
    """Takes longer to decode an image, without using a core."""

    def prepare(self, image: bytes | Image, spec: Preprocessing, header: Header | None = None) -> ModelInput:
        time.sleep(float(os.environ[DECODE_S]))
        return super().prepare(image, spec, header)


@dataclass(frozen=True, slots=True)
class Ended:
    """A request: when it was sent and ended, on one clock, its status, and its Retry-After in seconds (0: none)."""

    sent_s: float
    ended_s: float
    status: int
    retry_after_s: float


class Report(msgspec.Struct, frozen=True):
    """Rates are per second; latencies in ms. `late` counts answers after the deadline, and 504. `retry_ratio` is
    Retry-After divided by the time after which everything accepted before the refusal had ended, in whole seconds as
    the header is."""

    limit: str
    capacity: float
    offered: float
    goodput: float
    refused: int
    late: int
    answers_p50_ms: float
    answers_p99_ms: float
    refusals_p50_ms: float
    refusals_p99_ms: float
    retry_ratio_p5: float
    retry_ratio_p95: float
    statuses: dict[int, int]


def measure(limit: str, factor: float, seconds: float, timeout_ms: int) -> Report:
    """Start the service, measure it and end it."""
    device_s, decode_s, width = LIMITS[limit]
    tasks = tuple(device_s)
    with tempfile.TemporaryDirectory(prefix="bench-overload-") as name:
        folder = Path(name)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CONVMLP_")} | {
            "CONVMLP_WORKER_ADDRESS": f"ipc://{folder}/worker",
            "CONVMLP_HTTP_PORT": "0",
            "CONVMLP_ACCESS_LOG": "false",
            "CONVMLP_PREPARE_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "client"))),
            DEVICE_S: msgspec.json.encode(device_s).decode(),
            DECODE_S: str(decode_s),
        }
        children = [
            _start(["benchmarks.overload", "--part", "worker"], environment, folder / "worker.log"),
            _start(["benchmarks.overload", "--part", "rest"], environment, folder / "rest.log"),
        ]
        try:
            port = _port(folder / "rest.log", children)
            return asyncio.run(_measure(limit, port, tasks, picture(width), factor, seconds, timeout_ms))
        finally:
            for child in children:
                child.terminate()
            for child in children:
                try:
                    child.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


def picture(width: int) -> bytes:
    """The reference photograph at this width, as a JPEG."""
    with PIL.Image.open(REFERENCE_PICTURE) as image:
        scaled = image.convert("RGB").resize((width, width * image.height // image.width))
    file = io.BytesIO()
    scaled.save(file, "JPEG", quality=85)
    return file.getvalue()


async def _measure(
    limit: str, port: int, tasks: Sequence[Task], image: bytes, factor: float, seconds: float, timeout_ms: int
) -> Report:
    ended: list[Ended] = []
    headers = {"Content-Type": "image/jpeg", "X-Request-Timeout-Ms": str(timeout_ms)}
    requests = [request_bytes("POST", f"127.0.0.1:{port}", f"/{task.value}", headers, image) for task in tasks]
    draw = random.Random(0)
    async with Connections("127.0.0.1", port) as connections:

        async def send(_: int) -> Outcome:
            sent_s = time.monotonic()
            try:
                response = await connections.request(draw.choice(requests), timeout_ms / 1000 + GRACE_S)
            except (ConnectionBroken, TimeoutError) as error:
                ended.append(Ended(sent_s, time.monotonic(), 0, 0.0))
                return Outcome(Status.FAILED, str(error))
            retry_after_s = float(response.headers.get(b"retry-after", b"0"))
            ended.append(Ended(sent_s, time.monotonic(), response.status, retry_after_s))
            return ANSWERED if response.status == 200 else Outcome(Status.REFUSED, str(response.status))

        until_s = time.monotonic() + START_S
        while (await send(0)).status is not Status.ANSWERED:
            if time.monotonic() > until_s:
                raise SystemExit("the service does not answer")
            await asyncio.sleep(0.1)
        capacity = (await closed_loop(send, CLIENTS, seconds / 2, 1.0)).per_second
        ended.clear()
        began_s = time.monotonic()
        await open_loop(send, factor * capacity, seconds)
    return report_of(limit, capacity, ended, began_s, seconds, timeout_ms / 1000)


def report_of(
    limit: str, capacity: float, ended: Sequence[Ended], began_s: float, seconds: float, timeout_s: float
) -> Report:
    """Of all requests of an open loop that began at `began_s`."""
    answered = [one for one in ended if one.status == 200]
    refused = [one for one in ended if one.status == 503]
    answers_ms = [(one.ended_s - one.sent_s) * 1000 for one in answered] or [float("nan")]
    refusals_ms = [(one.ended_s - one.sent_s) * 1000 for one in refused] or [float("nan")]
    accepted = sorted((one.sent_s, one.ended_s) for one in answered)
    sent, ends = np.array([one for one, _ in accepted]), np.array([one for _, one in accepted])
    # The latest end of what was accepted before each time.
    latest = np.maximum.accumulate(ends) if len(ends) else ends
    ratios = [float("nan")]
    for one in refused:
        before = int(np.searchsorted(sent, one.sent_s))
        if before:
            truth_s = max(float(np.ceil(latest[before - 1] - one.ended_s)), 1.0)
            ratios.append(one.retry_after_s / truth_s)
    p5, p95 = np.nanpercentile(ratios, (5, 95)) if len(ratios) > 1 else (float("nan"),) * 2
    return Report(
        limit,
        round(capacity, 1),
        round(len(ended) / seconds, 1),
        round(sum(one.ended_s < began_s + seconds for one in answered) / seconds, 1),
        len(refused),
        sum(one.status == 504 or (one.status == 200 and one.ended_s - one.sent_s > timeout_s) for one in ended),
        *_rounded(np.percentile(answers_ms, 50), np.percentile(answers_ms, 99)),
        *_rounded(np.percentile(refusals_ms, 50), np.percentile(refusals_ms, 99)),
        *_rounded(p5, p95),
        dict(Counter(one.status for one in ended)),
    )


def _rounded(first: float, second: float) -> tuple[float, float]:
    return round(float(first), 2), round(float(second), 2)


def _start(module: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        command = [sys.executable, "-m", *module]
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def _port(log: Path, children: Sequence[subprocess.Popen[bytes]]) -> int:
    until_s = time.monotonic() + START_S
    while (found := LISTENING.search(log.read_text(encoding="utf-8"))) is None:
        if time.monotonic() > until_s or any(child.poll() is not None for child in children):
            raise SystemExit(f"the front-end does not listen\n{log.read_text(encoding='utf-8')}")
        time.sleep(0.05)
    return int(found[1])


async def _rest(settings: Settings, stop: asyncio.Event) -> int:
    counted = CollectorRegistry()
    metrics = FrontEndMetrics(counted)
    threads = SlowDecoding(settings.prepare_threads, settings.decode_limits, max_bytes=settings.decoded_bytes)
    workers = WorkerPool(settings.worker_address, heartbeat_s=0.5, timeout_s=5.0, listener=metrics)
    with open_listener("127.0.0.1", 0) as listener:
        log.info("listening", url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        async with open_auth(settings, metrics) as auth, workers:
            engine = Engine(workers, threads, settings, metrics, auth.charge)
            await serve(create_app(engine, auth, settings, metrics, counted), [listener], stop, 1.0)
    threads.close()
    return 0


async def _worker(settings: Settings, stop: asyncio.Event) -> int:
    bundles = [fake_bundle(task) for task in TimedRunner.image_s]
    metrics = WorkerMetrics(CollectorRegistry(), {bundle.config.name: bundle.config.task.value for bundle in bundles})
    async with WorkerEndpoint(settings.worker_address[0]) as endpoint:
        await Worker(bundles, lambda _: TimedRunner(), settings, metrics).run(endpoint, stop)
    return 0


PARTS = {"rest": _rest, "worker": _worker}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--limit", choices=LIMITS, default="device")
    parser.add_argument("--factor", type=float, default=6.0, help="times the capacity")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--timeout-ms", type=int, default=2000)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part is not None:
        settings = Settings()
        part = PARTS[arguments.part]
        sys.exit(run_process(arguments.part, settings, lambda stop: part(settings, stop)))
    report = measure(arguments.limit, arguments.factor, arguments.seconds, arguments.timeout_ms)
    print(msgspec.json.format(msgspec.json.encode(report)).decode())


if __name__ == "__main__":
    main()
