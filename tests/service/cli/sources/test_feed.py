"""Which frames of a source are taken, and what becomes of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import pytest

from service.cli.sources.feed import Feed, FrameRate
from service.cli.sources.frame import Frame, SourceLost


class Script:
    """A source that gives these frames each time it is opened, and then ends or is lost."""

    def __init__(self, *openings: Sequence[bytes], is_live: bool, lost: bool = False) -> None:
        self.is_live, self.resumes = is_live, True
        self.opened = 0
        self._openings = openings
        self._lost = lost

    async def frames(self) -> AsyncGenerator[Frame, None]:
        self.opened += 1
        for encoded in self._openings[min(self.opened, len(self._openings)) - 1]:
            yield Frame(encoded, 0.0)
            await asyncio.sleep(0)
        if self._lost:
            raise SourceLost("it broke off")


@pytest.mark.parametrize(
    ("fps", "times", "taken"),
    [
        (None, [0.0, 0.0, 0.1], [0, 1, 2]),
        (10, [0.0, 0.04, 0.08, 0.12, 0.16, 0.20, 0.24, 0.28, 0.32], [0, 3, 5, 8]),
        (5, [0.0, 0.19, 0.41, 0.59], [0, 1, 2, 3]),  # a camera that is not punctual
        (1, [0.0, 10.0, 10.5, 11.0], [0, 1, 3]),  # after a pause there is no burst
    ],
)
def test_a_rate_takes_frames_evenly(fps: float | None, times: list[float], taken: list[int]) -> None:
    """At most so many frames are taken in a second, and about so many where there are more."""
    rate = FrameRate(fps)
    assert [index for index, at_s in enumerate(times) if rate.is_due(at_s)] == taken


async def test_a_live_source_gives_its_newest_frame() -> None:
    """Frames that come while none is taken replace each other; the source's end comes after the last one's outcome."""
    source = Script([b"%d" % number for number in range(1, 7)], is_live=True)
    feed = Feed(source, None, 0, pytest.fail)
    async with aclosing(feed.pictures()) as pictures:
        assert await anext(pictures) == b"1"
        while feed.seen < 6:
            await asyncio.sleep(0)
        assert await anext(pictures) == b"6"
        assert (feed.settle(0).dropped, feed.settle(1).dropped, feed.dropped) == (0, 4, 4)
        assert await anext(pictures, None) is None


async def test_a_file_that_was_not_answered_is_sent_again() -> None:
    """Frames that can wait are neither dropped nor lost: the source does not end before they have an outcome."""
    feed = Feed(Script([b"1", b"2"], is_live=False), None, 0, pytest.fail)
    async with aclosing(feed.pictures()) as pictures:
        assert [await anext(pictures), await anext(pictures)] == [b"1", b"2"]
        feed.settle(0, again=True)
        feed.settle(1)
        assert await anext(pictures) == b"1"
        assert feed.settle(2).number == 1
        assert await anext(pictures, None) is None
    assert feed.dropped == 0


async def test_a_lost_source_is_opened_again_so_often() -> None:
    """A loss is reported with the pause before the next attempt; a frame resets the count; then the loss is final."""
    reports: list[str] = []
    source = Script([b"1"], [b"2"], [], is_live=True, lost=True)
    feed = Feed(source, None, 1, reports.append)
    async with aclosing(feed.pictures()) as pictures:
        assert [await anext(pictures), await anext(pictures)] == [b"1", b"2"]
        with pytest.raises(SourceLost):
            await anext(pictures)
    assert source.opened == 3
    assert reports == ["it broke off; opening it again in 0.5 s"] * 2
