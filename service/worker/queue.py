"""Whose turn it is: each model has its share of the device's time, whatever the others ask for.

Start-time fair queueing (Goyal, Vin and Cheng 1997): a model's virtual time is what it has had of the device divided
by its weight, and the one with the least is next. One that had nothing to do starts again at the present virtual time:
it does not save up credit for time in which it asked for nothing.

Jobs, and the bounded queue they wait in until the device takes them.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from model.errors import ConvMLPError
from model.types import ModelInput, QueryParams, RawOutput
from service.errors import Overloaded
from service.observability.tracing import NO_SPAN, Span

MAX_MODELS = 1024
"""Whose virtual times are remembered; that of any other is the present one."""


class FairShares:
    """Virtual times of models. `weights`: of those that are to have another share than 1."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)
        self._times: dict[str, float] = {}
        self._present = 0.0

    def weight(self, model: str) -> float:
        return self._weights.get(model, 1.0)

    def enter(self, model: str) -> None:
        """A model of which nothing waited has something to do."""
        self._times[model] = max(self._times.pop(model, 0.0), self._present)
        if len(self._times) > MAX_MODELS:
            del self._times[next(iter(self._times))]  # the one that came back longest ago

    def next(self, models: Iterable[str]) -> str:
        """Of these, which have something to do: the one whose turn it is."""
        model = min(models, key=self._time)
        self._present = max(self._present, self._time(model))
        return model

    def charge(self, model: str, seconds: float) -> None:
        """A model takes so much of the device, or gives back what it did not need. Seconds of one lane."""
        self._times[model] = self._time(model) + seconds / self.weight(model)

    def _time(self, model: str) -> float:
        return self._times.get(model, self._present)


@dataclass(frozen=True, slots=True)
class Done:
    """A job's outcome: its output, or the error that it met, the seconds that it waited and ran, and how many images,
    itself among them, ran at once."""

    result: RawOutput | ConvMLPError
    queue_s: float
    infer_s: float
    batch_images: int = 1


class Shape(NamedTuple):
    """What the jobs of one batch have in common: the model, and the input's height and width in pixels.

    `slot` is where the model lies in the runner: while a model is replaced there are two of its name. A tuple, since
    each job's is made and looked up several times, and a dataclass takes five times as long for it.
    """

    model: str
    slot: str
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One input that waits. `reply` is called exactly once; times are on the clock of `time.monotonic`."""

    key: tuple[bytes, int]
    """Who sent it, and its number there."""
    shape: Shape
    input: ModelInput
    params: QueryParams
    enqueued_s: float
    deadline_s: float
    reply: Callable[[Done], None] = field(repr=False)
    request_id: str = ""
    """The front-end's; a self-check has none."""
    span: Span = NO_SPAN
    """The front-end's, of which the job's own are children."""


class _Ticket(NamedTuple):
    """A job's place: by deadline, then by arrival."""

    deadline_s: float
    number: int
    """Its own, so that nothing after it is ever compared."""
    job: Job
    seconds: float
    """Of one lane, that it is expected to take."""


class _Line:
    """What waits of one model, the earliest deadline first: all together, and each shape by itself.

    Sorted lists: to find a place takes O(log n) comparisons, and to open or close a gap moves 8 bytes for each job
    behind it, which for thousands of jobs is less than a heap's comparisons in Python; nor does anything stay behind
    of a job that was withdrawn.
    """

    __slots__ = ("jobs", "seconds", "shapes")

    def __init__(self) -> None:
        self.jobs: list[_Ticket] = []
        self.shapes: dict[Shape, list[_Ticket]] = {}
        self.seconds = 0.0

    def put(self, ticket: _Ticket) -> None:
        insort(self.jobs, ticket)
        insort(self.shapes.setdefault(ticket.job.shape, []), ticket)
        self.seconds += ticket.seconds

    def remove(self, ticket: _Ticket) -> None:
        shape = ticket.job.shape
        of_shape = self.shapes[shape]
        del self.jobs[bisect_left(self.jobs, ticket)]
        del of_shape[bisect_left(of_shape, ticket)]
        if not of_shape:
            del self.shapes[shape]
        self.seconds -= ticket.seconds


