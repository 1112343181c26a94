"""Workers by name: lookups of this machine's own names, and real connections."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from service.settings import Settings
from service.wire.curve import InsecureWire, front_end_wire
from service.wire.discovery import fixed, follow_names
from tests.service.wire.scripted_worker import ScriptedWorker
from tests.service.wire.worker_pool import classify, open_pool, served
from tests.waiting import until

DRAIN_S = 20.0


async def test_the_addresses_of_a_name_are_workers() -> None:
    """Those of `localhost` join beside one that is given as such; each gets the jobs of its models."""
    async with ScriptedWorker("tcp://127.0.0.1:0") as named, ScriptedWorker("tcp://127.0.0.2:0") as given:
        name = f"dns://localhost:{named.address.rpartition(':')[2]}"
        addresses = (name, given.address)
        async with open_pool(*fixed(addresses)) as (pool, _), follow_names(pool, addresses, DRAIN_S):
            await given.introduce(models=["cars"])
            await named.introduce(models=["pets"])
            await until(lambda: served(pool) == ["cars", "pets"])
            assert {given.address, named.address} <= pool.addresses
            for model, worker in (("pets", named), ("cars", given)):
                asked = asyncio.create_task(classify(pool, 4, model))
                (await worker.next_job()).answer(4)
                assert await asked == 4


async def test_a_name_without_addresses_changes_nothing() -> None:
    """Such as while DNS does not answer: the workers stay as they were, and the others are found."""
    async with ScriptedWorker("tcp://127.0.0.1:0") as worker:
        port = worker.address.rpartition(":")[2]
        addresses = (f"dns://no-such-name.invalid:{port}", f"dns://localhost:{port}")
        async with open_pool() as (pool, _), follow_names(pool, addresses, DRAIN_S):
            await worker.introduce(models=["pets"])
            await until(lambda: worker.address in pool.ready_addresses)


def test_a_name_needs_keys_and_a_port() -> None:
    """A name may lead to any host, but for this one's own."""
    with pytest.raises(InsecureWire, match="dns://workers:5555 is on a network"):
        front_end_wire(Settings(worker_address=("dns://workers:5555",)))
    front_end_wire(Settings(worker_address=("dns://localhost:5555",)))
    for address in ("dns://workers", "dns://workers:*"):
        with pytest.raises(ValidationError, match="expected ipc://PATH, tcp://HOST:PORT or dns://NAME:PORT"):
            Settings(worker_address=(address,))
