"""A real front-end and a real worker under load: each answer with its stages, on one clock."""

from __future__ import annotations

import itertools
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import uvloop

from benchmarks.processes import ServerProcess
from benchmarks.servers import REPOSITORY
from benchmarks.tail.records import Records, read_records
from benchmarks.visit import steady_rate
from service.cli.load.http import ConnectionBroken, Connections, request_bytes
from service.cli.load.loops import ANSWERED, Outcome, Status, closed_loop, open_loop
from service.cli.load.service import outcome_of

HOST = "127.0.0.1"
START_S = 300.0
PATIENCE_S = 60.0
STOP_S = 30.0
CLIENTS = 32
"""Of the closed loop whose rate is the capacity."""
WARM_UP_S = 1.0
DEADLINE_MS = 500
"""Of the requests beyond the capacity, as in `benchmarks.visit`."""
LISTENING = re.compile(r"listening.*127\.0\.0\.1:(\d+)")
READY = re.compile(r"\bready\b.*start_s")


@dataclass(frozen=True, slots=True)
class Answer:
    """A request that was answered. `stages` are those of the header Server-Timing, in ms."""

    model: str
    due_s: float
    sent_s: float
    ended_s: float
    stages: Mapping[str, float]
    images: int

    @property
    def ms(self) -> float:
        return (self.ended_s - self.due_s) * 1000


@dataclass
class Load:
    """One load. `per_second`: answers; `cpu_ms`: CPU of an answer outside its batch (client included)."""

    answers: list[Answer] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    per_second: float = 0.0
    offered: float = 0.0
    seconds: float = 0.0
    cpu_ms: float = 0.0
    began_s: float = 0.0

    def percentile_ms(self, percent: float, model: str | None = None) -> float:
        ms = [one.ms for one in self.answers if model is None or one.model == model]
        return float(np.percentile(ms, percent)) if ms else float("nan")

    @property
    def good_per_second(self) -> float:
        """Answers within the deadline of `DEADLINE_MS` after the request was due."""
        return sum(one.ms <= DEADLINE_MS for one in self.answers) / self.seconds


class Service:
    """The running service. `records` has what its processes recorded, once it was stopped."""

    def __init__(self, folder: Path, models: Sequence[str], models_dir: Path | None) -> None:
        environment = {
            "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "client"))),
            "CONVMLP_WORKER_ADDRESS": f"ipc://{folder}/worker",
            "CONVMLP_HTTP_PORT": "0",
            "CONVMLP_HOST": HOST,
            "CONVMLP_ACCESS_LOG": "false",
            "CONVMLP_MODELS": ",".join(models),
            "CONVMLP_STATE_DIR": str(folder / "state"),
            "CONVMLP_WORKER_METRICS_PORT": "0",
            **({} if models_dir is None else {"CONVMLP_MODELS_DIR": str(models_dir)}),
        }
        self._files = {part: folder / f"{part}.json" for part in ("worker", "rest")}
        self._processes = {
            part: ServerProcess(
                [sys.executable, "-m", "benchmarks.tail.parts", part, str(file)],
                environment,
                folder / f"{part}.log",
                REPOSITORY,
            )
            for part, file in self._files.items()
        }
        self.records = Records()
        try:
            self.port = int(self._logged("rest", LISTENING)[1])
            self._logged("worker", READY)
        except BaseException:
            self.stop()
            raise
        self._rest = psutil.Process(self._processes["rest"].pid)
        self._worker = psutil.Process(self._processes["worker"].pid)

    def _logged(self, part: str, pattern: re.Pattern[str]) -> re.Match[str]:
        process, until_s = self._processes[part], time.monotonic() + START_S
        while (found := pattern.search(process.log.read_text(encoding="utf-8"))) is None:
            if time.monotonic() > until_s or process.ended:
                raise SystemExit(f"{part} does not start\n{process.log.read_text(encoding='utf-8')}")
            time.sleep(0.1)
        return found

    def cpu_s(self) -> float:
        """CPU seconds outside the device: of the front-end, of the worker's event loop, and of this process."""
        rest = self._rest.cpu_times()
        (loop,) = (one for one in self._worker.threads() if one.id == self._worker.pid)
        return rest.user + rest.system + loop.user_time + loop.system_time + time.process_time()

    def stop(self) -> None:
        for part in reversed(self._processes):  # the front-end first: it needs the worker for its last requests
            self._processes[part].stop(STOP_S)
            if self._files[part].exists():
                recorded = read_records(self._files[part])
                self.records.batches += recorded.batches
                self.records.pauses += recorded.pauses


