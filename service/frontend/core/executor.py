"""Threads for an event loop, and what runs in them: decoding, resizing, encoding and drawing of pictures.

This work releases the GIL for most of its time (libjpeg-turbo, Pillow, OpenCV, NumPy).

All decisions are made on the event loop: which work is next, what fits into memory, what is too late. Threads only run
what they are handed. `ThreadPool` costs a third of `run_in_executor`: one future for each piece of work instead of two,
no lock, and one wake-up of the loop for all pieces that have ended meanwhile.

A photograph's bytes are copied four times before they are here (from the kernel to uvloop, to the parser, to uvicorn's
buffer, to the ASGI message): some 5 µs for each copy of 100 KB; and once more here, without their metadata. The decoder
writes the pixels, and the resizer writes a crop of them straight into the array that goes to the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import msgspec
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from model.containers.header import Header
from model.decode import DecodeLimits, check_pixels, decode_picture
from model.errors import OutOfMemory
from model.preprocess import content_size, prepare, prepare_picture
from model.spec import Preprocessing
from model.types import Image, ModelInput
from service.errors import DeadlineExceeded, Overloaded, Refusal
from service.frontend.core.fair_queue import FairQueue, Place
from service.wire.deadlines import Deadlines

T = TypeVar("T")

PREFETCH_S = 0.005
"""Threads are handed work ahead, one piece each, if it takes no longer than this: they need not wait for the event loop
between short pieces. It has left the queue, so nothing can overtake it any more."""
MARGIN = 1.3
"""Factor on the expected wait: an estimate that is met on average is missed half of the time."""
SMOOTHING = 0.2
"""Weight of the latest piece of work in the means of `WorkSpeed`."""
ASSUMED_S = 1e-8
"""Seconds for each unit of cost, before any work has been measured: for the order in the queue, not for refusals."""
RATE_S = 1.0
"""Time constant of the mean of `DrainRate`."""
STUCK_FACTOR = 3.0
STUCK_S = 0.1
"""Work that runs for so many times its expected time, and so long, may run for any time: its thread does not count."""
CLOSE_S = 10.0
"""How long closing a pool waits for running work."""


class Timed(msgspec.Struct, Generic[T], frozen=True):
    """A value, and how long it took. `started_s` is on the clock of `time.monotonic`."""

    value: T
    started_s: float
    seconds: float


class Stage(Enum):
    """Of a piece of work."""

    NEW = auto()
    WAITING = auto()
    HANDED = auto()
    """It runs, or is about to be taken by a thread."""
    ENDED = auto()


class Work(msgspec.Struct, Generic[T], eq=False):
    """A piece of work for a pool: `call(*args)`. Once it is submitted `future` has its result.

    `cost` is the expected work, in the unit of `model.decode.Header`; 0 where it is not known. `nbytes` of the pool's
    memory are charged from its start until it has ended; then those of its result, and `reserved_bytes`, until it is
    released. `urgent`: it goes before all that is not.
    """

    call: Callable[..., T]
    args: tuple[Any, ...]
    deadline_s: float
    caller: str = ""
    model: str = ""
    cost: float = 0.0
    nbytes: int = 0
    reserved_bytes: int = 0
    urgent: bool = False
    after_s: float = 0.0
    """Expected seconds from its end to the request's."""
    images: int = 1
    """How many network inputs its result has, at most."""
    future: asyncio.Future[Timed[T]] = None  # type: ignore[assignment]  # it is set when the work is submitted
    stage: Stage = Stage.NEW
    place: Place | None = None
    """In the queue, also after it was taken from there; None for work that never was there."""
    charged_bytes: int = 0
    started_s: float = 0.0
    """When a thread took it; 0 before."""
    released: bool = False


class WorkSpeed:
    """Seconds that work takes by its cost: exponential means of the seconds for each unit of cost.

    There is one for each doubling of the cost, because small pictures take longer for each pixel than large ones.
    """

    def __init__(self) -> None:
        self._by_doubling: dict[int, float] = {}
        self._latest = 0.0

    def record(self, cost: float, seconds: float) -> None:
        """Work of a cost above 0 took so many seconds."""
        doubling, latest = math.frexp(cost)[1], seconds / cost
        before = self._by_doubling.get(doubling, latest)
        self._by_doubling[doubling] = self._latest = before + SMOOTHING * (latest - before)

    def seconds(self, cost: float) -> float:
        """Expected seconds; 0 where nothing is known."""
        return self._by_doubling.get(math.frexp(cost)[1], self._latest) * cost


