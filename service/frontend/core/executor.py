"""Threads for an event loop, at a third of what `run_in_executor` costs: no second future, no lock for each, and what
several threads finish at once wakes the loop once.

Decoding, encoding and drawing, in as many threads as there are cores.

What runs here releases the GIL for most of its time (Pillow, OpenCV, NumPy).

A photograph's bytes are copied four times before they are here (the kernel's to uvloop's, to the parser's, to uvicorn's
buffer, to the message; once more where they came in several): 100 KB, some 5 µs each, and all but the last are the
server's own. Pillow reads them in place. Its pixels are written by the decoder, and the crop of them by the resizer,
straight into the array that leaves; the wire says what becomes of that.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import cv2
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from model.decode import DecodeLimits, check_pixels, decode_picture
from model.preprocess import content_size, prepare, prepare_picture
from model.spec import Preprocessing
from model.types import Image, ModelInput
from service.errors import DeadlineExceeded

T = TypeVar("T")

Work = Callable[[], Any]


class ThreadPool:
    """So many threads, which run one piece of work after another. The queue is bounded by who gives the work: the
    engine has a bound on images in hand."""

    def __init__(self, threads: int, name: str) -> None:
        self._queue: SimpleQueue[tuple[Work, asyncio.Future[Any]] | None] = SimpleQueue()
        self._done: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._woken = False
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{at}", daemon=True) for at in range(max(threads, 1))
        ]
        for thread in self._threads:
            thread.start()

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """What comes of `work`, or its error. Work whose future is cancelled before its turn is not begun.

        Raises:
            RuntimeError: the crew is closed.
        """
        if self._closed:
            raise RuntimeError("these threads have ended")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put((work, future))
        return future

    def close(self) -> None:
        """Wait for what runs; drop what has not begun."""
        self._closed = True
        with contextlib.suppress(Empty):
            while (dropped := self._queue.get_nowait()) is not None:
                dropped[1].cancel()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (given := self._queue.get()) is not None:
            work, future = given
            if not future.cancelled():
                self._finish(future, *_outcome_of(work))
            del given, work, future  # nothing is kept alive while the thread waits

    def _finish(self, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:  # noqa: ANN401
        self._done.append((future, value, error))
        if not self._woken:
            self._woken = True
            future.get_loop().call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        # Before the first look: what is finished later wakes the loop anew.
        self._woken = False
        while self._done:
            future, value, error = self._done.popleft()
            if future.cancelled():
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)


def _outcome_of(work: Work) -> tuple[Any, BaseException | None]:
    try:
        return work(), None
    except StopIteration as error:  # no future takes it
        return None, RuntimeError(f"work raised {error!r}")
    except BaseException as error:
        return None, error


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """`started_s` is on the clock of `time.monotonic`."""

    value: T
    started_s: float
    seconds: float

    @property
    def ended_s(self) -> float:
        return self.started_s + self.seconds


class PreparePool:
    """The threads. `limits` says which images are decoded at all; `fast`: large JPEGs are decoded smaller."""

    def __init__(self, threads: int, limits: DecodeLimits, *, fast: bool = False) -> None:
        # These threads are the parallelism; OpenCV's and OpenBLAS's own would only fight with them. (A hundred masks
        # took seven times as much of the CPU with OpenBLAS's.)
        cv2.setNumThreads(1)
        threadpool_limits(1, "blas")
        self._crew = ThreadPool(threads, "prepare")
        self._limits = limits
        self._fast = fast

    async def prepare(self, image: bytes | Image, spec: Preprocessing, deadline_s: float) -> Timed[ModelInput]:
        """An image, its encoded bytes or its pixels, to a network input.

        Raises:
            ImageUndecodable, UnsupportedFormat, ImageTooLarge: as `model.decode.decode`.
            DeadlineExceeded: the deadline passed before its turn came.
        """
        return await self.run(lambda: self._prepared(image, spec), deadline_s)

    async def run(self, work: Callable[[], T], deadline_s: float) -> Timed[T]:
        """Run `work` in a thread; the seconds are those of the work, without its wait for a thread."""

        def timed() -> Timed[T]:
            if time.monotonic() >= deadline_s:
                raise DeadlineExceeded("the request's deadline passed before a thread was free for it")
            return self.run_here(work)

        return await self._crew.run(timed)

    def run_here(self, work: Callable[[], T]) -> Timed[T]:
        """The same for work that takes less time than it takes to reach a thread: some tens of microseconds."""
        started = time.monotonic()
        value = work()
        return Timed(value, started, time.monotonic() - started)

    def _prepared(self, image: bytes | Image, spec: Preprocessing) -> ModelInput:
        if isinstance(image, bytes):
            needed = partial(content_size, spec=spec) if self._fast else None
            return prepare_picture(decode_picture(image, self._limits, needed), spec)
        check_pixels(image.size, self._limits)
        return prepare(image, spec)

    def close(self) -> None:
        """Wait for what runs; drop what has not begun."""
        self._crew.close()
