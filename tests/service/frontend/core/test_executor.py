"""The threads that an event loop gives work to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.frontend.core.executor import ThreadPool


@contextmanager
def crew_of(threads: int) -> Iterator[ThreadPool]:
    crew = ThreadPool(threads, "test")
    try:
        yield crew
    finally:
        crew.close()


async def test_work_comes_back_with_its_own_value() -> None:
    """A hundred pieces of work, in three threads that are not the loop's, each to whoever gave it."""

    def work(number: int) -> tuple[int, str]:
        time.sleep(0.001 * (number % 3))  # so that they end in another order than they began
        return number, threading.current_thread().name

    with crew_of(3) as crew:
        done = await asyncio.gather(*(crew.run(lambda number=number: work(number)) for number in range(100)))  # type: ignore[misc]
    assert [number for number, _ in done] == list(range(100))
    assert {name for _, name in done} <= {"test-0", "test-1", "test-2"}


async def test_an_error_is_its_giver_s_alone() -> None:
    """Work that fails tells whoever gave it, and its thread goes on."""

    def fail() -> None:
        raise LookupError("nothing there")

    with crew_of(1) as crew:
        failing, working = crew.run(fail), crew.run(lambda: 7)
        with pytest.raises(LookupError, match="nothing there"):
            await failing
        assert await working == 7


async def test_cancelled_work_is_not_begun() -> None:
    """Who leaves while others are at work costs nothing, and what runs for one who left disturbs nobody."""
    begun: list[str] = []
    held, running = threading.Event(), threading.Event()

    def hold() -> None:
        running.set()
        held.wait(20)
        begun.append("first")

    with crew_of(1) as crew:
        first, second, third = crew.run(hold), crew.run(lambda: begun.append("second")), crew.run(lambda: "third")
        await asyncio.to_thread(running.wait, 20)
        first.cancel()
        second.cancel()
        held.set()
        assert await third == "third"
        assert begun == ["first"]


async def test_closing_waits_for_what_runs_and_drops_the_rest() -> None:
    """After it no thread is left, and nobody waits for ever."""
    running, ended = threading.Event(), threading.Event()

    def slow() -> None:
        running.set()
        time.sleep(0.05)
        ended.set()

    crew = ThreadPool(1, "test-closing")
    first, second = crew.run(slow), crew.run(lambda: None)
    await asyncio.to_thread(running.wait, 20)
    crew.close()
    assert ended.is_set()
    assert second.cancelled()
    assert not any(thread.name.startswith("test-closing") for thread in threading.enumerate())
    await first
    with pytest.raises(RuntimeError, match="ended"):
        crew.run(lambda: None)


async def test_an_error_that_no_future_takes_is_told_all_the_same() -> None:
    """A StopIteration on its way out of a piece of work leaves nobody waiting."""

    def exhausted() -> None:
        next(iter(()))

    with crew_of(1) as crew, pytest.raises(RuntimeError, match="StopIteration"):
        await crew.run(exhausted)
