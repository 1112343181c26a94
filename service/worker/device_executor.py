"""The threads that the device's lanes are used from.

Whether the device still answers.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.worker.runner import DeviceLost, Runner

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ended(Generic[T]):
    """What became of a call, and when."""

    result: T | Exception
    started_s: float
    ended_s: float

    @property
    def seconds(self) -> float:
        return self.ended_s - self.started_s


@dataclass(slots=True, eq=False)
class _Call:
    started_s: float | None = None
    """None until its thread takes it: the first may have a model to load before."""


class DeviceExecutor:
    """Runs calls on the device, each on some of its lanes and in a thread of its own, several at once.

    `first` is the thread in which models are put on the device; the other threads are made here.

    Calls on several lanes are made from the first threads, those on one from the last. OpenMP keeps a team of threads
    for each thread that ever computed on several cores, and once they are more than the cores all of them go to sleep
    after each layer of a network: a lone ConvMLP-S on two cores then takes 17 ms in place of 11.
    """

    def __init__(self, count: int, first: Executor, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = count
        self.free = count
        self._clock = clock
        others = [ThreadPoolExecutor(1, thread_name_prefix=f"lane-{number}") for number in range(2, count + 1)]
        self._threads: list[Executor] = [first, *others]
        self._idle = list(range(count))
        """Positions in `_threads`, rising."""
        self._calls: list[_Call] = []

    def run(self, lanes: int, function: Callable[[], T], ended: Callable[[Ended[T]], None]) -> None:
        """Call a function in a thread, and `ended` with what became of it in the event loop. So many must be free."""
        self._begin(self._idle.pop(0 if lanes > 1 else -1), lanes, function, ended)

    def run_first(self, function: Callable[[], T], ended: Callable[[Ended[T]], None]) -> None:
        """The same in the first thread, on all lanes."""
        self._idle.remove(0)
        self._begin(0, self.count, function, ended)

    def busy_s(self) -> float:
        """For how long the one that runs for longest has been running; 0 where none runs."""
        started_s = [call.started_s for call in self._calls if call.started_s is not None]
        return self._clock() - min(started_s) if started_s else 0.0

    def close(self) -> None:
        """Let the threads end by themselves: what still runs is nobody's any more."""
        for thread in self._threads[1:]:
            thread.shutdown(wait=False)

    def _begin(self, thread: int, lanes: int, function: Callable[[], T], ended: Callable[[Ended[T]], None]) -> None:
        call = _Call()
        loop = asyncio.get_running_loop()

        def work() -> None:
            started_s = call.started_s = self._clock()
            try:
                result: T | Exception = function()
            except Exception as error:  # handed on to whoever asked
                result = error
            end = Ended(result, started_s, self._clock())
            if not loop.is_closed():
                loop.call_soon_threadsafe(back, end)

        def back(end: Ended[T]) -> None:
            self._calls.remove(call)
            insort(self._idle, thread)
            self.free += lanes
            ended(end)

        self.free -= lanes
        self._calls.append(call)
        self._threads[thread].submit(work)


class DeviceHeartbeat:
    """Its batches are one; where `idle` says that there is nothing to do it is asked, every `idle_s` seconds."""

    def __init__(
        self,
        runner: Runner,
        lanes: DeviceExecutor,
        idle: Callable[[], bool],
        clock: Callable[[], float],
        idle_s: float,
    ) -> None:
        self._runner = runner
        self._lanes = lanes
        self._idle = idle
        self._clock = clock
        self._idle_s = idle_s
        self._answered_s = clock()

    def answered(self, at_s: float) -> None:
        self._answered_s = at_s

    def silent_s(self) -> float:
        """For how long the device, or a lane that is busy, has not answered."""
        return max(self._lanes.busy_s(), self._clock() - self._answered_s)

    async def keep_asking(self, answered: Callable[[], None]) -> None:
        """Ask for ever, every few seconds; after each answer the lanes are free again, and `answered` is called.

        Raises:
            DeviceLost: the device failed.
        """
        while True:
            await asyncio.sleep(self._idle_s)
            if not self._idle():
                continue
            end = await self._ping()
            if isinstance(end.result, Exception):
                raise DeviceLost(f"the device does not work any more: {end.result}") from end.result
            self.answered(end.ended_s)
            answered()

    async def _ping(self) -> Ended[None]:
        ended: asyncio.Future[Ended[None]] = asyncio.get_running_loop().create_future()
        self._lanes.run_first(self._runner.ping, lambda end: None if ended.done() else ended.set_result(end))
        return await ended
