"""Threads for an event loop, and what runs in them: decoding, resizing, encoding and drawing of pictures.

This work releases the GIL for most of its time (Pillow, OpenCV, NumPy).

`ThreadPool` costs a third of `run_in_executor`: one future for each piece of work instead of two, no lock, and one
wake-up of the loop for all pieces that have ended meanwhile.

A photograph's bytes are copied four times before they are here (from the kernel to uvloop, to the parser, to uvicorn's
buffer, to the ASGI message): some 5 µs for each copy of 100 KB. Pillow reads them in place. The decoder writes the
pixels, and the resizer writes a crop of them straight into the array that goes to the worker.
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


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """A value, and how long it took. `started_s` is on the clock of `time.monotonic`."""

    value: T
    started_s: float
    seconds: float


class ThreadPool:
    """Threads that run one piece of work after another.

    Its queue is as long as callers make it: the engine bounds the number of images in the process.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._queue: SimpleQueue[tuple[asyncio.Future[Any], float, Callable[..., Any], tuple[Any, ...]] | None]
        self._queue = SimpleQueue()
        self._ended: deque[tuple[asyncio.Future[Any], Timed[Any] | None, BaseException | None]] = deque()
        self._woken = False
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(max(threads, 1))
        ]
        for thread in self._threads:
            thread.start()

    def run(self, deadline_s: float, work: Callable[..., T], *args: Any) -> asyncio.Future[Timed[T]]:  # noqa: ANN401
        """Call `work(*args)` in a thread. `Timed` leaves out the wait for the thread.

        Work that has not started when its future is cancelled, or at `deadline_s` on the clock of `time.monotonic`,
        never starts. The future raises DeadlineExceeded, or the work's own error.

        Raises:
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("the thread pool is closed")
        future: asyncio.Future[Timed[T]] = asyncio.get_running_loop().create_future()
        self._queue.put((future, deadline_s, work, args))
        return future

    def close(self) -> None:
        """Wait for running work; cancel the rest."""
        self._closed = True
        with contextlib.suppress(Empty):
            while (dropped := self._queue.get_nowait()) is not None:
                dropped[0].cancel()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            future, deadline_s, work, args = item
            value: Timed[Any] | None = None
            failure: BaseException | None = None
            if future.cancelled():
                del item, future, work, args  # an idle thread keeps nothing alive
                continue
            try:
                started_s = time.monotonic()
                if started_s >= deadline_s:
                    raise DeadlineExceeded("the request's deadline passed before a thread was free for it")
                result = work(*args)
                value = Timed(result, started_s, time.monotonic() - started_s)
            except StopIteration as error:  # a future does not accept it
                failure = RuntimeError(f"work raised {error!r}")
            except BaseException as error:
                failure = error
            self._ended.append((future, value, failure))
            if not self._woken:
                self._woken = True
                future.get_loop().call_soon_threadsafe(self._settle)
            del item, future, work, args, value, failure
            result = None

    def _settle(self) -> None:
        # Before the first look: work that ends later wakes the loop again.
        self._woken = False
        while self._ended:
            future, value, failure = self._ended.popleft()
            if future.cancelled():
                continue
            if failure is None:
                future.set_result(value)
            else:
                future.set_exception(failure)


class PreparePool(ThreadPool):
    """The threads of a front-end. `limits` bounds the images that are decoded; `fast` decodes large JPEGs smaller."""

    def __init__(self, threads: int, limits: DecodeLimits, *, fast: bool = False) -> None:
        # These threads are the parallelism; OpenCV's and OpenBLAS's own would compete with them. With OpenBLAS's,
        # pasting a hundred masks takes seven times as much CPU.
        cv2.setNumThreads(1)
        threadpool_limits(1, "blas")
        self._limits = limits
        self._fast = fast
        super().__init__(threads, "prepare")

    def prepare(self, image: bytes | Image, spec: Preprocessing) -> ModelInput:
        """Decode an image where it is encoded, and resize it to a network input. Call it in one of the threads.

        Raises:
            ImageUndecodable, UnsupportedFormat, ImageTooLarge: as `model.decode.decode`.
        """
        if isinstance(image, bytes):
            needed = partial(content_size, spec=spec) if self._fast else None
            return prepare_picture(decode_picture(image, self._limits, needed), spec)
        check_pixels(image.size, self._limits)
        return prepare(image, spec)
