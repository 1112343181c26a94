"""The bounded queue in which jobs wait for the device: models by fair shares, and within a model by deadline."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from service.errors import Overloaded
from service.worker.types import Job, JobKey, Shape

MAX_MODELS = 1024
"""Models whose virtual times are kept; any other model starts at the present virtual time."""


class FairShares:
    """Which model is next: each has its share of the device's time, however many requests the others get.

    Start-time fair queueing (Goyal, Vin and Cheng 1997): a model's virtual time is the device time that it used divided
    by its weight, and the model with the least is next. A model that had no work starts again at the present virtual
    time: it saves up no credit for time in which it asked for nothing. `weights` has the models whose weight is not 1.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)
        self._times: dict[str, float] = {}
        self._present = 0.0

    def weight(self, model: str) -> float:
        return self._weights.get(model, 1.0)

    def enter(self, model: str) -> None:
        """Call when a job of a model waits and none did before."""
        self._times[model] = max(self._times.pop(model, 0.0), self._present)
        if len(self._times) > MAX_MODELS:
            del self._times[next(iter(self._times))]  # the model that entered longest ago

    def next(self, models: Collection[str]) -> str:
        """The model to serve next, of those that have jobs."""
        if len(models) == 1:
            (model,) = models
        else:
            model = min(models, key=self._time)
        self._present = max(self._present, self._times.get(model, self._present))
        return model

    def charge(self, model: str, seconds: float) -> None:
        """Charge a model for seconds of one lane; negative ones return what a batch was charged too much."""
        self._times[model] = self._times.get(model, self._present) + seconds / self._weights.get(model, 1.0)

    def _time(self, model: str) -> float:
        return self._times.get(model, self._present)


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


class JobQueue:
    """Jobs that wait: at most `max_images` of them, with at most `max_pixels` pixels.

    Models take turns by their fair shares of the device's time; within a model the earliest deadline is first. All
    methods but `has_slot` and `later` take O(log n) for n jobs, or O(models). `images` and `pixels` count what waits;
    `models` has the models of which a job waits.
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

    @property
    def seconds(self) -> float:
        """Seconds of one lane that all jobs are expected to take."""
        return sum(queue.seconds for queue in self.models.values())

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

    def seconds_before(self, model: str, deadline_s: float) -> float:
        """Estimated seconds of one lane that are served before a job with this deadline.

        They are the jobs of its own model with an earlier deadline, and what other models get by their shares
        meanwhile, but no more than they have.
        """
        queue = self.models.get(model)
        if queue is None:
            return 0.0
        place = bisect_right(queue.entries, (deadline_s, math.inf))
        own_s = queue.seconds * place / len(queue.entries)
        weights = sum(self.shares.weight(other) for other in self.models if other != model)
        return own_s + min(self.seconds - queue.seconds, own_s * weights / self.shares.weight(model))

    def later(self, model: str, deadline_s: float) -> Iterator[tuple[Entry, float]]:
        """The jobs of a model with a later deadline, in their order, each with the seconds of one lane until its end,
        estimated as in `seconds_before`. Takes O(n)."""
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

    def next(self) -> Shape:
        """The shape of the next job, of the model that is next. At least one job must wait."""
        return self.models[self.shares.next(self.models)].entries[0].job.shape

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
