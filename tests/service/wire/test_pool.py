"""Several workers behind one front-end: real workers but for their devices, or bare doors."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from model.types import QueryParams, Task
from service.errors import DeadlineExceeded, ModelNotFound, Overloaded, Unavailable
from service.settings import Settings
from service.types import ModelStatus
from service.wire.messages import WaitEstimate
from service.wire.pool import WorkerPool
from service.wire.worker_endpoint import Envelope, WorkerEndpoint
from service.wire.worker_view import NO_WORKER
from tests.fakes import FakeWorker, fake_answer, fake_worker
from tests.service.wire.peers import (
    CLASSIFY,
    NOTHING_AHEAD,
    Heard,
    all_there,
    ask,
    introduce,
    next_job,
    picture,
    pool_of,
    served,
    soon,
    until,
)

SETTINGS = Settings(models=("fake",), heartbeat_interval_ms=20, self_check_interval_ms=10**9)


@asynccontextmanager
async def at_work(
    count: int, settings: Settings = SETTINGS
) -> AsyncIterator[tuple[WorkerPool, Heard, list[FakeWorker]]]:
    """So many workers, each with a classifier that is proven, and a pool that knows it."""
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(fake_worker(settings, tasks=[Task.CLASSIFY])) for _ in range(count)]
        pool, heard = await stack.enter_async_context(pool_of(*(worker.address for worker in workers)))
        await all_there(pool)
        yield pool, heard, workers


@asynccontextmanager
async def doors(folder: Path, *backlogs_s: float) -> AsyncIterator[tuple[WorkerPool, Heard, list[WorkerEndpoint]]]:
    """A worker by hand for each backlog, and a pool that heard of it."""
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(WorkerEndpoint(f"ipc://{folder}/{n}")) for n in range(len(backlogs_s))
        ]
        pool, heard = await stack.enter_async_context(pool_of(*(door.address for door in opened)))
        for door, backlog_s in zip(opened, backlogs_s, strict=True):
            await introduce(door, backlog_s=backlog_s)
        await all_there(pool)
        yield pool, heard, opened


@contextmanager
def within(pool: WorkerPool, model: ModelStatus, left_s: float = 20.0) -> Iterator[None]:
    """A job is being prepared that is due as soon as those of `ask` are."""
    kind = pool.prepare(model, time.monotonic() + left_s)
    yield
    kind.prepared()


def tell(door: WorkerEndpoint, letter: Envelope, job: int, outlook: WaitEstimate) -> None:
    """Answer a job, and say what the next one would find."""
    one = picture()
    output = fake_answer(Task.CLASSIFY, one.pixels, one.geometry, QueryParams())
    door.answer(letter.sender, job, output, 0.0, 0.0, 1, outlook)


async def told(pool: WorkerPool, door: WorkerEndpoint, outlook: WaitEstimate) -> None:
    """Have a job answered by a worker, with what the next one would find."""
    asked = asyncio.create_task(ask(pool))
    tell(door, *await next_job(door), outlook)
    await asked


LEAST_S = 0.01
"""What an image takes, at least, in `one_more`."""


def one_more(permits: threading.Semaphore) -> None:
    assert permits.acquire(timeout=60), "a test left a batch at the device"
    time.sleep(LEAST_S)


def images(worker: FakeWorker) -> int:
    """Images that came to a worker's device so far."""
    return sum(count for _, count in worker.runner.batches)


def waiting(worker: FakeWorker) -> int:
    return int(worker.registry.get_sample_value("convmlp_queue_depth", {"model": CLASSIFY}) or 0)


