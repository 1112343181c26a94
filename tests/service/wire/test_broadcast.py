"""Loading and unloading on several workers: real ones with fake devices, each with its own store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from model.types import Task
from service.errors import DeadlineExceeded, ModelInvalid, ModelNotFound, Overloaded, Unavailable
from service.settings import Settings
from service.types import StoredModel
from service.wire.pool import WorkerPool
from tests.fakes import FakeWorker, fake_bundle, fake_worker, store_bundle
from tests.service.wire.scripted_worker import ScriptedWorker
from tests.service.wire.worker_pool import CLASSIFY, all_ready, classify, far_deadline_s, open_pool, served
from tests.waiting import PATIENCE_S, until

SETTINGS = Settings(models=("fake",), heartbeat_interval_ms=20, self_check_interval_ms=10**9, model_control=True)


@asynccontextmanager
async def at_work(count: int = 2) -> AsyncIterator[tuple[WorkerPool, list[FakeWorker]]]:
    """So many workers that serve CLASSIFY and have `second` in their stores."""
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(fake_worker(SETTINGS, tasks=[Task.CLASSIFY])) for _ in range(count)]
        for worker in workers:
            store_bundle(worker.store, fake_bundle(Task.CLASSIFY, "second"))
        pool, _ = await stack.enter_async_context(open_pool(*(worker.address for worker in workers)))
        await all_ready(pool)
        yield pool, workers


def in_memory(workers: list[FakeWorker]) -> list[list[str]]:
    return [[bundle.config.name for bundle in worker.runner.slots.values()] for worker in workers]


async def stored(pool: WorkerPool, name: str) -> StoredModel:
    return next(one for one in await pool.repository(far_deadline_s()) if one.name == name)


async def test_loads_and_unloads_reach_every_worker() -> None:
    """When a load returns every worker serves the model; when an unload returns none does."""
    async with at_work(3) as (pool, workers):
        assert await stored(pool, "second") == StoredModel("second", False, False, "it is not loaded")
        await pool.load("second", far_deadline_s())
        assert served(pool) == [CLASSIFY, "second"]
        assert in_memory(workers) == [[CLASSIFY, "second"]] * 3
        assert pool.models[1].devices == ("cpu", "cpu", "cpu")  # type: ignore[index]
        assert await classify(pool, 9, "second") == 9
        assert await stored(pool, "second") == StoredModel("second", True, True, "")
        await pool.unload("second", far_deadline_s())
        assert served(pool) == [CLASSIFY]
        assert in_memory(workers) == [[CLASSIFY]] * 3
        with pytest.raises(ModelNotFound):
            await pool.unload("second", far_deadline_s())
        with pytest.raises(ModelNotFound):
            await pool.load("nonesuch", far_deadline_s())


async def test_a_load_that_fails_on_one_worker_is_undone() -> None:
    """One worker has no memory: the error counts the workers that it is true of, and no worker serves the model."""
    async with at_work() as (pool, workers):
        workers[1].runner.memory_models = 1
        with pytest.raises(Overloaded, match=r"no memory .*\(on 1 of 2 workers; the others unloaded it again\)"):
            await pool.load("second", far_deadline_s())
        await until(lambda: in_memory(workers) == [[CLASSIFY]] * 2)
        assert served(pool) == [CLASSIFY]
        workers[1].runner.memory_models = None
        await pool.load("second", far_deadline_s())
        assert in_memory(workers) == [[CLASSIFY, "second"]] * 2


async def test_an_error_of_all_workers_is_passed_on_as_it_is() -> None:
    """A bundle that is broken for all workers gives the error of a single one."""
    async with at_work() as (pool, workers):
        for worker in workers:
            worker.runner.damaged = frozenset({"second"})
        with pytest.raises(ModelInvalid, match=r"cannot be loaded: bundle second: the weights do not fit$"):
            await pool.load("second", far_deadline_s())
        assert in_memory(workers) == [[CLASSIFY]] * 2


async def test_a_new_version_stays_where_it_was_loaded() -> None:
    """Where one worker cannot load a new version the others keep it, and the service answers with one of the two."""
    async with at_work(3) as (pool, workers):
        changed = fake_bundle(Task.CLASSIFY, CLASSIFY, weights=b"trained for longer")
        for worker in workers:
            store_bundle(worker.store, changed, weights=b"trained for longer")
        workers[0].runner.memory_models = 1
        with pytest.raises(Overloaded, match="on 1 of 3 workers; 2 of the others serve it"):
            await pool.load(CLASSIFY, far_deadline_s())
        (status,) = pool.models or ()
        assert status.config == changed.config
        assert status.devices == ("cpu", "cpu")
        before = len(workers[0].runner.batches)
        assert [await classify(pool, level) for level in range(12)] == list(range(12))
        assert len(workers[0].runner.batches) == before
        workers[0].runner.memory_models = None
        await pool.load(CLASSIFY, far_deadline_s())
        assert (pool.models or ())[0].devices == ("cpu", "cpu", "cpu")


@pytest.mark.parametrize("why", ["it left", "its deadline passed"])
async def test_a_cancelled_load_is_undone(why: str) -> None:
    """A call ends early when one of two workers has loaded the model: neither serves it then."""
    async with at_work() as (pool, workers):
        workers[1].runner.reading.clear()
        deadline_s = far_deadline_s() if why == "it left" else time.monotonic() + 4.0
        loading = asyncio.create_task(pool.load("second", deadline_s))
        await until(lambda: served(pool) == [CLASSIFY, "second"])
        if why == "it left":
            loading.cancel()
        with pytest.raises((asyncio.CancelledError, DeadlineExceeded)):
            await loading
        assert served(pool) == [CLASSIFY]
        workers[1].runner.reading.set()
        await until(lambda: in_memory(workers) == [[CLASSIFY]] * 2)


async def test_an_unload_is_completed_without_its_caller() -> None:
    """An unload that has started is completed on every worker, though its call was cancelled."""
    async with at_work() as (pool, workers):
        for worker in workers:
            worker.runner.unblocked.clear()
        ran = [len(worker.runner.batches) for worker in workers]
        asked = [asyncio.create_task(classify(pool, 4)) for _ in workers]
        await until(lambda: all(len(one.runner.batches) > seen for one, seen in zip(workers, ran, strict=True)))
        unloading = asyncio.create_task(pool.unload(CLASSIFY, far_deadline_s()))
        await until(lambda: served(pool) == [])
        unloading.cancel()
        for worker in workers:
            worker.runner.unblocked.set()
        with pytest.raises(asyncio.CancelledError):
            await unloading
        assert await asyncio.gather(*asked) == [4, 4]
        await until(lambda: in_memory(workers) == [[], []])


async def test_an_unload_that_started_on_one_worker_is_completed_on_all() -> None:
    """A call is cancelled when one worker has unloaded the model and the other is busy: both unload it."""
    async with at_work() as (pool, workers), open_pool(workers[1].address) as (of_one, _):
        await all_ready(of_one)
        workers[1].runner.reading.clear()
        loading = asyncio.create_task(of_one.load("second", far_deadline_s()))
        async with asyncio.timeout(PATIENCE_S):
            while (await stored(of_one, "second")).reason != "it is being loaded":
                await asyncio.sleep(0.005)
        unloading = asyncio.create_task(pool.unload(CLASSIFY, far_deadline_s()))
        await until(lambda: in_memory(workers) == [[], [CLASSIFY]])
        unloading.cancel()
        await asyncio.sleep(0)
        workers[1].runner.reading.set()
        with pytest.raises(asyncio.CancelledError):
            await unloading
        await loading
        assert in_memory(workers) == [[], ["second"]]


async def test_the_store_is_listed_without_silent_workers(tmp_path: Path) -> None:
    """A worker that has never sent anything delays no listing of the others' stores."""
    async with (
        fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as there,
        ScriptedWorker(f"ipc://{tmp_path}/w") as silent,
        open_pool(silent.address, there.address) as (pool, _),
    ):
        await silent.receive()
        await until(lambda: pool.readiness().ready)
        async with asyncio.timeout(PATIENCE_S):
            store = await pool.repository(time.monotonic() + 1000)
        assert CLASSIFY in [model.name for model in store]


