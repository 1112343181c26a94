"""`ThreadPool`: values, errors, cancellation, deadlines, memory, turns and the end."""

from __future__ import annotations

import asyncio
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from model.decode import DecodeLimits
from model.errors import OutOfMemory
from model.preprocess import prepare
from model.spec import CenterCropSpec, KeepRatioSpec, Preprocessing
from model.types import Image, UInt8Array
from service.errors import DeadlineExceeded, Overloaded, Refusal
from service.frontend.core.executor import DrainRate, PreparePool, ThreadPool, Timed, Work, WorkSpeed
from tests.model.picture_files import PHOTO, encoded
from tests.model.test_pictures import by_opencv, by_pillow
from tests.waiting import until

NEVER_S = math.inf


@contextmanager
def pool_of(threads: int, max_bytes: int = 2**62) -> Iterator[ThreadPool]:
    pool = ThreadPool(threads, "test", max_bytes)
    try:
        yield pool
    finally:
        pool.close()


def submitted(pool: ThreadPool, call: Callable[..., Any], *args: Any, **fields: Any) -> Work[Any]:  # noqa: ANN401
    work = Work(call, args, fields.pop("deadline_s", NEVER_S), **fields)
    pool.submit(work)
    return work


def start(pool: ThreadPool, call: Callable[..., Any], *args: Any, **fields: Any) -> asyncio.Future[Timed[Any]]:  # noqa: ANN401
    return submitted(pool, call, *args, **fields).future


class Held:
    """Work that runs from when a thread took it until it is let go."""

    def __init__(self) -> None:
        self.runs = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> None:
        self.runs.set()
        assert self.go.wait(20), "a test left a thread held"

    async def until_running(self) -> None:
        await asyncio.to_thread(self.runs.wait, 20)


@contextmanager
def held_pool(threads: int = 1, max_bytes: int = 2**62, **fields: Any) -> Iterator[tuple[ThreadPool, Held]]:  # noqa: ANN401
    """A pool whose threads are all held, by work with these fields."""
    with pool_of(threads, max_bytes) as pool:
        held = Held()
        for _ in range(threads):
            submitted(pool, held, **fields)
        try:
            yield pool, held
        finally:
            held.go.set()


async def test_work_comes_back_with_its_own_value() -> None:
    """A hundred pieces of work, in three threads that are not the loop's, each with its own future."""

    def work(number: int) -> tuple[int, str]:
        time.sleep(0.001 * (number % 3))  # so that they end in another order than they began
        return number, threading.current_thread().name

    with pool_of(3) as pool:
        done = await asyncio.gather(*(start(pool, work, number) for number in range(100)))
    values = [timed.value for timed in done]
    assert [number for number, _ in values] == list(range(100))
    assert {name for _, name in values} <= {"test-0", "test-1", "test-2"}


async def test_an_error_is_in_its_own_future() -> None:
    """The error of work is in its own future, and its thread goes on."""

    def fail() -> None:
        raise LookupError("nothing there")

    with pool_of(1) as pool:
        failing, working = start(pool, fail), start(pool, lambda: 7)
        with pytest.raises(LookupError, match="nothing there"):
            await failing
        assert (await working).value == 7


@pytest.mark.parametrize(
    ("error", "detail"), [(MemoryError(), "no memory"), (OutOfMemory("takes 9 bytes"), "takes 9 bytes")]
)
async def test_out_of_memory_is_overload(error: Exception, detail: str) -> None:
    """Work that gets no memory is refused with the time to come back, whatever it was; its thread goes on."""

    def fail() -> None:
        raise error

    with pool_of(1) as pool:
        failing, working = start(pool, fail), start(pool, lambda: 7)
        with pytest.raises(Overloaded, match=detail) as refused:
            await failing
        assert refused.value.reason is Refusal.MEMORY
        assert refused.value.retry_after_s > 0
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
            start(pool, hold),
            start(pool, begun.append, "second"),
            start(pool, lambda: "third"),
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
        first, second = start(pool, hold), start(pool, id, argument)
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
    first, second = start(pool, slow), start(pool, int)
    await asyncio.to_thread(running.wait, 20)
    pool.close()
    assert ended.is_set()
    assert second.cancelled()
    assert not any(thread.name.startswith("test-closing") for thread in threading.enumerate())
    await first
    with pytest.raises(RuntimeError, match="closed"):
        start(pool, int)