@contextmanager
def running(models: Sequence[str], models_dir: Path | None) -> Iterator[Service]:
    """A service that is stopped at the end. Raises SystemExit: it does not start."""
    with tempfile.TemporaryDirectory(prefix="bench-tail-") as name:
        service = Service(Path(name), models, models_dir)
        try:
            yield service
        finally:
            service.stop()


def apply_load(
    service: Service,
    requests: Mapping[str, Sequence[tuple[str, bytes]]],
    shares: Mapping[str, float],
    seconds: float,
    *,
    clients: int = 0,
    rate: float = 0.0,
    timeout_ms: int | None = None,
) -> Load:
    """A closed loop of `clients`, or an open loop of `rate` requests a second.

    Args:
        requests: by model, path and picture of its requests; each request draws a model by its share, then takes the
            next picture.
    """
    load = Load(offered=rate, seconds=seconds)
    cpu_s = service.cpu_s()
    uvloop.run(_apply(service.port, load, requests, shares, clients, timeout_ms))
    load.cpu_ms = (service.cpu_s() - cpu_s) * 1000 / max(1, sum(load.statuses.values()))
    window_s = load.began_s + WARM_UP_S
    load.per_second = steady_rate([one.ended_s for one in load.answers], window_s, seconds)
    load.answers = [one for one in load.answers if one.due_s >= window_s]
    return load


async def _apply(
    port: int,
    load: Load,
    requests: Mapping[str, Sequence[tuple[str, bytes]]],
    shares: Mapping[str, float],
    clients: int,
    timeout_ms: int | None,
) -> None:
    headers = {"Content-Type": "image/jpeg"} | ({} if timeout_ms is None else {"X-Request-Timeout-Ms": str(timeout_ms)})
    turns = {
        model: itertools.cycle(
            [request_bytes("POST", f"{HOST}:{port}", path, headers, picture) for path, picture in pairs]
        )
        for model, pairs in requests.items()
    }
    draw, models, weights = random.Random(0), list(requests), [shares[model] for model in requests]
    due = due_times(load.offered) if load.offered else None
    async with Connections(HOST, port) as connections:

        async def send(_: int) -> Outcome:
            (model,) = draw.choices(models, weights)
            sent_s = time.monotonic()
            due_s = sent_s if due is None else load.began_s + next(due)
            try:
                response = await connections.request(next(turns[model]), PATIENCE_S)
            except (ConnectionBroken, TimeoutError) as error:
                load.statuses[0] = load.statuses.get(0, 0) + 1
                return Outcome(Status.FAILED, str(error))
            load.statuses[response.status] = load.statuses.get(response.status, 0) + 1
            if response.status != 200:
                return outcome_of(response)
            stages, images = parse_timing(response.headers[b"server-timing"].decode("ascii"))
            load.answers.append(Answer(model, due_s, sent_s, time.monotonic(), stages, images))
            return ANSWERED

        load.began_s = time.monotonic()
        if clients:
            await closed_loop(send, clients, load.seconds, WARM_UP_S)
        else:
            await open_loop(send, load.offered, load.seconds, WARM_UP_S)


def due_times(rate: float) -> Iterator[float]:
    """When `open_loop` sends its requests, in seconds from its start."""
    gaps = random.Random(0)
    return itertools.accumulate(gaps.expovariate(rate) for _ in itertools.count())


def parse_timing(header: str) -> tuple[dict[str, float], int]:
    """The stages of a header Server-Timing in ms, and the images of the batch."""
    stages, images = {}, 0
    for entry in header.split(", "):
        name, kind, value = re.split(r";(dur|desc)=", entry)
        if kind == "dur":
            stages[name] = float(value)
        else:
            images = int(value)
    return stages, images
