"""Whether the device still answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.worker.lanes import Ended, Lanes
from service.worker.runner import DeviceLost, Runner


class SignOfLife:
    """Its batches are one; where `idle` says that there is nothing to do it is asked, every `idle_s` seconds."""

    def __init__(
        self,
        runner: Runner,
        lanes: Lanes,
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
