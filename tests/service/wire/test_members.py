"""The members of a front-end's pool follow what a controller reports: real connections to scripted workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from service.wire.members import Members
from service.wire.pool import WorkerPool
from tests.service.wire.scripted_worker import ScriptedWorker
from tests.service.wire.worker_pool import classify, open_pool, served
from tests.waiting import until

DRAIN_S = 20.0


@asynccontextmanager
async def followed(*groups: str) -> AsyncIterator[tuple[Members, WorkerPool]]:
    async with open_pool() as (pool, _):
        members = Members(pool, groups, DRAIN_S)
        following = asyncio.create_task(members.run())
        try:
            yield members, pool
        finally:
            following.cancel()
            await asyncio.wait([following])


async def test_workers_of_all_groups_become_members(tmp_path: Path) -> None:
    """The workers of each group join, and a start waits until they are ready."""
    one, two = f"ipc://{tmp_path}/1", f"ipc://{tmp_path}/2"
    async with followed("pets", "cars") as (members, pool), ScriptedWorker(one) as pets, ScriptedWorker(two) as cars:
        waiting = asyncio.create_task(members.wait_for_workers())
        members.report("pets", [one])
        await pets.introduce(models=["pets"])
        await until(lambda: pool.ready_addresses == {one})
        assert not waiting.done()
        members.report("cars", [two])
        await cars.introduce(models=["cars"])
        await waiting
        assert sorted(served(pool)) == ["cars", "pets"]


async def test_a_worker_leaves_when_its_successor_is_ready(tmp_path: Path) -> None:
    """While an update replaces a worker requests are answered: by the old one until the new one is ready."""
    old, new = f"ipc://{tmp_path}/old", f"ipc://{tmp_path}/new"
    async with followed("pets") as (members, pool), ScriptedWorker(old) as first, ScriptedWorker(new) as second:
        members.report("pets", [old])
        await first.introduce(models=["pets"])
        await members.wait_for_workers()
        members.report("pets", [new])
        await until(lambda: pool.addresses == {old, new})
        asked = asyncio.create_task(classify(pool, 4, "pets"))
        (await first.next_job()).answer(4)
        assert await asked == 4
        await second.introduce("two", models=["pets"])
        await until(lambda: pool.addresses == {new})
        asked = asyncio.create_task(classify(pool, 5, "pets"))
        (await second.next_job()).answer(5)
        assert await asked == 5


async def test_a_group_without_workers_keeps_its_models(tmp_path: Path) -> None:
    """When a group's only worker is lost its model is unavailable, and not unknown, until another one comes."""
    address, other = f"ipc://{tmp_path}/1", f"ipc://{tmp_path}/2"
    async with followed("pets") as (members, pool):
        async with ScriptedWorker(address) as worker:
            members.report("pets", [address])
            await worker.introduce(models=["pets"])
            await members.wait_for_workers()
        await until(lambda: not pool.readiness().ready)
        members.report("pets", [])
        assert served(pool) == ["pets"]
        assert pool.readiness().retry_after_s > 0
        async with ScriptedWorker(other) as successor:
            members.report("pets", [other])
            await until(lambda: other in pool.addresses)
            await successor.introduce("two", models=["pets"])
            await until(lambda: pool.readiness().reason == "ready" and pool.addresses == {other})
