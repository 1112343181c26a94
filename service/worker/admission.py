"""Who is let into the queue, and who has to leave it: no job waits for an answer that would come too late."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from model.errors import ConvMLPError
from service.errors import DeadlineExceeded, Overloaded
from service.worker.batching import share
from service.worker.pace import Pace
from service.worker.queue import Done, Job, JobQueue
from service.worker.sizes import BatchSizes

MARGIN = 1.1
"""What waits may take so much longer than expected; a promise that is just about kept is often broken."""


class Admission:
    """Expects by the pace when a job would be answered.

    `running_s`: the seconds of one lane that what runs now was expected to take. It counts whole, for when it ends is
    not known.
    """

    def __init__(
        self,
        queue: JobQueue,
        pace: Pace,
        sizes: BatchSizes,
        lanes: int,
        running_s: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._pace = pace
        self._sizes = sizes
        self._lanes = lanes
        self._running_s = running_s
        self._clock = clock

    def backlog_s(self) -> float:
        """Seconds until the device will be through with everything that runs and waits now."""
        return (self._running_s() + self._queue.seconds) / self._lanes

    def let_in(self, job: Job) -> None:
        """Put a job into the queue.

        Raises:
            Overloaded: it would not be answered before its deadline, or the queue is full.
        """
        seconds, backlog_s = self._pace.seconds(job.shape), self.backlog_s()
        self._promise(job, seconds, backlog_s)
        self._queue.put(job, seconds, backlog_s)

    def late(self) -> Iterator[tuple[Job, Done]]:
        """Take out of the queue what waited for too long, or cannot be answered in time any more even by all lanes: it
        must not cost others time that is of use. One that is all alone is tried."""
        queue, now_s = self._queue, self._clock()
        for model in tuple(queue.models):
            while (job := queue.first(model)) is not None:
                if job.deadline_s <= now_s:
                    late: ConvMLPError = DeadlineExceeded(
                        "the request's deadline passed while it waited for the device"
                    )
                elif len(queue) > 1 and job.deadline_s < now_s + self._pace.seconds(job.shape) / self._lanes:
                    late = Overloaded("the request's deadline is too near now for an answer", self.backlog_s())
                else:
                    break
                queue.remove(job.key)
                yield job, Done(late, now_s - job.enqueued_s, 0.0)

    def _promise(self, job: Job, seconds: float, backlog_s: float) -> None:
        """See that a job would be answered before its deadline, in its turn; it counts when its own batch ends.

        Where all that waits would be done in time it is let in: that breaks no promise, in whatever order they go.
        If not, what has its turn before counts: later deadlines of its model, and what other models have beyond
        their share, do not hold up a job that is more urgent. (Under a load that cannot be served, some of them are
        then `late`.) Where nothing is before it, it is let in whatever is expected: a refusal would spare nobody
        anything, and an estimate that is too high would never be found out.

        Raises:
            Overloaded: it would not.
        """
        left_s = job.deadline_s - self._clock()
        if not backlog_s or left_s <= 0:  # what has passed is told so in its turn
            return
        if MARGIN * backlog_s + seconds * self._sizes.limits.max_images <= left_s:  # far from it, as most are
            return
        shape = job.shape
        mine = self._queue.depth_of(shape) + 1
        part = share(self._lanes, mine, len(self._queue) + 1 - mine, self._sizes.most(shape))
        own_s = part.images * seconds / part.lanes
        if MARGIN * backlog_s + own_s <= left_s:
            return
        before = self._queue.seconds_before(shape.model, job.deadline_s)
        ahead_s = (self._running_s() + before) / self._lanes
        if MARGIN * ahead_s + own_s > left_s:
            raise Overloaded(
                f"the images ahead take {ahead_s:.1f} s, longer than the request's deadline allows", backlog_s
            )
