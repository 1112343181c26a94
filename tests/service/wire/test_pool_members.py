"""Workers that join a running pool and leave it: real connections, to scripted workers or to fake devices."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from model.types import Task
from service.errors import Unavailable
from service.wire.messages import Hello, ModelState, Phase, State
from service.wire.pool import WorkerPool
from service.wire.worker_view import NO_MEMBER
from service.worker.model_registry import new_model
from tests.fakes import fake_bundle, fake_worker
from tests.service.wire.scripted_worker import ScriptedWorker
from tests.service.wire.test_pool import SETTINGS
from tests.service.wire.worker_pool import CLASSIFY, PoolEvents, all_ready, classify, open_pool, served
from tests.waiting import until

DRAIN_S = 20.0


async def test_a_pool_may_begin_without_workers() -> None:
    """Without a member nothing is served, and callers learn when to come back; the first that is added serves."""
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as worker, open_pool() as (pool, events):
        assert pool.models is None
        readiness = pool.readiness()
        assert (readiness.ready, readiness.reason) == (False, NO_MEMBER)
        assert readiness.retry_after_s > 0
        with pytest.raises(Unavailable, match="no worker has joined"):
            await pool.load("any", time.monotonic() + 1)
        await pool.add(worker.address)
        await all_ready(pool)
        assert (await classify(pool, 3), events.up[-1]) == (3, (1, 1))
        await pool.add(worker.address)
        assert pool.addresses == {worker.address}


async def test_each_request_goes_to_a_worker_that_has_its_model(tmp_path: Path) -> None:
    """Workers of different models are one service: each model's requests reach its own worker only."""
    addresses = [f"ipc://{tmp_path}/{number}" for number in range(2)]
    async with AsyncExitStack() as stack:
        pets, cars = [await stack.enter_async_context(ScriptedWorker(address)) for address in addresses]
        pool, _ = await stack.enter_async_context(open_pool())
        for address, worker, model in zip(addresses, (pets, cars), ("pets", "cars"), strict=True):
            await pool.add(address)
            await worker.introduce(models=[model])
        await all_ready(pool)
        assert sorted(served(pool)) == ["cars", "pets"]
        for level in range(5):
            asked = [asyncio.create_task(classify(pool, level, model)) for model in ("pets", "cars", "pets")]
            (await cars.next_job()).answer(level)
            for _ in range(2):
                (await pets.next_job()).answer(level)
            assert await asyncio.gather(*asked) == [level] * 3
        pool.remove(addresses[1], DRAIN_S)
        assert served(pool) == ["pets"]


async def test_a_split_is_that_of_a_worker_with_the_name(tmp_path: Path) -> None:
    """A worker that serves other models does not hide the split of a name that it does not serve."""
    addresses = [f"ipc://{tmp_path}/{number}" for number in range(2)]
    async with AsyncExitStack() as stack:
        other, split = [await stack.enter_async_context(ScriptedWorker(address)) for address in addresses]
        pool, _ = await stack.enter_async_context(open_pool(*addresses))
        await other.introduce()
        sender, message, _ = await split.receive()
        assert isinstance(message, Hello)
        loaded = [new_model(fake_bundle(Task.CLASSIFY, name)) for name in ("pets", "pets@2")]
        states = tuple(ModelState(model.name, model.version, True, "cpu", "fp32") for model in loaded)
        configs = {model.version: model.config.model_dump_json() for model in loaded}
        shares = {"pets": {"1": 75.0, "2": 25.0}}
        split.send_state(sender, State("two", Phase.READY, "ready", 0.0, states, configs, splits=shares))
        await all_ready(pool)
        assert [percent for _, percent in pool.routes["pets"].shares] == [75.0, 25.0]


