"""The bounded queue in which jobs wait for the device: by deadline, while each model keeps its share of the device."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from service.errors import Overloaded
from service.worker.types import Job, JobKey, Shape

MAX_MODELS = 1024
"""Models whose virtual times are kept; any other model starts at the present virtual time."""
LEAD_S = 0.25
"""Seconds of one lane by which a model may be ahead of its share. While all models are served in time, bursts of one
stay below it, and all jobs run by deadline, which keeps the slowest answers soonest: see `benchmarks.tail`."""
ARRIVALS_S = 1.0
"""Work that arrived so many seconds ago counts e times less in `ArrivalRates`."""
MIN_RATE = 0.01
"""Of a lane: a model of which less work arrives has no part in estimates unless its jobs wait."""
FORGET_S = 10.0
"""A model of which no job arrived for so long has no rate."""
ROUNDS = 4
"""Of the estimate of what arrives until a job is served: it depends on itself."""


class FairShares:
    """Which model is next: each has its share of the device's time, however many requests the others get.

    Start-time fair queueing (Goyal, Vin and Cheng 1997): a model's virtual time is the device time that it used divided
    by its weight. A model that had no work starts again at the present virtual time, the least of the models that have
    work: it saves up no credit for time in which it asked for nothing. `weights` has the models whose weight is not 1.

    Next is the model whose job is due first, of those that are at most `lead_s` ahead of the one with the least virtual
    time. With a lead of 0 models take strict turns, and a burst of a model waits for each request of the others.
    """

    def __init__(self, weights: Mapping[str, float], lead_s: float = LEAD_S) -> None:
        self._weights = dict(weights)
        self._lead_s = lead_s
        self._times: dict[str, float] = {}
        self._present = 0.0

    def weight(self, model: str) -> float:
        return self._weights.get(model, 1.0)

    def enter(self, model: str) -> None:
        """Call when a job of a model waits and none did before."""
        self._times[model] = max(self._times.pop(model, 0.0), self._present)
        if len(self._times) > MAX_MODELS:
            del self._times[next(iter(self._times))]  # the model that entered longest ago

    def next(self, due_s: Mapping[str, float]) -> str:
        """The model to serve next, of those that have jobs: when the first job of each is due."""
        least = min(map(self._time, due_s))
        self._present = max(self._present, least)
        return min((model for model in due_s if self._time(model) <= least + self._lead_s), key=due_s.__getitem__)

    def only(self, model: str) -> None:
        """The model to serve next is the only one that has jobs."""
        self._present = max(self._present, self._times.get(model, self._present))

    def lead_s(self, model: str, other: str) -> float:
        """Seconds of one lane that a model may use before another one's jobs that are due later."""
        return max(0.0, self._time(other) + self._lead_s - self._time(model)) * self.weight(model)

    def claims_s(self, model: str, turn_s: float, others: Iterable[str]) -> dict[str, float]:
        """Seconds of one lane that each of the others may use before a model has used `turn_s` of its virtual time,
        even for jobs that are due later.

        While the model is more than the lead ahead of the least of them, that one is served, up to the lead below the
        model, and so are others that are behind the model.
        """
        times = {other: max(self._time(other), self._present) for other in others}
        end = max(self._time(model), self._present) + turn_s
        least = min(times, key=times.__getitem__, default=model)
        if least == model or end - self._lead_s <= times[least]:
            return dict.fromkeys(times, 0.0)
        return {
            other: max(0.0, end - at - (self._lead_s if other == least else 0.0)) * self.weight(other)
            for other, at in times.items()
        }

    def charge(self, model: str, seconds: float) -> None:
        """Charge a model for seconds of one lane; negative ones return what a batch was charged too much."""
        self._times[model] = self._times.get(model, self._present) + seconds / self._weights.get(model, 1.0)

    def _time(self, model: str) -> float:
        return self._times.get(model, self._present)


class ArrivalRates:
    """The work that arrives for each model, lately: seconds of one lane in a second."""

    def __init__(self) -> None:
        self._rates: dict[str, tuple[float, float]] = {}
        """With the times that they hold for."""

    def record(self, model: str, seconds: float, now_s: float) -> None:
        """A job arrived that is expected to take so many seconds."""
        rate, at_s = self._rates.pop(model, (0.0, now_s))
        self._rates[model] = rate * math.exp(min(0.0, at_s - now_s) / ARRIVALS_S) + seconds / ARRIVALS_S, now_s
        if len(self._rates) > MAX_MODELS:
            del self._rates[next(iter(self._rates))]  # the model whose last job is the oldest

    def __len__(self) -> int:
        """The models of which a job arrived lately."""
        return len(self._rates)

    def rates(self, now_s: float) -> dict[str, float]:
        """By model, of those whose rate counts."""
        rates: dict[str, float] = {}
        for model in tuple(self._rates):
            rate, at_s = self._rates[model]
            rate *= math.exp(min(0.0, at_s - now_s) / ARRIVALS_S)
            if rate >= MIN_RATE:
                rates[model] = rate
            elif now_s - at_s > FORGET_S:
                del self._rates[model]
        return rates


