"""Decoding, encoding and drawing, in as many threads as there are cores.

What runs here releases the GIL for most of its time (Pillow, OpenCV, NumPy). The pool's queue is bounded by the
engine's own bound on images in hand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import cv2

from model.decode import DecodeLimits, check_pixels, decode
from model.preprocess import prepare
from model.spec import Preprocessing
from model.types import Image, ModelInput
from service.errors import DeadlineExceeded

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timed(Generic[T]):
    """`started_s` is on the clock of `time.monotonic`."""

    value: T
    started_s: float
    seconds: float

    @property
    def ended_s(self) -> float:
        return self.started_s + self.seconds


class Workshop:
    """The threads. `limits` says which images are decoded at all."""

    def __init__(self, threads: int, limits: DecodeLimits) -> None:
        # These threads are the parallelism; OpenCV's own would only fight with them.
        cv2.setNumThreads(1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        self._limits = limits

    async def prepare(self, image: bytes | Image, spec: Preprocessing, deadline_s: float) -> Timed[ModelInput]:
        """An image, its encoded bytes or its pixels, to a network input.

        Raises:
            ImageUndecodable, UnsupportedFormat, ImageTooLarge: as `model.decode.decode`.
            DeadlineExceeded: the deadline passed before its turn came.
        """
        return await self.run(lambda: prepare(self._decoded(image), spec), deadline_s)

    async def run(self, work: Callable[[], T], deadline_s: float) -> Timed[T]:
        """Run `work` in a thread; the seconds are those of the work, without its wait for a thread."""

        def timed() -> Timed[T]:
            started = time.monotonic()
            if started >= deadline_s:
                raise DeadlineExceeded("the request's deadline passed before a thread was free for it")
            value = work()
            return Timed(value, started, time.monotonic() - started)

        return await asyncio.get_running_loop().run_in_executor(self._pool, timed)

    def _decoded(self, image: bytes | Image) -> Image:
        if isinstance(image, bytes):
            return decode(image, self._limits)
        check_pixels(image.size, self._limits)
        return image

    def close(self) -> None:
        """Wait for what runs; drop what has not begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)
