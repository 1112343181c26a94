"""Jobs for the tests of queue and batching: small inputs, no replies."""

from __future__ import annotations

import numpy as np

from model.types import Geometry, ModelInput, QueryParams, Size
from service.worker.types import Job, JobResult, Shape


def shape(side: int = 4, model: str = "m") -> Shape:
    return Shape(model, model, side, side)


def job(number: int, of: Shape | None = None, deadline_s: float = 100.0) -> Job:
    of = of or shape()
    size = Size(of.height, of.width)
    return Job(
        key=(b"test", number),
        shape=of,
        input=ModelInput(np.full((of.height, of.width, 3), number % 256, np.uint8), Geometry(size, size)),
        params=QueryParams(top_k=number + 1),
        enqueued_s=0.0,
        deadline_s=deadline_s,
        reply=_no_reply,
    )


def _no_reply(job: Job, result: JobResult) -> None:
    """These jobs have no caller."""
