"""Several workers behind one front-end: real workers with fake devices, or scripted workers."""

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
from service.wire.worker_view import NO_WORKER
from tests.fakes import FakeWorker, fake_worker
from tests.service.wire.scripted_worker import ScriptedWorker
from tests.service.wire.worker_pool import (
    CLASSIFY,
    PoolEvents,
    all_ready,
    classify,
    far_deadline_s,
    open_pool,
    picture,
    served,
)
from tests.waiting import PATIENCE_S, until

SETTINGS = Settings(models=("fake",), heartbeat_interval_ms=20, self_check_interval_ms=10**9)


@asynccontextmanager
async def fake_workers(
    count: int, settings: Settings = SETTINGS
) -> AsyncIterator[tuple[WorkerPool, PoolEvents, list[FakeWorker]]]:
    """So many workers, each with a classifier that is proven, and a pool that knows it."""
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(fake_worker(settings, tasks=[Task.CLASSIFY])) for _ in range(count)]
        pool, events = await stack.enter_async_context(open_pool(*(worker.address for worker in workers)))
        await all_ready(pool)
        yield pool, events, workers


@asynccontextmanager
async def scripted_workers(
    folder: Path, *retry_after_s: float
) -> AsyncIterator[tuple[WorkerPool, PoolEvents, list[ScriptedWorker]]]:
    """A scripted worker for each Retry-After, and a pool that has received their states."""
    async with AsyncExitStack() as stack:
        addresses = [f"ipc://{folder}/{number}" for number in range(len(retry_after_s))]
        workers = [await stack.enter_async_context(ScriptedWorker(address)) for address in addresses]
        pool, events = await stack.enter_async_context(open_pool(*addresses))
        for worker, seconds in zip(workers, retry_after_s, strict=True):
            await worker.introduce(retry_after_s=seconds)
        await all_ready(pool)
        yield pool, events, workers


@contextmanager
def preparing(pool: WorkerPool, model: ModelStatus, left_s: float = 20.0) -> Iterator[None]:
    """A picture is being prepared; by default it is due as soon as those of `classify`."""
    reservation = pool.reserve(model, time.monotonic() + left_s)
    yield
    reservation.prepared()


async def answered(pool: WorkerPool, worker: ScriptedWorker, estimate: WaitEstimate) -> None:
    """Have a request answered by a worker, with its estimate for the next one."""
    request = asyncio.create_task(classify(pool))
    (await worker.next_job()).answer(estimate=estimate)
    await request


def images(worker: FakeWorker) -> int:
    """Images that a worker's device has received so far."""
    return sum(count for _, count in worker.runner.batches)


def waiting(worker: FakeWorker) -> int:
    return int(worker.registry.get_sample_value("convmlp_queue_depth", {"model": CLASSIFY}) or 0)


async def test_work_is_spread_evenly() -> None:
    """Pending jobs are divided evenly, and each caller gets the answer to its own picture."""
    async with fake_workers(3) as (pool, events, workers):
        before = [images(worker) for worker in workers]
        for worker in workers:
            worker.runner.unblocked.clear()
        asked = [asyncio.create_task(classify(pool, level)) for level in range(30)]
        await until(
            lambda: all(images(one) - seen + waiting(one) == 10 for one, seen in zip(workers, before, strict=True))
        )
        for worker in workers:
            worker.runner.unblocked.set()
        assert await asyncio.gather(*asked) == list(range(30))
        assert events.resent_for == []


async def test_a_slow_worker_gets_less() -> None:
    """A worker that does not answer gets no more jobs; the other one gets them."""
    async with fake_workers(2) as (pool, _, (slow, quick)):
        before = images(slow), images(quick)
        slow.runner.unblocked.clear()
        stuck = [asyncio.create_task(classify(pool, 7)) for _ in range(4)]
        await until(lambda: sum(one.done() for one in stuck) == 2)
        for level in range(40):
            assert await classify(pool, level) == level
        assert images(quick) - before[1] == 42
        slow.runner.unblocked.set()
        assert await asyncio.gather(*stuck) == [7] * 4
        assert images(slow) - before[0] == 2


async def test_work_is_counted_in_pixels() -> None:
    """A large picture counts as much as small pictures with as many pixels."""
    async with fake_workers(2) as (pool, _, workers):
        before = [images(worker) for worker in workers]
        for worker in workers:
            worker.runner.unblocked.clear()
        asked = [asyncio.create_task(classify(pool, of=picture(5, height=128)))]
        asked += [asyncio.create_task(classify(pool, 5)) for _ in range(4)]

        def received() -> list[int]:
            return sorted(images(one) - seen + waiting(one) for one, seen in zip(workers, before, strict=True))

        await until(lambda: sum(received()) == 5)
        assert received() == [1, 4]
        for worker in workers:
            worker.runner.unblocked.set()
        assert await asyncio.gather(*asked) == [5] * 5


