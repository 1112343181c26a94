"""Jobs as the tests of queue and policy need them: without pictures, and without anyone to answer."""

from __future__ import annotations

import numpy as np

from model.types import Geometry, ModelInput, QueryParams, Size
from service.worker.queue import Done, Job, Shape


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
        reply=_nobody,
    )


def _nobody(done: Done) -> None:
    """Nobody asked."""
