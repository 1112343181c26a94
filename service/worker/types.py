"""The types that carry a job through the worker: Predict → Job → RunningBatch → JobResult → Answer.

A job holds a payload (`input`, `params`) and a reply handle (`reply`). They part once, when the job's batch starts: the
payloads become a `model.types.Batch`, which goes to the device; the jobs stay here until the device has answered.
All times are seconds on the clock of `time.monotonic`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from model.errors import ConvMLPError
from model.types import ModelInput, QueryParams, RawOutput
from service.observability.tracing import NO_SPAN, Span

JobKey = tuple[bytes, int]
"""The sender's socket identity, and the job's number there."""


class Shape(NamedTuple):
    """What the jobs of one batch have in common: the model, and the input's height and width in pixels.

    `slot` is the model's place in the runner: while a model is replaced, two slots belong to its name. A tuple, because
    each job's shape is made and looked up several times, and a dataclass takes five times as long for it.
    """

    model: str
    slot: str
    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width


class JobResult(NamedTuple):
    """What a job is answered with: its output or its error, and the seconds that it waited and ran.

    `batch_images` counts the images of its batch, itself included. `is_last`: of the outputs of its batch for one
    front-end.
    """

    result: RawOutput | ConvMLPError
    queue_s: float
    infer_s: float
    batch_images: int = 1
    is_last: bool = True


@dataclass(slots=True, eq=False)
class Job:
    """One input that waits for the device. `reply` is called exactly once, unless the job is cancelled."""

    key: JobKey
    shape: Shape
    input: ModelInput
    params: QueryParams
    enqueued_s: float
    deadline_s: float
    reply: Callable[[Job, JobResult], None] = field(repr=False)
    request_id: str = ""
    """The front-end's; empty for a self-check."""
    span: Span = NO_SPAN
    """The front-end's span; the spans of the job's stages are its children."""
    output_pixels: int = 0
    """What the device computes beyond the network: the label map of the picture, of a segmenter."""


@dataclass(slots=True, eq=False)
class RunningBatch:
    """Jobs that run together on `lanes` lanes since `started_s`.

    `expected_s` is in seconds of one lane; 0 where the shape is new. `trial` is set for a batch that
    measures a model: it takes the seconds of the batch, and no job is replied to.
    """

    jobs: tuple[Job, ...]
    lanes: int
    expected_s: float = 0.0
    started_s: float = 0.0
    overlaps: bool = False
    """It runs beside batches that hold all lanes, and shares their cores."""
    trial: asyncio.Future[float] | None = None

    def left_s(self, now_s: float) -> float:
        """Seconds of one lane that the batch is expected to take from `now_s` on."""
        return max(0.0, self.expected_s - (now_s - self.started_s) * self.lanes)
