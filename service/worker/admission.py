"""Who is let into the queue, and who has to leave it: no job waits for an answer that would come too late."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from model.errors import ConvMLPError
from service.errors import DeadlineExceeded, Overloaded, too_late
from service.wire.messages import WaitEstimate
from service.worker.batching import BatchSizeLimits, share
from service.worker.estimates import LatencyEstimator
from service.worker.queue import Done, Job, JobQueue, Shape

MARGIN = 1.2
"""What waits may take so much longer than expected; a promise that is just about kept is often broken."""


class Admission:
    """Expects by the pace when a job would be answered.

    `running_s`: the seconds of one lane that what runs now is expected to take still.
    """

    def __init__(
        self,
        queue: JobQueue,
        pace: LatencyEstimator,
        sizes: BatchSizeLimits,
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

    def outlook(self, shape: Shape, budget_s: float) -> WaitEstimate:
        """What one more job of a shape, due in so many seconds, would find now."""
        seconds = self._pace.seconds(shape)
        answered_s = self._answered_s(shape, seconds, self._clock() + budget_s)
        return WaitEstimate(answered_s, MARGIN * seconds / self._lanes)

    def _promise(self, job: Job, seconds: float, backlog_s: float) -> None:
        """See that a job would be answered before its deadline.

        Where nothing is before it, it is let in whatever is expected: a refusal would spare nobody anything, and an
        estimate that is too high would never be found out.

        Raises:
            Overloaded: it would not.
        """
        left_s = job.deadline_s - self._clock()
        if not backlog_s or left_s <= 0:  # what has passed is told so in its turn
            return
        if MARGIN * backlog_s + seconds * self._sizes.limits.max_images <= left_s:  # far from it, as most are
            return
        answered_s = self._answered_s(job.shape, seconds, job.deadline_s)
        if answered_s > left_s:
            raise too_late(answered_s, backlog_s)

    def _answered_s(self, shape: Shape, seconds: float, deadline_s: float) -> float:
        """Seconds until a job would be answered that came now: in its turn, and when its own batch ends.

        What has its turn before counts: later deadlines of its model, and what other models have beyond their share, do
        not hold up a job that is more urgent. (Under a load that cannot be served, some of them are then `late`.)
        """
        ahead_s = (self._running_s() + self._queue.seconds_before(shape.model, deadline_s)) / self._lanes
        mine = self._queue.depth_of(shape) + 1
        part = share(self._lanes, mine, len(self._queue) + 1 - mine, self._sizes.most(shape))
        return MARGIN * ahead_s + part.images * seconds / part.lanes