async def test_work_is_spread_evenly() -> None:
    """Jobs that come while nobody answers are shared out alike, and each caller gets the answer to its own picture."""
    async with at_work(3) as (pool, heard, workers):
        before = [images(worker) for worker in workers]
        for worker in workers:
            worker.runner.gate.clear()
        asked = [asyncio.create_task(ask(pool, level)) for level in range(30)]
        await until(
            lambda: all(images(one) - seen + waiting(one) == 10 for one, seen in zip(workers, before, strict=True))
        )
        for worker in workers:
            worker.runner.gate.set()
        assert await asyncio.gather(*asked) == list(range(30))
        assert heard.resent_for == []


async def test_a_slow_worker_gets_less() -> None:
    """A worker that gives nothing back is not given more: the other one does the work."""
    async with at_work(2) as (pool, _, (slow, quick)):
        before = images(slow), images(quick)
        slow.runner.gate.clear()
        stuck = [asyncio.create_task(ask(pool, 7)) for _ in range(4)]
        await until(lambda: sum(one.done() for one in stuck) == 2)
        for level in range(40):
            assert await ask(pool, level) == level
        assert images(quick) - before[1] == 42
        slow.runner.gate.set()
        assert await asyncio.gather(*stuck) == [7] * 4
        assert images(slow) - before[0] == 2


async def test_work_is_counted_in_pixels() -> None:
    """A large picture weighs as much as the small ones that it is as large as."""
    async with at_work(2) as (pool, _, workers):
        before = [images(worker) for worker in workers]
        for worker in workers:
            worker.runner.gate.clear()
        asked = [asyncio.create_task(ask(pool, of=picture(5, height=128)))]
        asked += [asyncio.create_task(ask(pool, 5)) for _ in range(4)]

        def came() -> list[int]:
            return sorted(images(one) - seen + waiting(one) for one, seen in zip(workers, before, strict=True))

        await until(lambda: sum(came()) == 5)
        assert came() == [1, 4]
        for worker in workers:
            worker.runner.gate.set()
        assert await asyncio.gather(*asked) == [5] * 5


async def test_between_equals_the_workers_word_decides(tmp_path: Path) -> None:
    """A front-end with nothing in hand goes where the workers, busy with others' work, said that there is less."""
    async with doors(tmp_path, 5.0, 0.1, 5.0) as (pool, _, (_, idle, _)):
        for _ in range(10):
            asked = asyncio.create_task(ask(pool))
            await next_job(idle)
            asked.cancel()


async def test_chance_decides_between_what_is_equal_still() -> None:
    """Front-ends that know the same of all workers do not all begin with the same one."""
    async with at_work(2) as (pool, _, workers):
        before = [images(worker) for worker in workers]
        for level in range(60):
            assert await ask(pool, level) == level
        assert all(images(one) > seen for one, seen in zip(workers, before, strict=True))


async def test_a_lost_worker_s_jobs_go_to_another(tmp_path: Path) -> None:
    """When a worker dies, what it had in hand is answered by another one, whoever asked hears nothing of it."""
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as worker, AsyncExitStack() as stack:
        pool, heard = await stack.enter_async_context(pool_of(f"ipc://{tmp_path}/w", worker.address))
        async with WorkerEndpoint(f"ipc://{tmp_path}/w") as door:
            await introduce(door)
            await all_there(pool)
            asked = [asyncio.create_task(ask(pool, level)) for level in range(8)]
            for _ in range(4):
                await next_job(door)
            assert heard.up[-1] == (2, 2)
        assert await asyncio.gather(*asked) == list(range(8))
        assert heard.resent_for == ["unavailable"] * 4
        assert heard.up[-1] == (1, 2)
        assert pool.readiness().ready
        assert pool.readiness().reason == "ready, with 1 of 2 workers"


