"""A discrete-event simulation of a worker on the cores of a CPU, from the measured times of decoding and of batches.

A request arrives and is decoded; then its job waits until a policy puts it into a batch, which runs on one lane or on
several. Decoding goes before batches on the cores, as short work does under Linux's scheduler, and a lane whose core is
taken stands still meanwhile. The times are fixed: what other programs, the collector of garbage and page faults add is
left out, so that policies differ by their decisions alone.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from model.types import Geometry, ModelInput, QueryParams, Size
from service.worker.tuning import best_of
from service.worker.types import Job, RunningBatch, Shape

DEADLINE_S = 30.0
"""Of every request: so long that none is refused."""
_SIZE = Size(1, 1)
_INPUT = ModelInput(np.zeros((1, 1, 3), np.uint8), Geometry(_SIZE, _SIZE))
_PARAMS = QueryParams()


class Curve:
    """Seconds of a batch on one lane while the other lanes work too, by its images; between measured sizes a line.

    `lone_s`: of a single image on all lanes. `decode_s`: CPU seconds of a request outside its batch.
    """

    def __init__(self, seconds: Mapping[int, float], lone_s: float, decode_s: float) -> None:
        self.seconds = dict(sorted(seconds.items()))
        self.lone_s = lone_s
        self.decode_s = decode_s
        self._sizes, self._seconds = list(self.seconds), list(self.seconds.values())

    def batch_s(self, images: int, lanes: int, of_lanes: int) -> float:
        """Seconds of a batch. On several lanes it is as much faster as a single image is."""
        one_lane_s = float(np.interp(images, self._sizes, self._seconds))
        if images > self._sizes[-1]:
            one_lane_s *= images / self._sizes[-1]
        if lanes == 1:
            return one_lane_s
        gain = self._seconds[0] / self.lone_s
        return one_lane_s / (1 + (gain - 1) * (lanes - 1) / (of_lanes - 1))

    @property
    def best_image_s(self) -> float:
        """Of one lane, in the fastest batch."""
        return min(seconds / images for images, seconds in self.seconds.items())

    @property
    def best_images(self) -> int:
        """The batch size that the worker chooses for this curve."""
        return best_of({images: seconds / images for images, seconds in self.seconds.items()})


@dataclass(frozen=True, slots=True)
class Request:
    """`due_s`: when it arrives."""

    number: int
    model: str
    due_s: float


class Policy(Protocol):
    """Chooses batches. Every job that was put has to be taken once."""

    def put(self, job: Job, free: int, now_s: float) -> None:
        """A job arrived while so many lanes were free."""
        ...

    def next(self, free: int, running: Sequence[RunningBatch], now_s: float) -> RunningBatch | None:
        """A batch to start now; None: none. Batches with more lanes than there are share their cores."""
        ...

    def ended(self, batch: RunningBatch, seconds: float) -> None:
        """A batch has taken so many seconds."""
        ...

    def wake_s(self) -> float:
        """When to ask again although nothing has happened; infinity: never."""
        ...


@dataclass(slots=True)
class _Task:
    """Work that is being done at a rate. `batch` is None for decoding."""

    left_s: float
    request: Request
    batch: RunningBatch | None = None
    started_s: float = 0.0


@dataclass
class Result:
    """Of all requests of a run, in the order of their ends."""

    latencies_s: list[float] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    queue_s: list[float] = field(default_factory=list)
    infer_s: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    ended_s: float = 0.0

    def percentile_ms(self, percent: float, model: str | None = None) -> float:
        latencies = [one for one, of in zip(self.latencies_s, self.models, strict=True) if model is None or of == model]
        return float(np.percentile(latencies, percent)) * 1000 if latencies else math.nan


class Simulation:
    """One run. `source` gives the first requests, and `after` the next one of the client whose request has ended."""

    def __init__(
        self,
        curves: Mapping[str, Curve],
        lanes: int,
        policy: Policy,
        source: Sequence[Request],
        after: Callable[[Request, float], Request | None] = lambda _request, _now_s: None,
    ) -> None:
        self._curves = curves
        self._lanes = lanes
        self._policy = policy
        self._after = after
        self._arrivals = [(request.due_s, request.number, request) for request in source]
        heapq.heapify(self._arrivals)
        self._decoding: list[_Task] = []
        self._computing: list[_Task] = []
        self._running: list[RunningBatch] = []
        self._requests: dict[int, Request] = {}
        self.result = Result()

    def run(self) -> Result:
        now_s = 0.0
        while self._arrivals or self._decoding or self._computing or self._requests:
            decode_rate, batch_rate = self._rates()
            next_s = min(self._ends(now_s, decode_rate, batch_rate), default=math.inf)
            arrival_s = self._arrivals[0][0] if self._arrivals else math.inf
            until_s = max(now_s, min(next_s, arrival_s, self._policy.wake_s()))
            if until_s == math.inf:
                raise RuntimeError("the policy leaves jobs in its queue")
            for tasks, rate in ((self._decoding, decode_rate), (self._computing, batch_rate)):
                for task in tasks:
                    task.left_s -= (until_s - now_s) * rate
            now_s = until_s
            self._advance(now_s)
        self.result.ended_s = now_s
        return self.result

    def _rates(self) -> tuple[float, float]:
        """Of each piece of decoding, and of each batch, for each of its lanes."""
        decoding = len(self._decoding)
        decode_rate = min(1.0, self._lanes / decoding) if decoding else 1.0
        busy = sum(batch.lanes for batch in self._running)
        left = max(0.0, self._lanes - decoding)
        return decode_rate, min(1.0, left / busy) if busy else 1.0

    def _ends(self, now_s: float, decode_rate: float, batch_rate: float) -> Iterator[float]:
        for tasks, rate in ((self._decoding, decode_rate), (self._computing, batch_rate)):
            if rate:
                yield from (now_s + task.left_s / rate for task in tasks)

    def _advance(self, now_s: float) -> None:
        """Everything that happens now."""
        while self._arrivals and self._arrivals[0][0] <= now_s:
            request = heapq.heappop(self._arrivals)[2]
            self._decoding.append(_Task(self._curves[request.model].decode_s, request))
        for task in [task for task in self._computing if task.left_s <= 1e-9]:
            self._computing.remove(task)
            self._end(task, now_s)
        for task in [task for task in self._decoding if task.left_s <= 1e-9]:
            self._decoding.remove(task)
            self._requests[task.request.number] = task.request
            self._policy.put(_job(task.request, now_s), self._free(), now_s)
        while (batch := self._policy.next(self._free(), self._running, now_s)) is not None:
            batch.started_s = now_s
            self._running.append(batch)
            first = self._requests[batch.jobs[0].key[1]]
            seconds = self._curves[first.model].batch_s(len(batch.jobs), batch.lanes, self._lanes)
            self._computing.append(_Task(seconds, first, batch, now_s))

    def _free(self) -> int:
        return self._lanes - sum(batch.lanes for batch in self._running if not batch.overlaps)

    def _end(self, task: _Task, now_s: float) -> None:
        batch, result = task.batch, self.result
        assert batch is not None
        self._running.remove(batch)
        self._policy.ended(batch, now_s - task.started_s)
        for job in batch.jobs:
            request = self._requests.pop(job.key[1])
            result.latencies_s.append(now_s - request.due_s)
            result.models.append(request.model)
            result.queue_s.append(task.started_s - job.enqueued_s)
            result.infer_s.append(now_s - task.started_s)
            result.images.append(len(batch.jobs))
            following = self._after(request, now_s)
            if following is not None:
                heapq.heappush(self._arrivals, (following.due_s, following.number, following))


def shape_of(model: str) -> Shape:
    return Shape(model, model, 224, 224)


def _job(request: Request, now_s: float) -> Job:
    return Job(
        (b"", request.number),
        shape_of(request.model),
        _INPUT,
        _PARAMS,
        now_s,
        now_s + DEADLINE_S,
        lambda _job, _result: None,
    )


def poisson(rates: Mapping[str, float], count: int, seed: int) -> list[Request]:
    """Requests at random times, by model at so many a second on average."""
    draw, total, at_s = random.Random(seed), sum(rates.values()), 0.0
    requests = []
    for number in range(count):
        at_s += draw.expovariate(total)
        (model,) = draw.choices(list(rates), list(rates.values()))
        requests.append(Request(number, model, at_s))
    return requests


def capacity(
    curves: Mapping[str, Curve], lanes: int, policy: Policy, shares: Mapping[str, float], clients: int, count: int
) -> float:
    """Answers a second of a closed loop of so many clients, each request of a model drawn by its share."""
    draw = random.Random(0)

    def drawn() -> str:
        return draw.choices(list(shares), list(shares.values()))[0]

    def after(request: Request, now_s: float) -> Request | None:
        number = request.number + clients
        return Request(number, drawn(), now_s) if number < count else None

    first = [Request(number, drawn(), 0.0) for number in range(clients)]
    return count / Simulation(curves, lanes, policy, first, after).run().ended_s


def bound_s(curves: Mapping[str, Curve], lanes: int, requests: Sequence[Request], late: float) -> float:
    """A latency that no policy's `late` quantile can be below (0.01: of the 99th percentile).

    A policy that knows all arrivals, does each image's work in the time of the fastest batch spread over all lanes
    without loss, and never does the work of the requests that it gives up: of `late` of all. For any limit it meets
    the most of them: by Moore and Hodgson's rule it serves by due time and drops the longest where one would be late.
    """
    works = {model: (curve.best_image_s + curve.decode_s) / lanes for model, curve in curves.items()}
    floors = {model: curve.lone_s + curve.decode_s for model, curve in curves.items()}
    low, high = 0.0, 60.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if _given_up(requests, works, floors, middle) <= late * len(requests) else (middle, high)
        )
    return high


def _given_up(
    requests: Sequence[Request], works: Mapping[str, float], floors: Mapping[str, float], limit_s: float
) -> int:
    """How many requests cannot be answered within a limit. Requests are served in order of arrival."""
    free_s, given_up = 0.0, 0
    for request in requests:
        if floors[request.model] > limit_s:
            given_up += 1
            continue
        ended_s = max(free_s, request.due_s) + works[request.model]
        if ended_s - request.due_s > limit_s:
            given_up += 1
        else:
            free_s = ended_s
    return given_up
