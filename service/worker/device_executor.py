"""The device's lanes and the threads that run calls on them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from service.worker.device_thread import DeviceThread

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class DeviceCall(Generic[T]):
    """A function that runs on some lanes, in one thread. `result` and the times are set once they are known.

    `started_s` is None until the thread takes the call: the first thread may have a model to load before.
    """

    function: Callable[[], T]
    on_done: Callable[[DeviceCall[T]], None]
    lanes: int
    thread: int
    started_s: float | None = None
    ended_s: float = 0.0
    result: T | Exception | None = None


class DeviceExecutor:
    """The device's lanes and their threads. It runs several calls at once, each on some lanes and in one thread.

    `first` is the thread in which models are put on the device; the other threads are made here. `free` lanes have
    no call. Where it `can_overlap`, one more call may run in a thread of its own beside those that hold all lanes.

    Calls on several lanes use the first threads, calls on one lane the last. OpenMP keeps a team of threads for each
    thread that ever computed on several cores, and once these are more than the cores, all of them sleep after each
    layer of a network: a lone ConvMLP-S on two cores then takes 17 ms instead of 11.
    """

    def __init__(
        self, lanes: int, first: DeviceThread, clock: Callable[[], float] = time.monotonic, *, can_overlap: bool = False
    ) -> None:
        self.lanes = lanes
        self.free = lanes
        self.can_overlap = can_overlap
        """And no call overlaps now."""
        self._clock = clock
        others = [DeviceThread(f"lane-{number}") for number in range(2, lanes + 1 + can_overlap)]
        self._threads = [first, *others]
        self._idle = list(range(lanes))
        """Indices of `_threads` without a call, rising."""
        self._calls: list[DeviceCall[Any]] = []
        self._answered_s = clock()

    def run(self, lanes: int, function: Callable[[], T], on_done: Callable[[DeviceCall[T]], None]) -> None:
        """Call a function in a thread, and `on_done` in the event loop afterwards. So many lanes must be free; with 0
        lanes it overlaps the other calls."""
        if lanes:
            thread = self._idle.pop(0 if lanes > 1 else -1)
        else:
            thread, self.can_overlap = self.lanes, False
        call = DeviceCall(function, on_done, lanes, thread)
        self.free -= lanes
        self._calls.append(call)
        self._threads[call.thread].post(partial(self._work, call, asyncio.get_running_loop()))

    def busy_s(self) -> float:
        """For how many seconds the oldest running call has been running; 0 where none runs."""
        started_s = [call.started_s for call in self._calls if call.started_s is not None]
        return self._clock() - min(started_s) if started_s else 0.0

    def silent_s(self) -> float:
        """For how many seconds the device, or a lane with a call, has not answered."""
        return max(self.busy_s(), self._clock() - self._answered_s)

    def close(self) -> None:
        """Let the threads end after their present calls, whose results are dropped."""
        for thread in self._threads[1:]:
            thread.shutdown(wait=False)

    def _work(self, call: DeviceCall[T], loop: asyncio.AbstractEventLoop) -> None:
        """In the call's thread."""
        call.started_s = self._clock()
        try:
            call.result = call.function()
        except Exception as error:  # passed to `on_done`
            call.result = error
        call.ended_s = self._clock()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._finish, call)

    def _finish(self, call: DeviceCall[T]) -> None:
        self._calls.remove(call)
        if call.lanes:
            insort(self._idle, call.thread)
        else:
            self.can_overlap = True
        self.free += call.lanes
        self._answered_s = call.ended_s
        call.on_done(call)