async def test_what_would_be_answered_too_late_is_refused_before_it_is_prepared(tmp_path: Path) -> None:
    """A worker told with an answer how long the next one takes: until it tells something else, longer than a deadline
    allows is too long."""
    async with doors(tmp_path, 0.0) as (pool, _, (door,)):
        (model,) = pool.models() or ()
        await told(pool, door, WaitEstimate(100.0, 1.0))
        held = asyncio.create_task(ask(pool))
        letter, job = await next_job(door)
        with pytest.raises(Overloaded, match="more than the request's deadline") as caught, within(pool, model):
            pytest.fail("it was prepared")
        assert caught.value.retry_after_s > 90
        tell(door, letter, job, WaitEstimate(0.0, 1.0))
        await held
        held = asyncio.create_task(ask(pool))
        letter, job = await next_job(door)
        with within(pool, model):
            """It may be prepared."""
        tell(door, letter, job, NOTHING_AHEAD)
        await held


async def test_an_estimate_alone_refuses_nobody(tmp_path: Path) -> None:
    """Where a front-end has nothing in hand, one is tried, whatever was told last; so is one whose deadline passed
    already, for it is told that."""
    async with doors(tmp_path, 0.0) as (pool, _, (door,)):
        (model,) = pool.models() or ()
        await told(pool, door, WaitEstimate(100.0, 1.0))
        with within(pool, model):
            with pytest.raises(Overloaded), within(pool, model):
                pytest.fail("the first is in hand")
            with within(pool, model, left_s=-1.0):
                """`predict` tells it."""


async def test_the_worker_that_answers_soonest_counts(tmp_path: Path) -> None:
    """While one worker has time, nobody is refused because another has not."""
    async with doors(tmp_path, 0.0, 1.0) as (pool, _, (busy, idle)):
        (model,) = pool.models() or ()
        await told(pool, busy, WaitEstimate(100.0, 1.0))
        first = asyncio.create_task(ask(pool))
        letter, job = await next_job(busy)
        with within(pool, model):
            """The other worker has nothing in hand."""
        second = asyncio.create_task(ask(pool))
        other, other_job = await next_job(idle)
        with within(pool, model):
            """And has told nothing."""
        tell(idle, other, other_job, WaitEstimate(100.0, 1.0))
        await second
        second = asyncio.create_task(ask(pool))
        other, other_job = await next_job(idle)
        with pytest.raises(Overloaded), within(pool, model):
            pytest.fail("neither has time")
        tell(busy, letter, job, NOTHING_AHEAD)
        tell(idle, other, other_job, NOTHING_AHEAD)
        await asyncio.gather(first, second)


async def test_front_ends_of_one_worker_hear_of_each_other_s_work() -> None:
    """With its own answer a front-end is told of all that waits at the worker, whoever sent it."""
    settings = SETTINGS.with_changes(max_batch_images=1)
    async with at_work(1, settings) as (one, _, (worker,)), pool_of(worker.address) as (other, _):
        await all_there(other)
        permits = threading.Semaphore(2)
        worker.runner.takes = lambda *_: one_more(permits)
        for _ in range(2):  # the worker goes by the second
            await ask(one)
        (model,) = other.models() or ()
        running = asyncio.create_task(ask(one))
        ran = len(worker.runner.batches)
        await until(lambda: len(worker.runner.batches) == ran + 1)
        asked = asyncio.create_task(other.predict("r", model, picture(), QueryParams(), soon()))
        await until(lambda: waiting(worker) == 1)
        more = [asyncio.create_task(ask(one)) for _ in range(10)]
        await until(lambda: waiting(worker) == 11)
        permits.release(2)
        outlook = (await asked).outlook
        permits.release(len(more))
        await asyncio.gather(running, *more)
        assert outlook.answered_s > len(more) * LEAST_S