async def test_between_equals_the_workers_backlog_decides(tmp_path: Path) -> None:
    """A front-end without pending jobs uses the worker that reported the smallest backlog."""
    async with scripted_workers(tmp_path, 5.0, 0.1, 5.0) as (pool, _, (_, idle, _)):
        for _ in range(10):
            asked = asyncio.create_task(classify(pool))
            await idle.next_job()
            asked.cancel()


async def test_chance_decides_between_equal_backlogs() -> None:
    """Front-ends that know the same of all workers do not all start with the same one."""
    async with fake_workers(2) as (pool, _, workers):
        before = [images(worker) for worker in workers]
        for level in range(60):
            assert await classify(pool, level) == level
        assert all(images(one) > seen for one, seen in zip(workers, before, strict=True))


async def test_a_lost_worker_s_jobs_go_to_another(tmp_path: Path) -> None:
    """When a worker dies, another one answers its pending jobs, and their callers see no error."""
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as worker, AsyncExitStack() as stack:
        pool, events = await stack.enter_async_context(open_pool(f"ipc://{tmp_path}/w", worker.address))
        async with ScriptedWorker(f"ipc://{tmp_path}/w") as lost:
            await lost.introduce()
            await all_ready(pool)
            asked = [asyncio.create_task(classify(pool, level)) for level in range(8)]
            for _ in range(4):
                await lost.next_job()
            assert events.up[-1] == (2, 2)
        assert await asyncio.gather(*asked) == list(range(8))
        assert events.resent_for == ["unavailable"] * 4
        assert events.up[-1] == (1, 2)
        assert pool.readiness().ready
        assert pool.readiness().reason == "ready, with 1 of 2 workers"


async def test_a_request_that_would_be_late_is_refused_before_decoding(tmp_path: Path) -> None:
    """The estimate of the latest answer counts: a request is refused while it is beyond the deadline, and not after."""
    async with scripted_workers(tmp_path, 0.0) as (pool, _, (worker,)):
        (model,) = pool.models or ()
        await answered(pool, worker, WaitEstimate(100.0, 1.0))
        pending = asyncio.create_task(classify(pool))
        job = await worker.next_job()
        with pytest.raises(Overloaded, match="more than the request's deadline") as caught:
            pool.reserve(model, far_deadline_s())
        assert caught.value.retry_after_s > 90
        job.answer(estimate=WaitEstimate(0.0, 1.0))
        await pending
        pending = asyncio.create_task(classify(pool))
        job = await worker.next_job()
        with preparing(pool, model):
            """It is not refused."""
        job.answer()
        await pending


async def test_an_estimate_alone_refuses_nothing(tmp_path: Path) -> None:
    """A front-end without pending requests tries one, whatever the last estimate was. A request whose deadline has
    passed is not refused either: `predict` raises its error."""
    async with scripted_workers(tmp_path, 0.0) as (pool, _, (worker,)):
        (model,) = pool.models or ()
        await answered(pool, worker, WaitEstimate(100.0, 1.0))
        with preparing(pool, model):
            with pytest.raises(Overloaded):
                pool.reserve(model, far_deadline_s())
            with preparing(pool, model, left_s=-1.0):
                """It is not refused."""


async def test_a_more_urgent_request_is_left_to_the_worker(tmp_path: Path) -> None:
    """The worker serves urgent requests first: an estimate for a patient one refuses no urgent one."""
    async with scripted_workers(tmp_path, 0.0) as (pool, _, (worker,)):
        (model,) = pool.models or ()
        await answered(pool, worker, WaitEstimate(100.0, 1.0))
        with preparing(pool, model), preparing(pool, model, left_s=9.0):
            """It is not refused."""


async def test_the_worker_that_answers_first_counts(tmp_path: Path) -> None:
    """No request is refused while one of the workers may answer it in time."""
    async with scripted_workers(tmp_path, 0.0, 1.0) as (pool, _, (busy, idle)):
        (model,) = pool.models or ()
        await answered(pool, busy, WaitEstimate(100.0, 1.0))
        first = asyncio.create_task(classify(pool))
        busy_job = await busy.next_job()
        with preparing(pool, model):
            """The other worker has no job."""
        second = asyncio.create_task(classify(pool))
        idle_job = await idle.next_job()
        with preparing(pool, model):
            """It has a job, and has given no estimate."""
        idle_job.answer(estimate=WaitEstimate(100.0, 1.0))
        await second
        second = asyncio.create_task(classify(pool))
        idle_job = await idle.next_job()
        with pytest.raises(Overloaded):
            pool.reserve(model, far_deadline_s())
        busy_job.answer()
        idle_job.answer()
        await asyncio.gather(first, second)


