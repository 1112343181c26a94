"""The batching policy, as a pure function: what waits → what runs next.

Work-conserving: an idle device takes what waits, at once; while it is busy the next batch grows by itself. The
oldest job decides which model and shape is next, so no one starves; everyone of its shape may come along, since
only inputs of one shape share a batch (an answer must not depend on who shares it).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.worker.queue import Job, Shape


@dataclass(frozen=True, slots=True)
class BatchLimits:
    max_images: int
    max_pixels: int

    def images(self, shape: Shape) -> int:
        """The most images of a shape in one batch; one is always allowed."""
        return max(1, min(self.max_images, self.max_pixels // shape.pixels))


def next_batch(waiting: Sequence[Job], limits: BatchLimits, caps: dict[Shape, int]) -> tuple[Job, ...]:
    """The jobs to run next, oldest first; empty where none waits.

    `caps` holds smaller limits for shapes that ran out of device memory.
    """
    if not waiting:
        return ()
    shape = waiting[0].shape
    most = min(limits.images(shape), caps.get(shape, limits.max_images))
    return tuple([job for job in waiting if job.shape == shape][:most])


def expired(waiting: Iterable[Job], now_s: float) -> tuple[Job, ...]:
    """The jobs whose deadline has passed."""
    return tuple(job for job in waiting if job.deadline_s <= now_s)