async def test_a_job_is_sent_twice_at_most(tmp_path: Path) -> None:
    """A picture that kills each worker that sees it does not go on to a third."""
    addresses = [f"ipc://{tmp_path}/{n}" for n in range(3)]
    async with AsyncExitStack() as stack:
        pool, heard = await stack.enter_async_context(pool_of(*addresses))
        opened = {number: WorkerEndpoint(address) for number, address in enumerate(addresses)}
        for door in opened.values():
            await door.__aenter__()
            await introduce(door)
        await all_there(pool)
        asked = asyncio.create_task(ask(pool))
        for _ in range(2):
            receiving = {asyncio.create_task(next_job(door)): number for number, door in opened.items()}
            done, rest = await asyncio.wait(receiving, return_when=asyncio.FIRST_COMPLETED)
            for one in rest:
                one.cancel()
            await asyncio.wait(receiving)
            await opened.pop(receiving[done.pop()]).__aexit__()
        with pytest.raises(Unavailable, match="send the request again"):
            await asked
        assert heard.resent_for == ["unavailable"]
        assert pool.readiness().ready
        for door in opened.values():
            await door.__aexit__()


async def test_without_another_worker_a_lost_one_s_jobs_fail_at_once(tmp_path: Path) -> None:
    """Where nobody else has the model the caller is told, long before the deadline."""
    async with fake_worker(SETTINGS, tasks=[Task.DETECT]) as other, AsyncExitStack() as stack:
        pool, heard = await stack.enter_async_context(pool_of(f"ipc://{tmp_path}/w", other.address))
        async with WorkerEndpoint(f"ipc://{tmp_path}/w") as door:
            await introduce(door)
            await all_there(pool)
            assert served(pool) == [CLASSIFY, "fake_detect"]
            asked = asyncio.create_task(ask(pool))
            await next_job(door)
        with pytest.raises(Unavailable, match="send the request again"):
            await asked
        assert heard.resent_for == []
        assert pool.readiness().reason == f"not ready: {CLASSIFY}"
        with pytest.raises(Unavailable, match=NO_WORKER):
            await ask(pool)


async def test_a_refusal_is_no_refusal_while_another_worker_has_room(tmp_path: Path) -> None:
    """A job that a full worker does not let in is answered by the next one."""
    async with doors(tmp_path, 0.0, 1.0) as (pool, heard, (full, free)):
        asked = asyncio.create_task(ask(pool, 42))
        letter, job = await next_job(full)
        full.fail(letter.sender, job, Overloaded("the queue is full", 7.0))
        letter, job = await next_job(free)
        one = picture(42)
        output = fake_answer(Task.CLASSIFY, one.pixels, one.geometry, QueryParams())
        free.answer(letter.sender, job, output, 0.0, 0.0, 1, NOTHING_AHEAD)
        assert await asked == 42
        assert heard.resent_for == ["overloaded"]


@pytest.mark.parametrize(("first_s", "second_s"), [(7.0, 3.0), (3.0, 7.0)])
async def test_when_both_are_full_the_shorter_time_is_told(tmp_path: Path, first_s: float, second_s: float) -> None:
    """Two refusals become one, with the time after which the first of the two workers has room."""
    async with doors(tmp_path, 0.0, 1.0) as (pool, _, both):
        asked = asyncio.create_task(ask(pool))
        for door, retry_after_s in zip(both, (first_s, second_s), strict=True):
            letter, job = await next_job(door)
            door.fail(letter.sender, job, Overloaded(f"full for {retry_after_s} s", retry_after_s))
        with pytest.raises(Overloaded, match=r"full for 3\.0 s") as caught:
            await asked
        assert caught.value.retry_after_s == 3.0


async def test_errors_that_another_worker_would_repeat_are_final(tmp_path: Path) -> None:
    """What is wrong with the request is told as it is, and a deadline that passed is not tried again."""
    async with doors(tmp_path, 0.0, 1.0) as (pool, heard, (first, _)):
        asked = asyncio.create_task(ask(pool))
        letter, job = await next_job(first)
        first.fail(letter.sender, job, ModelNotFound("it has just left"))
        with pytest.raises(ModelNotFound, match="just left"):
            await asked
        (model,) = pool.models() or ()
        with pytest.raises(DeadlineExceeded):
            await pool.predict("r", model, picture(), QueryParams(), time.monotonic() + 0.1)
        assert heard.resent_for == []