def test_a_thread_that_outlives_the_event_loop_ends_quietly() -> None:
    """A front-end that ends while a thread still decodes logs no error about it."""
    held = Held()

    async def serve() -> None:
        submitted(ThreadPool(1, "outlives"), held)
        await held.until_running()

    asyncio.run(serve())
    (thread,) = [one for one in threading.enumerate() if one.name == "outlives-0"]
    held.go.set()
    thread.join(20)  # an exception in it would be an error of this test
    assert not thread.is_alive()


async def test_an_error_that_no_future_takes_is_replaced() -> None:
    """A StopIteration on its way out of a piece of work leaves nobody waiting."""

    def exhausted() -> None:
        next(iter(()))

    with pool_of(1) as pool, pytest.raises(RuntimeError, match="StopIteration"):
        await start(pool, exhausted)


async def test_work_whose_deadline_has_passed_does_not_start() -> None:
    """It is refused at once, without being run."""
    begun: list[int] = []
    with pool_of(1) as pool:
        with pytest.raises(DeadlineExceeded):
            start(pool, begun.append, 1, deadline_s=time.monotonic())
        await start(pool, begun.append, 2)
    assert begun == [2]


async def test_a_deadline_is_kept_while_work_waits() -> None:
    """The caller gets its error though no thread is free, and the work never starts."""
    begun: list[int] = []
    with held_pool() as (pool, held):
        with pytest.raises(DeadlineExceeded, match="before a thread was free"):
            await start(pool, begun.append, 1, deadline_s=time.monotonic() + 0.02)
        assert pool.waiting == 0
        held.go.set()
        await start(pool, begun.append, 2)
    assert begun == [2]


async def test_a_deadline_is_kept_while_work_runs() -> None:
    """The caller gets its error though the work goes on; its thread and its memory are charged until it ends."""
    held = Held()
    with pool_of(1, max_bytes=100) as pool:
        work = submitted(pool, held, nbytes=70, deadline_s=time.monotonic() + 1.0)
        await held.until_running()
        with pytest.raises(DeadlineExceeded, match="while a thread worked on it"):
            await work.future
        pool.release(work)
        assert (pool.abandoned, pool.held_bytes) == (1, 70)
        held.go.set()
        await start(pool, int)
        assert (pool.abandoned, pool.held_bytes) == (0, 0)


async def test_memory_bounds_what_runs() -> None:
    """Work that does not fit beside what runs waits for it, though a thread is free; alone it may always run."""
    first = Held()
    with pool_of(2, max_bytes=100) as pool:
        one = submitted(pool, first, nbytes=60)
        await first.until_running()
        two, three = (submitted(pool, int, nbytes=nbytes) for nbytes in (41, 1000))
        assert pool.waiting == 2
        first.go.set()
        await asyncio.gather(one.future, two.future, three.future)
        assert pool.held_bytes == 0


async def test_a_result_s_memory_is_held_until_it_is_released() -> None:
    """What a result takes later is charged from the end of its work on."""
    with pool_of(1, max_bytes=100) as pool:
        work = submitted(pool, int, nbytes=90, reserved_bytes=50)
        await work.future
        assert pool.held_bytes == 50
        pool.release(work)
        assert pool.held_bytes == 0


async def test_results_that_are_held_bound_what_runs() -> None:
    """While results take all memory nothing more starts, however small; but urgent work does, whose end frees some."""
    with pool_of(2, max_bytes=100) as pool:
        first = submitted(pool, int, nbytes=50, reserved_bytes=100)
        await first.future
        waiting = submitted(pool, int, nbytes=1)
        await start(pool, int, nbytes=50, urgent=True)
        assert pool.waiting == 1
        assert not waiting.future.done()
        pool.release(first)
        await waiting.future


async def test_a_result_that_nobody_takes_is_not_held() -> None:
    """A caller that left while its work ran, or between its end and its result, leaves no memory charged."""
    with pool_of(1, max_bytes=100) as pool:
        for leave_early in (True, False):
            held = Held()
            work = submitted(pool, held, nbytes=90, reserved_bytes=50)
            await held.until_running()
            if leave_early:
                work.future.cancel()
                pool.release(work)
            held.go.set()
            await start(pool, int)
            pool.release(work)
            assert pool.held_bytes == 0


