"""`ThreadPool`: values, errors, cancellation, deadlines and the end."""

from __future__ import annotations

import asyncio
import math
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.errors import DeadlineExceeded
from service.frontend.core.executor import ThreadPool
from tests.waiting import until

NEVER_S = math.inf


@contextmanager
def pool_of(threads: int) -> Iterator[ThreadPool]:
    pool = ThreadPool(threads, "test")
    try:
        yield pool
    finally:
        pool.close()


async def test_work_comes_back_with_its_own_value() -> None:
    """A hundred pieces of work, in three threads that are not the loop's, each with its own future."""

    def work(number: int) -> tuple[int, str]:
        time.sleep(0.001 * (number % 3))  # so that they end in another order than they began
        return number, threading.current_thread().name

    with pool_of(3) as pool:
        done = await asyncio.gather(*(pool.run(NEVER_S, work, number) for number in range(100)))
    values = [timed.value for timed in done]
    assert [number for number, _ in values] == list(range(100))
    assert {name for _, name in values} <= {"test-0", "test-1", "test-2"}


async def test_an_error_is_in_its_own_future() -> None:
    """The error of work is in its own future, and its thread goes on."""

    def fail() -> None:
        raise LookupError("nothing there")

    with pool_of(1) as pool:
        failing, working = pool.run(NEVER_S, fail), pool.run(NEVER_S, lambda: 7)
        with pytest.raises(LookupError, match="nothing there"):
            await failing
        assert (await working).value == 7


async def test_cancelled_work_is_not_begun() -> None:
    """Work cancelled in the queue never starts; work cancelled while it runs disturbs no other."""
    begun: list[str] = []
    held, running = threading.Event(), threading.Event()

    def hold() -> None:
        running.set()
        held.wait(20)
        begun.append("first")

    with pool_of(1) as pool:
        first, second, third = (
            pool.run(NEVER_S, hold),
            pool.run(NEVER_S, begun.append, "second"),
            pool.run(NEVER_S, lambda: "third"),
        )
        await asyncio.to_thread(running.wait, 20)
        first.cancel()
        second.cancel()
        held.set()
        assert (await third).value == "third"
        assert begun == ["first"]


async def test_an_idle_thread_keeps_no_cancelled_work() -> None:
    """Work that was cancelled in the queue is freed at once, with its arguments: they may be a large image."""

    class Argument:
        """Can have a weak reference."""

    held, running = threading.Event(), threading.Event()

    def hold() -> None:
        running.set()
        held.wait(20)

    with pool_of(1) as pool:
        argument = Argument()
        freed = weakref.ref(argument)
        first, second = pool.run(NEVER_S, hold), pool.run(NEVER_S, id, argument)
        await asyncio.to_thread(running.wait, 20)
        second.cancel()
        del argument
        held.set()
        await first
        await until(lambda: freed() is None)


async def test_closing_waits_for_what_runs_and_drops_the_rest() -> None:
    """`close` waits for running work, cancels the rest, and leaves no thread."""
    running, ended = threading.Event(), threading.Event()

    def slow() -> None:
        running.set()
        while not second.cancelled():  # closing has begun
            time.sleep(0.001)
        ended.set()

    pool = ThreadPool(1, "test-closing")
    first, second = pool.run(NEVER_S, slow), pool.run(NEVER_S, int)
    await asyncio.to_thread(running.wait, 20)
    pool.close()
    assert ended.is_set()
    assert second.cancelled()
    assert not any(thread.name.startswith("test-closing") for thread in threading.enumerate())
    await first
    with pytest.raises(RuntimeError, match="closed"):
        pool.run(NEVER_S, int)


async def test_an_error_that_no_future_takes_is_replaced() -> None:
    """A StopIteration on its way out of a piece of work leaves nobody waiting."""

    def exhausted() -> None:
        next(iter(()))

    with pool_of(1) as pool, pytest.raises(RuntimeError, match="StopIteration"):
        await pool.run(NEVER_S, exhausted)


async def test_work_whose_deadline_has_passed_does_not_start() -> None:
    """What waited for a thread until its deadline is refused without being run."""
    started: list[int] = []
    with pool_of(1) as pool:
        with pytest.raises(DeadlineExceeded):
            await pool.run(time.monotonic(), started.append, 1)
        await pool.run(NEVER_S, started.append, 2)
    assert started == [2]
