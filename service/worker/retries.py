"""What becomes of the jobs of a batch that failed."""

from __future__ import annotations

from collections import deque

import structlog

from model.errors import ConvMLPError
from service.errors import Internal, Overloaded
from service.worker.queue import Job
from service.worker.runner import OutOfDeviceMemory
from service.worker.sizes import BatchSizes

log = structlog.get_logger(__name__)


class Retries:
    """Parts of batches that failed, which run again before what waits in the queue. A job has its error only after it
    ran by itself."""

    def __init__(self, sizes: BatchSizes) -> None:
        self._sizes = sizes
        self.parts: deque[tuple[Job, ...]] = deque()
        self.alone: deque[tuple[Job, ...]] = deque()
        """Each a job for which there was no memory beside others; all others wait for it."""

    @property
    def batches(self) -> tuple[tuple[Job, ...], ...]:
        """All that wait."""
        return (*self.alone, *self.parts)

    def after(self, error: Exception, jobs: tuple[Job, ...], had_all_lanes: bool) -> ConvMLPError | None:
        """Have the jobs of a batch run again, or say which error the only one of them is answered with."""
        if isinstance(error, OutOfDeviceMemory):
            return self._did_not_fit(jobs, had_all_lanes)
        shape, ids = jobs[0].shape, [job.request_id for job in jobs]
        log.error("batch failed", model=shape.model, images=len(jobs), request_ids=ids, exc_info=error)
        if len(jobs) == 1:
            return Internal("the model could not answer this image; the worker's log says why")
        self.parts.extend((job,) for job in jobs)  # one bad input must not cost its neighbours their answers
        return None

    def _did_not_fit(self, jobs: tuple[Job, ...], had_all_lanes: bool) -> ConvMLPError | None:
        shape, half = jobs[0].shape, len(jobs) // 2
        if half:
            self._sizes.cap(shape, half)
            log.warning("out of device memory", model=shape.model, images=len(jobs), next_limit=half)
            self.parts.extend((jobs[:half], jobs[half:]))
        elif had_all_lanes:
            return Overloaded("the device has no memory left for this image; try again later or send a smaller one")
        else:  # others may have had the memory
            self.alone.append(jobs)
        return None
