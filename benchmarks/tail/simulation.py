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

from model.errors import ConvMLPError
from model.types import Geometry, ModelInput, QueryParams, Size
from service.worker.tuning import best_of
from service.worker.types import Job, JobResult, RunningBatch, Shape

SIDE = 224
DEADLINE_S = 30.0
"""Of every request, where no other is given: so long that none is refused."""
REFUSAL_PART = 0.4
"""Of a request's CPU time outside its batch, where it is refused before its image is decoded."""
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
    """`due_s`: when it arrives. `deadline_s`: the time for its answer from then on. `side`: of its input, in pixels."""

    number: int
    model: str
    due_s: float
    deadline_s: float = DEADLINE_S
    side: int = SIDE


class FrontEnd(Protocol):
    """What a front-end decides before it decodes a request's image."""

    def arrived(self, request: Request, deadline_s: float, now_s: float) -> ConvMLPError | None:
        """A request arrived. Returns why it is refused; None: its image is decoded."""
        ...

    def decoded(self, request: Request, now_s: float) -> None:
        """Its image was decoded, and goes to the worker."""
        ...

    def ended(self, job: Job, *, answered: bool, now_s: float) -> None:
        """The worker replied to it."""
        ...


class Policy(Protocol):
    """Chooses batches. Every job that was put has to be taken once, or replied to with an error."""

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
    refusal: ConvMLPError | None = None
    """Of a request that is refused instead of decoded."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was answered with an error. `accepted`: after its job had waited in the queue."""

    request: Request
    at_s: float
    error: ConvMLPError
    accepted: bool


@dataclass
class Result:
    """Of all requests of a run, in the order of their ends."""

    latencies_s: list[float] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    queue_s: list[float] = field(default_factory=list)
    infer_s: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    ended_s: float = 0.0

    def percentile_ms(self, percent: float, model: str | None = None) -> float:
        latencies = [one for one, of in zip(self.latencies_s, self.models, strict=True) if model is None or of == model]
        return float(np.percentile(latencies, percent)) * 1000 if latencies else math.nan


class Simulation:
    """One run. `source` gives the first requests, and `after` the next one of the client whose request has ended.

    `front_end` may refuse requests before they are decoded. `disturb`
    gives a factor on the seconds of each batch.
    """

    def __init__(
        self,
        curves: Mapping[str, Curve],
        lanes: int,
        policy: Policy,
        source: Sequence[Request],
        after: Callable[[Request, float], Request | None] = lambda _request, _now_s: None,
        *,
        front_end: FrontEnd | None = None,
        disturb: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._curves = curves
        self._lanes = lanes
        self._policy = policy
        self._after = after
        self._front_end = front_end
        self._disturb = disturb
        self._arrivals = [(request.due_s, request.number, request) for request in source]
        heapq.heapify(self._arrivals)
        self._decoding: list[_Task] = []
        self._computing: list[_Task] = []
        self._running: list[RunningBatch] = []
        self._requests: dict[int, Request] = {}
        self._now_s = 0.0
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
            now_s = self._now_s = until_s
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
            self._arrive(heapq.heappop(self._arrivals)[2], now_s)
        for task in [task for task in self._computing if task.left_s <= 1e-9]:
            self._computing.remove(task)
            self._end(task, now_s)
        for task in [task for task in self._decoding if task.left_s <= 1e-9]:
            self._decoding.remove(task)
            self._decoded(task, now_s)
        while (batch := self._policy.next(self._free(), self._running, now_s)) is not None:
            batch.started_s = now_s
            self._running.append(batch)
            first = self._requests[batch.jobs[0].key[1]]
            seconds = self._curves[first.model].batch_s(len(batch.jobs), batch.lanes, self._lanes) * self._disturb()
            self._computing.append(_Task(seconds, first, batch, now_s))

    def _arrive(self, request: Request, now_s: float) -> None:
        decode_s, refusal = self._curves[request.model].decode_s, None
        if self._front_end is not None:
            refusal = self._front_end.arrived(request, request.due_s + request.deadline_s, now_s)
        self._decoding.append(_Task(decode_s if refusal is None else REFUSAL_PART * decode_s, request, refusal=refusal))

    def _decoded(self, task: _Task, now_s: float) -> None:
        request = task.request
        deadline_s = request.due_s + request.deadline_s
        if task.refusal is not None:
            self._refuse(request, now_s, task.refusal, accepted=False)
            return
        if self._front_end is not None:
            self._front_end.decoded(request, now_s)
        self._now_s = now_s
        self._requests[request.number] = request
        shape = shape_of(request.model, request.side)
        job = Job((b"", request.number), shape, _INPUT, _PARAMS, now_s, deadline_s, self._reply)
        self._policy.put(job, self._free(), now_s)

    def _reply(self, job: Job, result: JobResult) -> None:
        """A policy refuses a job, when it is put or later."""
        assert isinstance(result.result, ConvMLPError)
        request = self._requests.pop(job.key[1])
        if self._front_end is not None:
            self._front_end.ended(job, answered=False, now_s=self._now_s)
        self._refuse(request, self._now_s, result.result, accepted=self._now_s > job.enqueued_s)

    def _refuse(self, request: Request, now_s: float, error: ConvMLPError, *, accepted: bool) -> None:
        self.result.refusals.append(Refusal(request, now_s, error, accepted))
        self._follow(request, now_s)

    def _follow(self, request: Request, now_s: float) -> None:
        """The next request of the client."""
        following = self._after(request, now_s)
        if following is not None:
            heapq.heappush(self._arrivals, (following.due_s, following.number, following))

    def _free(self) -> int:
        return self._lanes - sum(batch.lanes for batch in self._running if not batch.overlaps)

    def _end(self, task: _Task, now_s: float) -> None:
        batch, result = task.batch, self.result
        assert batch is not None
        self._running.remove(batch)
        self._policy.ended(batch, now_s - task.started_s)
        last = batch.jobs[-1]
        for job in batch.jobs:
            request = self._requests.pop(job.key[1])
            result.latencies_s.append(now_s - request.due_s)
            result.models.append(request.model)
            result.queue_s.append(task.started_s - job.enqueued_s)
            result.infer_s.append(now_s - task.started_s)
            result.images.append(len(batch.jobs))
            result.requests.append(request)
            if self._front_end is not None:
                self._front_end.ended(job, answered=job is last, now_s=now_s)
            self._follow(request, now_s)


def shape_of(model: str, side: int = SIDE) -> Shape:
    return Shape(model, model, side, side)


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
