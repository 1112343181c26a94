"""Between a source and the service: of frames that come faster than they are answered, the newest one is kept.

Files wait where they are, and lose nothing: their source is read as fast as the service answers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from model.errors import ConvMLPError
from service.cli.sources.frame import Frame, FrameSource, SourceLost

PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
"""Before the first attempt to open a source again, and before any."""
EARLY = 0.1
"""Part of the time between two frames by which a frame may come early: cameras are not punctual."""
AWAY_PAUSE_S = 1.0
"""Before a frame that the service could not answer is sent again."""


@dataclass(frozen=True, slots=True)
class TakenFrame:
    """A frame that was sent: its number in the source from 1 on, and how many were dropped until then."""

    number: int
    frame: Frame
    image: bytes
    dropped: int
    taken_s: float


class FrameRate:
    """Which frames are taken so that there are at most `fps` in a second; None takes all."""

    def __init__(self, fps: float | None) -> None:
        self._interval_s = None if fps is None else 1 / fps
        self._due_s: float | None = None

    def is_due(self, now_s: float) -> bool:
        """Whether a frame of this time is taken."""
        if self._interval_s is None:
            return True
        due_s = now_s if self._due_s is None else self._due_s
        if now_s < due_s - EARLY * self._interval_s:
            return False
        # A late frame does not delay those after it, unless one was left out.
        self._due_s = (due_s if now_s - due_s <= self._interval_s else now_s) + self._interval_s
        return True


class Feed:
    """The pictures of a source, for `AsyncClient.detect_many` and the like.

    `fps` bounds the frames in a second; None takes all. A source that was open and is lost is opened again, up to
    `reconnects` times in a row. `report` prints what a user should know.
    """

    def __init__(
        self, source: FrameSource, fps: float | None, reconnects: int, report: Callable[[str], object]
    ) -> None:
        self._source = source
        self._rate = FrameRate(fps)
        self._reconnects = reconnects
        self._report = report
        self._waiting: tuple[int, Frame] | None = None
        self._returned: deque[TakenFrame] = deque()
        self._changed = asyncio.Event()
        self._stopped = False
        self.taken: dict[int, TakenFrame] = {}
        """Those without an outcome yet, by their position among the pictures."""
        self.seen = self.skipped = self.dropped = self.unreadable = 0
        """Frames of the source; those beyond `fps`; those replaced by newer ones; files that could not be read."""
        self.on_unreadable: Callable[[TakenFrame, ConvMLPError], Awaitable[None]] | None = None
        """Called for each file that cannot be read; its frame has no image."""

    async def pictures(self) -> AsyncGenerator[bytes, None]:
        """The encoded frames, until the source has ended and each has its outcome. Raises SourceLost."""
        position = 0
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(lambda _: self._changed.set())
        try:
            while not self._stopped:
                if self._returned:
                    await asyncio.sleep(AWAY_PAUSE_S)
                    taken = self._returned.popleft()
                elif self._waiting is not None:
                    number, frame = self._waiting
                    self._waiting = None
                    self._changed.set()
                    image = await self._encoded(number, frame)
                    if image is None:
                        continue
                    taken = TakenFrame(number, frame, image, self.dropped, time.monotonic())
                elif reading.done() and (reading.exception() is not None or not self.taken):
                    reading.result()
                    return
                else:
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                self.taken[position] = taken
                position += 1
                yield taken.image
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def settle(self, position: int, *, again: bool = False) -> TakenFrame:
        """The frame of an outcome. `again`: the service could not answer, so a frame that can wait is sent again."""
        taken = self.taken.pop(position)
        if again and not self._source.is_live:
            self._returned.append(taken)
        self._changed.set()
        return taken

    @property
    def keeps(self) -> bool:
        """Whether its frames wait for the service."""
        return not self._source.is_live

    def stop(self) -> None:
        """End `pictures`: no more frames are sent."""
        self._stopped = True
        self._changed.set()

    async def _read(self) -> None:
        was_open, failures = False, 0
        while True:
            try:
                async with aclosing(self._source.frames()) as frames:
                    async for frame in frames:
                        was_open, failures = True, 0
                        await self._offer(frame)
                return
            except SourceLost as error:
                if not (was_open and self._source.resumes) or failures == self._reconnects:
                    raise
                pause_s = min(PAUSE_S * 2.0**failures, MAX_PAUSE_S)
                failures += 1
                self._report(f"{error}; opening it again in {pause_s:g} s")
                await asyncio.sleep(pause_s)

    async def _offer(self, frame: Frame) -> None:
        self.seen += 1
        if not self._rate.is_due(time.monotonic() if frame.position_s is None else frame.position_s):
            self.skipped += 1
            return
        while self.keeps and self._waiting is not None:
            self._changed.clear()
            await self._changed.wait()
        if self._waiting is not None:
            self.dropped += 1
        self._waiting = self.seen, frame
        self._changed.set()

    async def _encoded(self, number: int, frame: Frame) -> bytes | None:
        """None where a file was removed, or cannot be read, which is reported."""
        if isinstance(frame.encoded, bytes):
            return frame.encoded
        try:
            return await asyncio.to_thread(frame.encoded)
        except ConvMLPError as error:
            self.unreadable += 1
            self._report(f"{frame.fields.get('file', 'a frame')}: {error.detail}")
            if self.on_unreadable is not None:
                await self.on_unreadable(TakenFrame(number, frame, b"", self.dropped, time.monotonic()), error)
            return None