class DrainRate:
    """How fast a queue empties: seconds of work by its expectation when it was put, for each second that passes.

    It is the number of threads where the expectations are right and nothing else uses the threads or their cores.
    """

    def __init__(self) -> None:
        self._done_s = self._passed_s = self._since_s = 0.0

    def begin(self, now_s: float) -> None:
        """From now on something waits."""
        self._since_s = now_s

    def record(self, now_s: float, done_s: float) -> None:
        """Work was done, and something still waits."""
        passed_s, self._since_s = now_s - self._since_s, now_s
        fading = math.exp(-passed_s / RATE_S)
        self._done_s = self._done_s * fading + done_s
        self._passed_s = self._passed_s * fading + passed_s

    @property
    def per_s(self) -> float:
        """0 where too little was seen."""
        return self._done_s / self._passed_s if self._passed_s > RATE_S / 4 else 0.0


class ThreadPool:
    """Threads that run one piece of work after another, in at most `max_bytes` of memory.

    Work that does not fit waits until it does, and so does everything behind it. Work that is larger than all memory
    runs when nothing else is held; urgent work, which frees memory at its end, when nothing else runs. How much waits
    is up to the callers: the engine bounds the number of images in the process.
    """

    def __init__(self, threads: int, name: str, max_bytes: int = 2**62) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        """Of work that runs, and of results that are not released."""
        self.waiting = 0
        """How many pieces of work wait."""
        self._urgent: deque[Work[Any]] = deque()
        self._queue: FairQueue[Work[Any]] = FairQueue()
        self._handed: list[Work[Any]] = []
        self._speed = WorkSpeed()
        self._drain = DrainRate()
        self._ready: SimpleQueue[Work[Any] | None] = SimpleQueue()
        self._ended: deque[tuple[Work[Any], Timed[Any] | None, BaseException | None]] = deque()
        self._woken = False
        self._deadlines = Deadlines(self._expire)
        """Of work that has not ended."""
        self._closed = False
        self._size = max(threads, 1)
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True) for number in range(self._size)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def abandoned(self) -> int:
        """How many pieces of work run although nobody waits for their result any more: at most one for each thread."""
        return sum(work.started_s > 0 and work.future.done() for work in self._handed)

    @property
    def drain_s(self) -> float:
        """Expected seconds until all that waits now has ended."""
        return self._queue.seconds / (self._drain.per_s or self._size)

    def submit(self, work: Work[Any]) -> None:
        """Run work in a thread, in its turn. Call `release` when its result is not needed any more.

        At its deadline, on the clock of `time.monotonic`, its future raises DeadlineExceeded. From then on, as where
        its future is cancelled, work that waits never starts. Work that runs cannot be stopped: its result is dropped,
        and its thread and memory are charged until it ends.

        Raises:
            DeadlineExceeded: the deadline has passed.
            RuntimeError: the pool is closed.
        """
        left_s = work.deadline_s - time.monotonic()
        if self._closed:
            raise RuntimeError("the thread pool is closed")
        if left_s <= 0:
            raise DeadlineExceeded("timed out before the request reached a thread")
        work.future = asyncio.get_running_loop().create_future()
        self._deadlines.pending[work] = work.deadline_s
        if work.deadline_s < self._deadlines.next_s:
            self._deadlines.wake_at(work.deadline_s)
        held_bytes = self.held_bytes + work.nbytes
        # Most work finds a free thread. This is what `_enqueue` and `_hand_out` would do with it.
        if len(self._handed) < self._size and held_bytes <= self.max_bytes and not self.waiting:
            work.stage, work.charged_bytes = Stage.HANDED, work.nbytes
            self.held_bytes = held_bytes
            self._handed.append(work)
            self._ready.put(work)
        else:
            self._enqueue(work)
            self._hand_out()

    async def run(self, work: Work[T]) -> Timed[T]:
        """The result of work that holds no memory afterwards. Raises as `submit`, and what the work raises."""
        self.submit(work)
        try:
            return await work.future
        finally:
            self.release(work)

    def release(self, work: Work[Any]) -> None:
        """The result of work is not needed any more: free its memory. If it still waits, it never starts."""
        work.released = True
        if work.stage is Stage.ENDED:
            self.held_bytes -= work.charged_bytes
            work.charged_bytes = 0
        elif work.stage is Stage.WAITING:
            self._dequeue(work)
        if self.waiting:
            self._hand_out()

    def expected_s(self, work: Work[Any]) -> float:
        """Expected seconds until the end of work that would be submitted now.

        0 where nothing is known, and where a thread is free: an estimate that is too high would never be corrected.
        """
        if len(self._handed) < self._size and not self.waiting:
            return 0.0
        seconds = self._speed.seconds(work.cost)
        if not seconds:
            return 0.0
        now_s = time.monotonic()
        ahead_s = self._queue.seconds_before(work.caller, work.model, seconds)
        running_s, stuck_s = 0.0, []
        for running in self._handed:
            lasted_s = now_s - running.started_s if running.started_s else 0.0
            of_running_s = self._speed.seconds(running.cost) if running.cost else 0.0
            if lasted_s > STUCK_S and lasted_s > STUCK_FACTOR * of_running_s:
                stuck_s.append(lasted_s)
            else:
                running_s += max(of_running_s - lasted_s, 0.0)
        threads = self._size - len(stuck_s)
        if threads > 1 and work.nbytes:
            threads = max(min(threads, self.max_bytes // work.nbytes), 1)
        if not threads:
            # What has lasted so long is expected to last as long again.
            return min(stuck_s) + MARGIN * ahead_s / self._size + seconds
        return MARGIN * (running_s + ahead_s) / min(self._drain.per_s or threads, threads) + seconds

    def close(self) -> None:
        """Wait for running work, but no longer than `CLOSE_S`; cancel the rest."""
        self._closed = True
        self._deadlines.close()
        while self.waiting:
            self.waiting -= 1
            (self._urgent.popleft() if self._urgent else self._queue.take()).future.cancel()
        with contextlib.suppress(Empty):
            while (handed := self._ready.get_nowait()) is not None:
                handed.future.cancel()
        for _ in self._threads:
            self._ready.put(None)
        latest_s = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(latest_s - time.monotonic(), 0.0))

    def _enqueue(self, work: Work[Any]) -> None:
        if not self.waiting:
            self._drain.begin(time.monotonic())
        self.waiting += 1
        work.stage = Stage.WAITING
        if work.urgent:
            self._urgent.append(work)
        else:
            seconds = self._speed.seconds(work.cost) or work.cost * ASSUMED_S
            work.place = self._queue.put(work, work.caller, work.model, seconds)

    def _dequeue(self, work: Work[Any]) -> None:
        """Remove work that waits. Its future has an error, or nobody waits for it."""
        work.stage = Stage.ENDED
        self._deadlines.pending.pop(work, None)
        self.waiting -= 1
        if work.place is None:
            self._urgent.remove(work)
        else:
            self._queue.remove(work.place)

    def _hand_out(self) -> None:
        """Hand work that waits to the threads, as far as there is room for it."""
        while self.waiting:
            work = self._urgent[0] if self._urgent else self._queue.first()
            ahead = len(self._handed) - self._size
            if ahead >= 0 and (ahead >= self._size or (work.place is not None and work.place.seconds > PREFETCH_S)):
                return
            others = self._handed if work.urgent else self.held_bytes
            if self.held_bytes + work.nbytes > self.max_bytes and others:
                return
            self.waiting -= 1
            if work.place is None:
                self._urgent.popleft()
            else:
                self._queue.take()
                if self._is_late(work):
                    continue
            work.stage, work.charged_bytes = Stage.HANDED, work.nbytes
            self.held_bytes += work.nbytes
            self._handed.append(work)
            self._ready.put(work)

    def _is_late(self, work: Work[Any]) -> bool:
        """Refuse work that would end after its deadline, so that its thread serves another. Work that waits alone is
        tried."""
        expected_s = MARGIN * self._speed.seconds(work.cost) + work.after_s
        if not self.waiting or time.monotonic() + expected_s < work.deadline_s:
            return False
        work.stage = Stage.ENDED
        self._deadlines.pending.pop(work, None)
        if not work.future.done():
            work.future.set_exception(Overloaded("the deadline is too near to decode the image", self.drain_s))
        return True

    def _expire(self, work: Work[Any]) -> None:
        """Answer work whose deadline has passed. If it waits it never starts."""
        if not work.future.done():
            waited = "before a thread was free for it" if not work.started_s else "while a thread worked on it"
            work.future.set_exception(DeadlineExceeded(f"the request timed out {waited}"))
        if work.stage is Stage.WAITING:
            self._dequeue(work)

    def _run(self) -> None:
        """In a thread."""
        while (work := self._ready.get()) is not None:
            value: Timed[Any] | None = None
            failure: BaseException | None = None
            work.started_s = started_s = time.monotonic()
            try:
                if not (work.future.done() or work.released):
                    result = work.call(*work.args)
                    value = Timed(result, started_s, time.monotonic() - started_s)
            except StopIteration as error:  # a future does not accept it
                failure = RuntimeError(f"work raised {error!r}")
            except (MemoryError, OutOfMemory) as error:
                # That of decoding has its own message: how much it takes.
                detail = str(error) if isinstance(error, OutOfMemory) else "the service has no memory for this now"
                failure = Overloaded(detail, reason=Refusal.MEMORY)
            except BaseException as error:
                failure = error
            work.args = ()
            self._ended.append((work, value, failure))
            if not self._woken:
                self._woken = True
                try:
                    work.future.get_loop().call_soon_threadsafe(self._settle)
                except RuntimeError:
                    return  # the event loop has ended: nothing waits for the work
            del work, value, failure  # an idle thread keeps nothing alive
            result = None

    def _settle(self) -> None:
        # Before the first look: work that ends later wakes the loop again.
        self._woken = False
        while self._ended:
            work, value, failure = self._ended.popleft()
            self._handed.remove(work)
            self._deadlines.pending.pop(work, None)
            work.stage = Stage.ENDED
            future, kept_bytes = work.future, 0
            if value is not None:
                if work.cost:
                    self._speed.record(work.cost, value.seconds)
                if not (future.done() or work.released):
                    kept_bytes = work.reserved_bytes
                    if isinstance(value.value, ModelInput):
                        kept_bytes += value.value.pixels.nbytes
                    future.set_result(value)
            elif failure is not None and not future.done():
                future.set_exception(failure)
            self.held_bytes += kept_bytes - work.charged_bytes
            work.charged_bytes = kept_bytes
            if self.waiting:
                now_s = time.monotonic()
                lasted_s = now_s - work.started_s
                expected_s = work.place.seconds if work.place is not None else 0.0
                self._queue.charge(work.caller, lasted_s - expected_s)
                self._drain.record(now_s, 0.0 if work.urgent else expected_s or lasted_s)
        if self.waiting:
            self._hand_out()


class PreparePool(ThreadPool):
    """The threads of a front-end. `limits` bounds the images that are decoded; `fast` decodes large JPEGs smaller."""

    def __init__(self, threads: int, limits: DecodeLimits, *, fast: bool = False, max_bytes: int = 2**62) -> None:
        # These threads are the parallelism; OpenBLAS's own would compete with them. With these,
        # pasting a hundred masks takes seven times as much CPU.
        threadpool_limits(1, "blas")
        self._limits = limits
        self._fast = fast
        super().__init__(threads, "prepare", max_bytes)

    def prepare(self, image: bytes | Image, spec: Preprocessing, header: Header | None = None) -> ModelInput:
        """Decode an image where it is encoded, and resize it to a network input. Call it in one of the threads.

        `header` is that of an encoded image, where the caller has read it already.

        Raises:
            ImageUndecodable, UnsupportedFormat, ImageTooLarge, OutOfMemory: as `model.decode.decode`.
        """
        if isinstance(image, bytes):
            needed = partial(content_size, spec=spec) if self._fast else None
            return prepare_picture(decode_picture(image, self._limits, needed, header, spec.reader), spec)
        check_pixels(image.size, self._limits)
        return prepare(image, spec)
