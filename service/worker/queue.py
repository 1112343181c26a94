"""Jobs, and the bounded line they wait in until the device takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from model.errors import ConvMLPError
from model.types import ModelInput, QueryParams, RawOutput
from service.errors import Overloaded
from service.spans import NO_SPAN, Span


@dataclass(frozen=True, slots=True)
class Done:
    """A job's outcome: its output, or the error that it met, and the seconds that it waited and ran."""

    result: RawOutput | ConvMLPError
    queue_s: float
    infer_s: float


@dataclass(frozen=True, slots=True)
class Shape:
    """What the jobs of one batch have in common: the model, and the input's height and width in pixels.

    `slot` is where the model lies in the runner: while a model is replaced there are two of its name.
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


class JobQueue:
    """Jobs in order of arrival, never more than `max_images` of them or `max_pixels` in all."""

    def __init__(self, max_images: int, max_pixels: int) -> None:
        self._max_images = max_images
        self._max_pixels = max_pixels
        self._jobs: dict[tuple[bytes, int], Job] = {}
        self._pixels = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def waiting(self) -> tuple[Job, ...]:
        """All jobs, oldest first."""
        return tuple(self._jobs.values())

    @property
    def pixels(self) -> int:
        """Of all inputs that wait."""
        return self._pixels

    def depth(self, model: str) -> int:
        return sum(job.shape.model == model for job in self._jobs.values())

    def put(self, job: Job, retry_after_s: float) -> None:
        """Let a job in.

        Raises:
            Overloaded: the line is full; `retry_after_s` is what the caller is told.
        """
        if len(self._jobs) >= self._max_images or self._pixels + job.shape.pixels > self._max_pixels:
            raise Overloaded(
                f"the queue is full: {len(self._jobs)} images wait; try again in {retry_after_s:.1f} s",
                retry_after_s,
            )
        self._jobs[job.key] = job
        self._pixels += job.shape.pixels

    def remove(self, key: tuple[bytes, int]) -> Job | None:
        """Take one job out, wherever it stands; None where it is not waiting (any more)."""
        job = self._jobs.pop(key, None)
        if job is not None:
            self._pixels -= job.shape.pixels
        return job