async def test_only_workers_that_are_ready_for_a_model_are_asked_for_it() -> None:
    """A worker whose model lost its proof gets no jobs for it; when none is ready the service says which model."""
    settings = SETTINGS.with_changes(self_check_interval_ms=20)
    async with at_work(2, settings) as (pool, _, (sick, well)):
        assert [status.devices for status in pool.models() or ()] == [("cpu", "cpu")]
        sick.runner.shift = 50
        await until(lambda: [status.devices for status in pool.models() or ()] == [("cpu",)])
        assert [await ask(pool, level) for level in range(20)] == list(range(20))
        assert pool.readiness().ready
        well.runner.shift = 50
        await until(lambda: pool.readiness().reason == f"not ready: {CLASSIFY}")
        with pytest.raises(Unavailable, match="the reference says"):
            await ask(pool)


async def test_a_worker_may_come_late_and_come_back(tmp_path: Path) -> None:
    """The service is ready with the first worker; others take their share whenever they come, first or again."""
    late = f"ipc://{tmp_path}/late"
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as first, pool_of(first.address, late) as (pool, heard):
        await until(lambda: pool.readiness().ready)
        assert pool.readiness().reason == "ready, with 1 of 2 workers"
        assert await ask(pool, 3) == 3
        for life in range(2):
            async with fake_worker(SETTINGS, late, tasks=[Task.CLASSIFY]) as second:
                await all_there(pool)
                before = images(second)
                assert await asyncio.gather(*(ask(pool, level) for level in range(10))) == list(range(10))
                assert images(second) - before == 5
                assert (heard.up[-1], heard.replaced) == ((2, 2), life)
            await until(lambda: heard.up[-1] == (1, 2))
            assert await ask(pool, 4) == 4
        assert heard.resent_for == []  # a worker that drains answers what it has


async def test_every_change_is_told() -> None:
    """Whoever waits for a change hears of a worker that comes and of one that goes."""
    async with at_work(2) as (pool, _, (one, _)):
        change = pool.next_change()
        assert not change.is_set()
        one.stop.set()
        async with asyncio.timeout(20):
            await change.wait()
        assert not pool.next_change().is_set()


async def test_before_any_worker_was_heard_of_nothing_is_known(tmp_path: Path) -> None:
    """Nobody there: no models, not ready, and the reason is that of the first who comes."""
    async with pool_of(f"ipc://{tmp_path}/0", f"ipc://{tmp_path}/1") as (pool, _):
        assert pool.models() is None
        assert (pool.readiness().ready, pool.readiness().reason) == (False, NO_WORKER)
        assert pool.retry_after_s() > 0
        with pytest.raises(Unavailable, match=NO_WORKER):
            await pool.repository(time.monotonic() + 1)
        async with WorkerEndpoint(f"ipc://{tmp_path}/1") as door:
            await introduce(door)
            await until(lambda: pool.readiness().ready)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await pool.introduced()
            async with WorkerEndpoint(f"ipc://{tmp_path}/0") as other, asyncio.timeout(20):
                await introduce(other)
                await pool.introduced()


async def test_a_pool_that_closes_fails_what_it_has_in_hand(tmp_path: Path) -> None:
    """At its end a front-end tells whoever waits still, and sends nothing again."""
    async with WorkerEndpoint(f"ipc://{tmp_path}/0") as one, WorkerEndpoint(f"ipc://{tmp_path}/1") as other:
        async with pool_of(one.address, other.address) as (pool, heard):
            for door in (one, other):
                await introduce(door)
            await all_there(pool)
            asked = [asyncio.create_task(ask(pool)) for _ in range(4)]
            for door in (one, other, one, other):
                await next_job(door)
        for task in asked:
            with pytest.raises(Unavailable, match="shutting down"):
                await task
        assert heard.resent_for == []