class Entry(NamedTuple):
    """A job's place in the queue: by deadline, then by arrival."""

    deadline_s: float
    number: int
    """Unique, so that comparisons never reach the job."""
    job: Job
    seconds: float
    """Expected, of one lane."""


@dataclass(slots=True)
class ModelQueue:
    """The entries of one model, the earliest deadline first: all of them, and those of each shape.

    Sorted lists: to find a place takes O(log n) comparisons, and to open or close a gap moves 8 bytes for each entry
    behind it. For thousands of jobs that is faster than a heap's comparisons in Python, and a cancelled job leaves
    nothing behind.
    """

    entries: list[Entry] = field(default_factory=list)
    shapes: dict[Shape, list[Entry]] = field(default_factory=dict)
    seconds: float = 0.0
    """Of one lane, that all entries are expected to take."""

    def seconds_until(self, deadline_s: float) -> float:
        """Of the entries that are due until then, as if all took equally long."""
        if self.entries[-1].deadline_s <= deadline_s:
            return self.seconds
        place = bisect_right(self.entries, (deadline_s, math.inf))
        return self.seconds * place / len(self.entries)


class JobQueue:
    """Jobs that wait: at most `max_images` of them, with at most `max_pixels` pixels.

    The earliest deadline is first, as long as its model is not far ahead of its fair share of the device's time. All
    methods but `has_slot` and `later` take O(log n) for n jobs, or O(models) of them. `images` and `pixels` count what
    waits; `models` has the models of which a job waits.
    """

    def __init__(self, max_images: int, max_pixels: int, weights: Mapping[str, float] | None = None) -> None:
        self._max_images = max_images
        self._max_pixels = max_pixels
        self._entries: dict[JobKey, Entry] = {}
        self._numbers = itertools.count()
        self.images = 0
        self.pixels = 0
        self.models: dict[str, ModelQueue] = {}
        self.shares = FairShares(weights or {})
        self._arrivals = ArrivalRates()

    @property
    def seconds(self) -> float:
        """Seconds of one lane that all jobs are expected to take."""
        return sum(queue.seconds for queue in self.models.values())

    @property
    def is_mixed(self) -> bool:
        """Whether jobs of several models arrive."""
        return len(self._arrivals) > 1

    def depth(self, model: str) -> int:
        """How many jobs of a model wait."""
        queue = self.models.get(model)
        return len(queue.entries) if queue is not None else 0

    def depth_of(self, shape: Shape) -> int:
        """How many jobs of a shape wait."""
        queue = self.models.get(shape.model)
        return len(queue.shapes.get(shape, ())) if queue is not None else 0

    def has_slot(self, slot: str) -> bool:
        """Whether a job waits for a slot; takes O(shapes)."""
        return any(shape.slot == slot for queue in self.models.values() for shape in queue.shapes)

    def seconds_before(
        self, model: str, deadline_s: float, now_s: float, lanes: int = 1, running_s: float = 0.0
    ) -> float:
        """Estimated seconds of one lane that are served before a job with this deadline, which arrives now.

        They are the jobs of its own model with an earlier deadline. Of each other model they are the jobs with an
        earlier deadline, as far as it may be ahead of its share, or what it may use by its share whatever is due when.
        That is of what waits, and of what is expected to arrive until then: on so many lanes, after `running_s` of what
        runs now.
        """
        own = self.models.get(model)
        own_s = own.seconds_until(deadline_s) if own is not None else 0.0
        before_s = own_s
        turn_s = own_s / self.shares.weight(model)
        rates = self._arrivals.rates(now_s)
        arriving: list[tuple[float, float]] = []
        claims = self.shares.claims_s(model, turn_s, (self.models.keys() | rates.keys()) - {model})
        for other, claim_s in claims.items():
            if (queue := self.models.get(other)) is not None:
                allowed_s = turn_s * self.shares.weight(other) + self.shares.lead_s(other, model)
                waiting_s = min(queue.seconds, max(claim_s, min(queue.seconds_until(deadline_s), allowed_s)))
                before_s += waiting_s
                claim_s -= waiting_s
            if claim_s > 0.0 and other in rates:
                arriving.append((rates[other] / lanes, claim_s))
        # From above: where the rounds do not suffice, more is expected than will arrive.
        total_s = before_s + sum(claim_s for _, claim_s in arriving)
        for _ in range(ROUNDS if arriving else 0):
            total_s = before_s + sum(min(rate * (running_s + total_s), claim_s) for rate, claim_s in arriving)
        return total_s

    def later(self, model: str, deadline_s: float) -> Iterator[tuple[Entry, float]]:
        """The jobs of a model with a later deadline, in their order, each with the seconds of one lane until its end,
        where each other model takes its share of what waits. Takes O(n)."""
        queue = self.models.get(model)
        if queue is None:
            return
        others_s = self.seconds - queue.seconds
        weights = sum(self.shares.weight(other) for other in self.models if other != model)
        share = weights / self.shares.weight(model)
        place = bisect_right(queue.entries, (deadline_s, math.inf))
        own_s = queue.seconds * place / len(queue.entries)
        for entry in itertools.islice(queue.entries, place, None):
            own_s += entry.seconds
            yield entry, own_s + min(others_s, own_s * share)

    def put(self, job: Job, seconds: float, retry_after_s: float) -> None:
        """Add a job that is expected to take so many seconds of one lane. It replaces a waiting job of the same key.

        Raises:
            Overloaded: the queue is full; the error carries `retry_after_s`.
        """
        pixels = job.shape.height * job.shape.width
        if self.images >= self._max_images or self.pixels + pixels > self._max_pixels:
            raise Overloaded(
                f"the queue is full: {self.images} images wait; try again in {retry_after_s:.1f} s", retry_after_s
            )
        if job.key in self._entries:
            self.remove(job.key)
        model = job.shape.model
        queue = self.models.get(model)
        if queue is None:
            queue = self.models[model] = ModelQueue()
            self.shares.enter(model)
        entry = Entry(job.deadline_s, next(self._numbers), job, seconds)
        insort(queue.entries, entry)
        insort(queue.shapes.setdefault(job.shape, []), entry)
        queue.seconds += seconds
        self._arrivals.record(model, seconds, job.enqueued_s)
        self._entries[job.key] = entry
        self.images += 1
        self.pixels += pixels

    def remove(self, key: JobKey) -> Job | None:
        """Remove one job, wherever it stands. None: it does not wait (any more)."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        job = entry.job
        of_shape = self.models[job.shape.model].shapes[job.shape]
        self.take(job.shape, 1, bisect_left(of_shape, entry))
        return job

    def next(self) -> tuple[Shape, int]:
        """The shape of the next job, of the model that is next, and how many of the shape wait. At least one job must
        wait."""
        if len(self.models) == 1:
            ((model, queue),) = self.models.items()
            self.shares.only(model)
        else:
            queue = self.models[
                self.shares.next({model: queue.entries[0].deadline_s for model, queue in self.models.items()})
            ]
        shape = queue.entries[0].job.shape
        return shape, len(queue.shapes[shape])

    def next_short(self, longest_s: float) -> Shape | None:
        """As `next`, of the models whose first job is expected to take at most so many seconds of one lane."""
        due_s = {
            model: queue.entries[0].deadline_s
            for model, queue in self.models.items()
            if 0.0 < queue.entries[0].seconds <= longest_s
        }
        return self.models[self.shares.next(due_s)].entries[0].job.shape if due_s else None

    def take(self, shape: Shape, images: int, start: int = 0) -> tuple[Job, ...]:
        """Remove and return at most so many jobs of a shape, the earliest deadlines first, from place `start` on."""
        queue = self.models[shape.model]
        of_shape = queue.shapes[shape]
        taken = of_shape[start : start + images]
        del of_shape[start : start + images]
        if not of_shape:
            del queue.shapes[shape]
        jobs: list[Job] = []
        for entry in taken:
            del queue.entries[bisect_left(queue.entries, entry)]
            del self._entries[entry.job.key]
            queue.seconds -= entry.seconds
            jobs.append(entry.job)
        if not queue.entries:
            del self.models[shape.model]  # and with it the rounding errors of its seconds
        self.images -= len(jobs)
        self.pixels -= len(jobs) * shape.height * shape.width
        return tuple(jobs)