async def test_workers_that_differ_become_alike() -> None:
    """A model that only one worker serves is unloaded there, or loaded on the others."""
    async with at_work() as (pool, workers):
        for command in ("load", "unload"):
            async with open_pool(workers[1].address) as (of_one, _):
                await all_ready(of_one)
                await of_one.load("second", far_deadline_s())
            await until(lambda: served(pool) == [CLASSIFY, "second"])
            assert (pool.models or ())[1].devices == ("cpu",)
            assert await stored(pool, "second") == StoredModel("second", True, True, "")
            assert await classify(pool, 8, "second") == 8
            if command == "load":
                await pool.load("second", far_deadline_s())
                assert in_memory(workers) == [[CLASSIFY, "second"]] * 2
            await pool.unload("second", far_deadline_s())
            assert in_memory(workers) == [[CLASSIFY]] * 2


async def test_models_stay_as_they_are_while_a_worker_is_missing(tmp_path: Path) -> None:
    """While a worker is missing no model is loaded or unloaded; the error asks to wait for it."""
    missing = f"ipc://{tmp_path}/missing"
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as there, open_pool(there.address, missing) as (pool, _):
        await until(lambda: pool.readiness().ready)
        store_bundle(there.store, fake_bundle(Task.CLASSIFY, "second"))
        for change in (pool.load("second", far_deadline_s()), pool.unload(CLASSIFY, far_deadline_s())):
            with pytest.raises(Unavailable, match="1 of 2 are not: there is no worker"):
                await change
        assert in_memory([there]) == [[CLASSIFY]]
        assert not (await stored(pool, "second")).served


async def test_a_worker_lost_during_a_load_fails_it(tmp_path: Path) -> None:
    """One of two workers dies during a load: the caller gets its error at once, and the other unloads the model."""
    address = f"ipc://{tmp_path}/w"
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as other, open_pool(address, other.address) as (pool, _):
        store_bundle(other.store, fake_bundle(Task.CLASSIFY, "second"))
        async with ScriptedWorker(address) as lost:
            await lost.introduce()
            await all_ready(pool)
            loading = asyncio.create_task(pool.load("second", far_deadline_s()))
            await until(lambda: served(pool) == [CLASSIFY, "second"])
        with pytest.raises(Unavailable, match="on 1 of 2 workers; the others unloaded it again"):
            await loading
        assert served(pool) == [CLASSIFY]
        assert in_memory([other]) == [[CLASSIFY]]