class JobQueue:
    """Jobs that wait, never more than `max_images` of them or `max_pixels` in all.

    Models have turns by their fair shares of the device's time, where `weights` are not all alike; within a model
    the earliest deadline is first. All but `slots` takes O(log n) for n jobs, or O(models).
    """

    def __init__(self, max_images: int, max_pixels: int, weights: Mapping[str, float] | None = None) -> None:
        self._max_images = max_images
        self._max_pixels = max_pixels
        self._tickets: dict[tuple[bytes, int], _Ticket] = {}
        self._lines: dict[str, _Line] = {}
        self._numbers = itertools.count()
        self._pixels = 0
        self.shares = FairShares(weights or {})

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def pixels(self) -> int:
        """Of all inputs that wait."""
        return self._pixels

    @property
    def models(self) -> Collection[str]:
        """Of which something waits."""
        return self._lines.keys()

    @property
    def seconds(self) -> float:
        """Of one lane, that all jobs are expected to take."""
        return sum(line.seconds for line in self._lines.values())

    def depth(self, model: str) -> int:
        """How many jobs of a model wait."""
        line = self._lines.get(model)
        return len(line.jobs) if line is not None else 0

    def depth_of(self, shape: Shape) -> int:
        """How many jobs of a shape wait."""
        line = self._lines.get(shape.model)
        return len(line.shapes.get(shape, ())) if line is not None else 0

    def has_slot(self, slot: str) -> bool:
        """Whether a job waits for a slot; takes O(shapes)."""
        return any(shape.slot == slot for line in self._lines.values() for shape in line.shapes)

    def seconds_before(self, model: str, deadline_s: float) -> float:
        """Seconds of one lane after which a job with this deadline would have its turn, about: those of its own model
        with an earlier one, and what other models take by their shares meanwhile, but not more than they have."""
        line = self._lines.get(model)
        if line is None:
            return 0.0
        place = bisect_right(line.jobs, (deadline_s,), key=lambda ticket: ticket[:1])
        mine = line.seconds * place / len(line.jobs)
        others = sum(self.shares.weight(other) for other in self._lines if other != model) / self.shares.weight(model)
        return mine + min(self.seconds - line.seconds, mine * others)

    def put(self, job: Job, seconds: float, retry_after_s: float) -> None:
        """Let a job in, which will take so many seconds of one lane.

        Raises:
            Overloaded: the queue is full; `retry_after_s` is what the caller is told.
        """
        pixels = job.shape.height * job.shape.width
        if len(self._tickets) >= self._max_images or self._pixels + pixels > self._max_pixels:
            raise Overloaded(
                f"the queue is full: {len(self._tickets)} images wait; try again in {retry_after_s:.1f} s",
                retry_after_s,
            )
        self.remove(job.key)  # a front-end that gives a number twice has one answer
        model = job.shape.model
        line = self._lines.get(model)
        if line is None:
            line = self._lines[model] = _Line()
            self.shares.enter(model)
        ticket = _Ticket(job.deadline_s, next(self._numbers), job, seconds)
        line.put(ticket)
        self._tickets[job.key] = ticket
        self._pixels += pixels

    def remove(self, key: tuple[bytes, int]) -> Job | None:
        """Take one job out, wherever it stands; None where it is not waiting (any more)."""
        ticket = self._tickets.pop(key, None)
        if ticket is None:
            return None
        job = ticket.job
        line = self._lines[job.shape.model]
        line.remove(ticket)
        if not line.jobs:
            del self._lines[job.shape.model]  # what rounding left of its seconds goes as well
        self._pixels -= job.shape.height * job.shape.width
        return job

    def first(self, model: str) -> Job | None:
        """The job of a model that has the earliest deadline."""
        line = self._lines.get(model)
        return line.jobs[0].job if line is not None else None

    def next(self) -> Job:
        """Of the model whose turn it is the first. Something must wait."""
        return self._lines[self.shares.next(self._lines)].jobs[0].job

    def take(self, shape: Shape, images: int) -> tuple[Job, ...]:
        """The first jobs of a shape leave the queue, so many at most."""
        taken = [ticket.job for ticket in self._lines[shape.model].shapes[shape][:images]]
        for job in taken:
            self.remove(job.key)
        return tuple(taken)
