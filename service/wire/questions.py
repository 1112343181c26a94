"""Questions down a line, and who waits for the answer of each."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from model.errors import ConvMLPError
from service.errors import DeadlineExceeded, Unavailable
from service.wire.line import Line, NobodyThere
from service.wire.messages import Cancel, ToWorker, encode
from service.wire.view import NO_WORKER, NO_WORKER_RETRY_S

T = TypeVar("T")


class Questions(Generic[T]):
    """Those that are answered by a `T`. `numbers` are the line's own, none of them used twice."""

    def __init__(self, line: Line, numbers: Iterator[int]) -> None:
        self._line = line
        self._numbers = numbers
        self._waiting: dict[int, asyncio.Future[T]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, deadline_s: float, header: Callable[[int, float], ToWorker], *frames: memoryview) -> T:
        """Send what `header` makes of a job's number and the seconds left, and wait for its answer.

        Cancelling the call, or its deadline, withdraws the job.

        Raises:
            DeadlineExceeded: there was no answer in time.
            Unavailable: there is nobody to ask.
            ConvMLPError: what the job was settled with.
        """
        budget_s = deadline_s - time.monotonic()
        if budget_s <= 0:
            raise DeadlineExceeded("the request's deadline passed before it could be sent to the worker")
        job = next(self._numbers)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._waiting[job] = answer
        # One timer a job: `asyncio.timeout` costs several times that, and takes part in every cancellation.
        too_late = loop.call_later(budget_s, self._expire, job, budget_s)
        try:
            self._line.send(encode(header(job, budget_s)), *frames)
            return await answer
        except NobodyThere:
            raise Unavailable(NO_WORKER, NO_WORKER_RETRY_S) from None
        except asyncio.CancelledError:
            self._withdraw(job)
            raise
        finally:
            too_late.cancel()
            del self._waiting[job]

    def settle(self, job: int, answer: T | ConvMLPError) -> None:
        """Answer whoever still waits for a job."""
        future = self._waiting.get(job)
        if future is None or future.done():
            return
        if isinstance(answer, ConvMLPError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def fail_all(self, error: Callable[[], ConvMLPError]) -> None:
        """Each caller gets an error of its own: one that several raise would gather the traces of all."""
        for job in self._waiting:
            self.settle(job, error())

    def _expire(self, job: int, budget_s: float) -> None:
        if self._waiting[job].done():
            return  # answered in time; its caller has not had its turn yet
        self._withdraw(job)
        late = f"there was no answer within the {budget_s:.3f} s that were left of the request's deadline"
        self.settle(job, DeadlineExceeded(late))

    def _withdraw(self, job: int) -> None:
        with contextlib.suppress(NobodyThere):  # a lost worker has lost the job as well
            self._line.send(encode(Cancel(job)))