IMAGE_S = 0.01
"""The least that an image takes on the device of the next test."""


async def test_an_estimate_counts_the_jobs_of_all_front_ends() -> None:
    """With its own answer a front-end receives the wait behind everything that the worker has, of any front-end."""
    settings = SETTINGS.with_changes(max_batch_images=1)
    async with fake_workers(1, settings) as (one, _, (worker,)), open_pool(worker.address) as (other, _):
        await all_ready(other)
        permits = threading.Semaphore(2)

        def takes(model: str, images: int, lanes: int) -> None:  # noqa: ARG001
            assert permits.acquire(timeout=60), "a test left a batch at the device"
            time.sleep(IMAGE_S)

        worker.runner.takes = takes
        for _ in range(2):  # the first batch of a shape does not count
            await classify(one)
        (model,) = other.models or ()
        running = asyncio.create_task(classify(one))
        ran = len(worker.runner.batches)
        await until(lambda: len(worker.runner.batches) == ran + 1)
        request = asyncio.create_task(other.predict("r", model, picture(), QueryParams(), far_deadline_s()))
        await until(lambda: waiting(worker) == 1)
        more = [asyncio.create_task(classify(one)) for _ in range(10)]
        await until(lambda: waiting(worker) == 11)
        permits.release(2)
        estimate = (await request).estimate
        permits.release(len(more))
        await asyncio.gather(running, *more)
        assert estimate is not None
        assert estimate.answered_s > len(more) * IMAGE_S