async def test_urgent_work_is_next() -> None:
    """Work of requests that were let through the queue goes before all that waits there."""
    order: list[str] = []
    with held_pool() as (pool, held):
        waiting = [start(pool, order.append, name, caller=name, cost=1e9) for name in ("a", "b")]
        waiting.append(start(pool, order.append, "urgent", urgent=True))
        held.go.set()
        await asyncio.gather(*waiting)
    assert order == ["urgent", "a", "b"]


async def test_callers_take_turns() -> None:
    """A caller's one piece of work is done after one of another's, however many that other caller sent before."""
    order: list[str] = []
    with held_pool() as (pool, held):
        waiting = [start(pool, order.append, f"many {at}", caller="many", cost=1e9) for at in range(8)]
        waiting.append(start(pool, order.append, "one", caller="one", cost=1e9))
        held.go.set()
        await asyncio.gather(*waiting)
    assert order.index("one") <= 1


async def test_what_would_end_too_late_is_refused_instead_of_started() -> None:
    """Its thread serves another that is in time."""
    begun: list[str] = []

    def work(name: str, seconds: float) -> None:
        begun.append(name)
        time.sleep(seconds)

    with pool_of(1) as pool:
        await start(pool, work, "measured", 0.2, cost=100)
        held = Held()
        submitted(pool, held)
        late = submitted(pool, work, "late", 0.0, cost=100, deadline_s=time.monotonic() + 0.1)
        behind = submitted(pool, work, "behind", 0.0, cost=100)
        held.go.set()
        with pytest.raises((Overloaded, DeadlineExceeded)):
            await late.future
        await behind.future
    assert begun == ["measured", "behind"]


async def test_the_expected_time_counts_what_is_ahead() -> None:
    """Nothing is expected while a thread is free, or before anything was measured."""
    with pool_of(1) as pool:
        measured = submitted(pool, time.sleep, 0.05, cost=100)
        assert pool.expected_s(Work(int, (), NEVER_S, cost=100)) == 0.0
        lasted_s = (await measured.future).seconds
        assert pool.expected_s(Work(int, (), NEVER_S, cost=100)) == 0.0
        held = Held()
        submitted(pool, held)
        for _ in range(10):
            submitted(pool, int, cost=100, caller="many")
        of_many = pool.expected_s(Work(int, (), NEVER_S, cost=100, caller="many"))
        of_another = pool.expected_s(Work(int, (), NEVER_S, cost=100, caller="another"))
        assert 10 * lasted_s < of_many < 60 * lasted_s
        assert lasted_s < of_another < of_many / 3
        held.go.set()


def test_the_speed_of_small_work_is_its_own() -> None:
    """Seconds for each unit of cost differ by size; a size that is not known is as fast as the latest."""
    speed = WorkSpeed()
    assert speed.seconds(5.0) == 0.0
    for _ in range(200):
        speed.record(10.0, 1.0)
        speed.record(1e6, 1000.0)
    assert speed.seconds(10.0) == pytest.approx(1.0)
    assert speed.seconds(2e6) == pytest.approx(2000.0)


def test_the_drain_rate_is_of_late() -> None:
    """It follows a change of the load within seconds, and nothing is known before a quarter of one."""
    rate = DrainRate()
    rate.begin(100.0)
    rate.record(100.1, 0.2)
    assert rate.per_s == 0.0
    for tenth in range(2, 20):
        rate.record(100.0 + tenth / 10, 0.2)
    assert rate.per_s == pytest.approx(2.0, rel=0.05)
    rate.begin(200.0)  # nothing waited in between
    for tenth in range(1, 40):
        rate.record(200.0 + tenth / 10, 0.05)
    assert rate.per_s == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("spec", "reader"),
    [(CenterCropSpec(resize_shorter=40, crop=32), by_pillow), (KeepRatioSpec(long_side=50, short_side=40), by_opencv)],
)
def test_a_model_gets_the_colours_of_its_authors_library(
    spec: Preprocessing, reader: Callable[[bytes], UInt8Array]
) -> None:
    """Of a CMYK JPEG Pillow and OpenCV make different colours; a pipeline reads with that of its authors."""
    data = encoded(PHOTO.convert("CMYK"), "JPEG")
    pool = PreparePool(1, DecodeLimits(10**6, 10**6))
    try:
        pixels = pool.prepare(data, spec).pixels
    finally:
        pool.close()
    np.testing.assert_array_equal(pixels, prepare(Image(reader(data)), spec).pixels)