async def test_a_removed_worker_answers_what_it_has_and_gets_no_more(tmp_path: Path) -> None:
    """Jobs in flight at a removed worker are answered by it; new ones go to the others; then it is disconnected."""
    addresses = [f"ipc://{tmp_path}/{number}" for number in range(2)]
    async with AsyncExitStack() as stack:
        leaving, staying = [await stack.enter_async_context(ScriptedWorker(address)) for address in addresses]
        pool, events = await stack.enter_async_context(open_pool(addresses[0]))
        await leaving.introduce()
        await all_ready(pool)
        first = asyncio.create_task(classify(pool, 7))
        job = await leaving.next_job()
        await pool.add(addresses[1])
        await staying.introduce("two")
        await all_ready(pool)
        pool.remove(addresses[0], DRAIN_S)
        assert pool.addresses == {addresses[1]}
        later = [asyncio.create_task(classify(pool, level)) for level in range(4)]
        for level in range(4):
            (await staying.next_job()).answer(level)
        assert await asyncio.gather(*later) == list(range(4))
        job.answer(7)
        assert await first == 7
        assert events.resent_for == []
        assert events.up[-1] == (1, 1)
        pool.remove(addresses[0], DRAIN_S)  # it is not a member any more


async def test_what_a_removed_worker_does_not_answer_in_time_goes_to_others(tmp_path: Path) -> None:
    """A drain has a bound; after it the caller gets its answer from another worker."""
    addresses = [f"ipc://{tmp_path}/{number}" for number in range(2)]
    async with AsyncExitStack() as stack:
        stuck, free = [await stack.enter_async_context(ScriptedWorker(address)) for address in addresses]
        pool, events = await stack.enter_async_context(open_pool(addresses[0]))
        await stuck.introduce()
        await all_ready(pool)
        asked = asyncio.create_task(classify(pool, 5))
        await stuck.next_job()
        await pool.add(addresses[1])
        await free.introduce("two")
        await all_ready(pool)
        pool.remove(addresses[0], 0.0)
        (await free.next_job()).answer(5)
        assert await asked == 5
        assert events.resent_for == ["unavailable"]


async def test_workers_come_and_go_under_load() -> None:
    """While workers join and leave, each request is answered, and each with the answer to its own picture."""
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(fake_worker(SETTINGS, tasks=[Task.CLASSIFY])) for _ in range(3)]
        pool, _ = await stack.enter_async_context(open_pool(workers[0].address))
        await all_ready(pool)
        answered = 0

        async def ask(caller: int) -> None:
            nonlocal answered
            while answered < 300:
                assert await classify(pool, caller) == caller
                answered += 1

        callers = [asyncio.create_task(ask(caller)) for caller in range(6)]
        for joining, leaving in ((1, 0), (2, 1), (0, 2)):
            seen = answered
            await pool.add(workers[joining].address)
            await until(lambda: pool.readiness().reason == "ready")
            pool.remove(workers[leaving].address, DRAIN_S)
            await until(lambda seen=seen: answered > seen + 20)  # type: ignore[misc]
        await asyncio.gather(*callers)
        assert pool.addresses == {workers[0].address}
        assert served(pool) == [CLASSIFY]


async def test_the_number_of_workers_is_bounded(tmp_path: Path) -> None:
    """More members than a pool may have are refused, and those that drain count."""
    addresses = [f"ipc://{tmp_path}/{number}" for number in range(3)]
    async with WorkerPool(addresses, 0.02, 30.0, PoolEvents(), max_workers=3) as pool:
        with pytest.raises(ValueError, match="at most 3 workers"):
            await pool.add(f"ipc://{tmp_path}/3")


async def test_a_pool_closes_while_workers_drain(tmp_path: Path) -> None:
    """The end of a front-end does not wait for a removed worker; its jobs fail at once, with a reason."""
    async with ScriptedWorker(f"ipc://{tmp_path}/0") as worker:
        async with open_pool(worker.address) as (pool, _):
            await worker.introduce()
            await all_ready(pool)
            asked = asyncio.create_task(classify(pool))
            await worker.next_job()
            pool.remove(worker.address, DRAIN_S)
        with pytest.raises(Unavailable, match="closed"):
            await asked