async def test_a_job_is_sent_to_two_workers_at_most(tmp_path: Path) -> None:
    """A picture that kills every worker that receives it does not reach a third."""
    addresses = [f"ipc://{tmp_path}/{number}" for number in range(3)]
    async with AsyncExitStack() as stack:
        pool, events = await stack.enter_async_context(open_pool(*addresses))
        workers = [ScriptedWorker(address) for address in addresses]
        for worker in workers:
            await worker.__aenter__()
            await worker.introduce()
        await all_ready(pool)
        request = asyncio.create_task(classify(pool))
        for _ in range(2):
            receiving = {asyncio.create_task(worker.next_job()): worker for worker in workers}
            done, rest = await asyncio.wait(receiving, return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
            await asyncio.wait(receiving)
            killed = receiving[done.pop()]
            workers.remove(killed)
            await killed.__aexit__()
        with pytest.raises(Unavailable, match="send the request again"):
            await request
        assert events.resent_for == ["unavailable"]
        assert pool.readiness().ready
        await workers[0].__aexit__()


async def test_without_another_worker_a_lost_one_s_jobs_fail_at_once(tmp_path: Path) -> None:
    """Where no other worker has the model, the caller gets its error long before the deadline."""
    async with fake_worker(SETTINGS, tasks=[Task.DETECT]) as other, AsyncExitStack() as stack:
        pool, events = await stack.enter_async_context(open_pool(f"ipc://{tmp_path}/w", other.address))
        async with ScriptedWorker(f"ipc://{tmp_path}/w") as lost:
            await lost.introduce()
            await all_ready(pool)
            assert served(pool) == [CLASSIFY, "fake_detect"]
            asked = asyncio.create_task(classify(pool))
            await lost.next_job()
        with pytest.raises(Unavailable, match="send the request again"):
            await asked
        assert events.resent_for == []
        assert pool.readiness().reason == f"not ready: {CLASSIFY}"
        with pytest.raises(Unavailable, match=NO_WORKER):
            await classify(pool)


async def test_a_job_that_one_worker_refuses_goes_to_another(tmp_path: Path) -> None:
    """A full worker's refusal does not reach the caller while another worker answers."""
    async with scripted_workers(tmp_path, 0.0, 1.0) as (pool, events, (full, free)):
        request = asyncio.create_task(classify(pool, 42))
        (await full.next_job()).fail(Overloaded("the queue is full", 7.0))
        (await free.next_job()).answer(42)
        assert await request == 42
        assert events.resent_for == ["overloaded"]


@pytest.mark.parametrize(("first_s", "second_s"), [(7.0, 3.0), (3.0, 7.0)])
async def test_of_two_refusals_the_shorter_retry_after_counts(tmp_path: Path, first_s: float, second_s: float) -> None:
    """Where two workers refuse a job, the caller may come back as soon as one of them has room."""
    async with scripted_workers(tmp_path, 0.0, 1.0) as (pool, _, workers):
        request = asyncio.create_task(classify(pool))
        for worker, retry_after_s in zip(workers, (first_s, second_s), strict=True):
            (await worker.next_job()).fail(Overloaded(f"full for {retry_after_s} s", retry_after_s))
        with pytest.raises(Overloaded, match=r"full for 3\.0 s") as caught:
            await request
        assert caught.value.retry_after_s == 3.0


async def test_errors_that_another_worker_would_repeat_are_final(tmp_path: Path) -> None:
    """A bad request and a passed deadline are not tried again at another worker."""
    async with scripted_workers(tmp_path, 0.0, 1.0) as (pool, events, (first, _)):
        request = asyncio.create_task(classify(pool))
        (await first.next_job()).fail(ModelNotFound("it was unloaded"))
        with pytest.raises(ModelNotFound, match="unloaded"):
            await request
        (model,) = pool.models or ()
        with pytest.raises(DeadlineExceeded):
            await pool.predict("r", model, picture(), QueryParams(), time.monotonic() + 0.5)
        assert events.resent_for == []


async def test_only_workers_that_are_ready_for_a_model_get_its_jobs() -> None:
    """A worker whose model failed its self-check gets no jobs for it. When no worker is ready for it, readiness names
    the model."""
    settings = SETTINGS.with_changes(self_check_interval_ms=20)
    async with fake_workers(2, settings) as (pool, _, (first, second)):
        assert [status.devices for status in pool.models or ()] == [("cpu", "cpu")]
        first.runner.shift = 50
        await until(lambda: [status.devices for status in pool.models or ()] == [("cpu",)])
        assert [await classify(pool, level) for level in range(20)] == list(range(20))
        assert pool.readiness().ready
        second.runner.shift = 50
        await until(lambda: pool.readiness().reason == f"not ready: {CLASSIFY}")
        with pytest.raises(Unavailable, match="the reference is"):
            await classify(pool)


async def test_a_worker_may_come_late_and_come_back(tmp_path: Path) -> None:
    """The service is ready with the first worker; a worker that starts later, or again, gets its share of jobs."""
    late = f"ipc://{tmp_path}/late"
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as first, open_pool(first.address, late) as (pool, events):
        await until(lambda: pool.readiness().ready)
        assert pool.readiness().reason == "ready, with 1 of 2 workers"
        assert await classify(pool, 3) == 3
        for life in range(2):
            async with fake_worker(SETTINGS, late, tasks=[Task.CLASSIFY]) as second:
                await all_ready(pool)
                before = images(second)
                assert await asyncio.gather(*(classify(pool, level) for level in range(10))) == list(range(10))
                assert images(second) - before == 5
                assert (events.up[-1], events.replaced) == ((2, 2), life)
            await until(lambda: events.up[-1] == (1, 2))
            assert await classify(pool, 4) == 4
        assert events.resent_for == []  # a worker that drains answers what it has


async def test_every_change_is_reported() -> None:
    """`next_change` is set when a worker stops; the next event is not set yet."""
    async with fake_workers(2) as (pool, _, (one, _)):
        change = pool.next_change()
        assert not change.is_set()
        one.stop.set()
        async with asyncio.timeout(PATIENCE_S):
            await change.wait()
        assert not pool.next_change().is_set()


async def test_before_the_first_worker_nothing_is_known(tmp_path: Path) -> None:
    """Without a worker there are no models and no readiness; the first worker that introduces itself gives both."""
    async with open_pool(f"ipc://{tmp_path}/0", f"ipc://{tmp_path}/1") as (pool, _):
        assert pool.models is None
        assert (pool.readiness().ready, pool.readiness().reason) == (False, NO_WORKER)
        assert pool.retry_after_s() > 0
        with pytest.raises(Unavailable, match=NO_WORKER):
            await pool.repository(time.monotonic() + 1)
        async with ScriptedWorker(f"ipc://{tmp_path}/1") as first:
            await first.introduce()
            await until(lambda: pool.readiness().ready)
            introduced = asyncio.create_task(pool.wait_for_state())
            for _ in range(10):
                await asyncio.sleep(0)
            assert not introduced.done()
            async with ScriptedWorker(f"ipc://{tmp_path}/0") as other, asyncio.timeout(PATIENCE_S):
                await other.introduce()
                await introduced


async def test_a_pool_that_closes_fails_its_pending_jobs(tmp_path: Path) -> None:
    """A front-end that ends answers its callers with Unavailable, and sends nothing again."""
    async with ScriptedWorker(f"ipc://{tmp_path}/0") as one, ScriptedWorker(f"ipc://{tmp_path}/1") as other:
        async with open_pool(one.address, other.address) as (pool, events):
            for worker in (one, other):
                await worker.introduce()
            await all_ready(pool)
            requests = [asyncio.create_task(classify(pool)) for _ in range(4)]
            for worker in (one, other, one, other):
                await worker.next_job()
        for request in requests:
            with pytest.raises(Unavailable, match="connection to the worker was closed"):
                await request
        assert events.resent_for == []
