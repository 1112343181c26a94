"""Several versions of a model in a worker, and the split among them, over real sockets and with a fake device."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from model.errors import BundleInvalid
from model.types import Task
from service.errors import BadParameter, Forbidden, ModelInvalid, ModelNotFound, Unavailable
from service.settings import Settings
from service.wire.pool import WorkerPool
from service.worker.model_registry import ModelRegistry, new_model
from tests.fakes import FakeWorker, fake_bundle, fake_worker, store_bundle
from tests.service.wire.worker_pool import LEVEL, all_ready, classify, far_deadline_s, front_end, open_pool, served
from tests.waiting import until

FIRST, SECOND = "fake_classify", "fake_classify@2"
SETTINGS = Settings(models=(FIRST,), heartbeat_interval_ms=20, model_control=True)
HALVES = {"1": 50.0, "2": 50.0}


@asynccontextmanager
async def at_work(settings: Settings = SETTINGS) -> AsyncIterator[tuple[FakeWorker, WorkerPool]]:
    """A worker that serves FIRST, with SECOND in its store."""
    async with fake_worker(settings, tasks=[Task.CLASSIFY]) as worker, front_end(worker.address) as pool:
        store_bundle(worker.store, fake_bundle(Task.CLASSIFY, SECOND))
        await until(lambda: pool.readiness().ready)
        yield worker, pool


def shares(pool: WorkerPool) -> dict[str, float]:
    """By version: percent of the requests for the name."""
    route = pool.routes[FIRST]
    return {version.config.name: percent for version, percent in route.shares}


async def test_versions_are_served_side_by_side() -> None:
    """A version is a model of its own: both are in memory, and requests for the name go on as they did."""
    async with at_work() as (worker, pool):
        await pool.load(SECOND, far_deadline_s())
        assert served(pool) == [FIRST, SECOND]
        assert await classify(pool, model=SECOND) == await classify(pool) == LEVEL
        assert shares(pool) == {FIRST: 100}
        assert worker.registry.get_sample_value("convmlp_model_ready", {"model": SECOND}) == 1


async def test_every_front_end_gets_the_split() -> None:
    """When the call returns its own front-end splits so, and the others follow at once."""
    async with at_work() as (worker, pool), front_end(worker.address) as other:
        await pool.load(SECOND, far_deadline_s())
        await pool.set_split(FIRST, {"1": 90, "2": 10}, far_deadline_s())
        assert shares(pool) == {FIRST: 90, SECOND: 10}
        await until(lambda: FIRST in other.routes and shares(other) == {FIRST: 90, SECOND: 10})
        await pool.set_split(FIRST, {}, far_deadline_s())
        assert shares(pool) == {FIRST: 100}


async def test_an_unloaded_version_leaves_the_split() -> None:
    """The others get its share. Loaded again it has none: adding a version never moves requests by itself."""
    async with at_work() as (_, pool):
        await pool.load(SECOND, far_deadline_s())
        await pool.set_split(FIRST, HALVES, far_deadline_s())
        await pool.unload(SECOND, far_deadline_s())
        assert shares(pool) == {FIRST: 100}
        await pool.load(SECOND, far_deadline_s())
        assert shares(pool) == {FIRST: 100}
        await pool.set_split(FIRST, {"2": 100}, far_deadline_s())
        await pool.unload(FIRST, far_deadline_s())
        assert shares(pool) == {SECOND: 100}


@pytest.mark.parametrize(
    ("name", "split", "error", "reason"),
    [
        (FIRST, {"1": 90.0}, BadParameter, "sum to 90; expected 100"),
        (FIRST, {"1": 90.0, "2": float("nan")}, BadParameter, "more than 0"),
        (FIRST, {"best": 100.0}, BadParameter, "is not a version"),
        (FIRST, {str(number): 1.0 for number in range(1, 101)}, BadParameter, "at most 16"),
        (FIRST, {"1": 90.0, "3": 10.0}, ModelNotFound, "no version '3' here; load 'fake_classify@3' first"),
        ("nonesuch", {"1": 100.0}, ModelNotFound, "no model 'nonesuch'"),
        (SECOND, {"2": 100.0}, ModelNotFound, "no model 'fake_classify@2'"),
    ],
)
async def test_a_split_that_cannot_hold_is_refused(
    name: str, split: dict[str, float], error: type[Exception], reason: str
) -> None:
    """The caller gets the reason, and the split stays as it was."""
    async with at_work() as (_, pool):
        await pool.load(SECOND, far_deadline_s())
        await pool.set_split(FIRST, HALVES, far_deadline_s())
        with pytest.raises(error, match=reason):
            await pool.set_split(name, split, far_deadline_s())
        assert shares(pool) == {FIRST: 50, SECOND: 50}


async def test_without_the_setting_no_caller_splits() -> None:
    """Unless `model_control` allows it; the configured split holds."""
    settings = Settings(models=(FIRST, SECOND), split="fake_classify=1:70,2:30", heartbeat_interval_ms=20)
    more = [fake_bundle(Task.CLASSIFY, SECOND)]
    async with (
        fake_worker(settings, tasks=[Task.CLASSIFY], more=more) as worker,
        front_end(worker.address) as pool,
    ):
        await until(lambda: pool.readiness().ready)
        with pytest.raises(Forbidden, match="model_control"):
            await pool.set_split(FIRST, HALVES, far_deadline_s())
        assert shares(pool) == {FIRST: 70, SECOND: 30}


async def test_a_restarted_worker_has_the_split(tmp_path: Path) -> None:
    """The file of served models has the splits that callers set."""
    settings = SETTINGS.with_changes(served_models_file=tmp_path / "served.json", models_dir=tmp_path)
    async with at_work(settings) as (_, pool):
        await pool.load(SECOND, far_deadline_s())
        await pool.set_split(FIRST, HALVES, far_deadline_s())
    more = [fake_bundle(Task.CLASSIFY, SECOND)]
    async with (
        fake_worker(settings, tasks=[Task.CLASSIFY], more=more) as worker,
        front_end(worker.address) as pool,
    ):
        await until(lambda: pool.readiness().ready)
        assert shares(pool) == {FIRST: 50, SECOND: 50}


async def test_several_workers_split_alike_or_not_at_all() -> None:
    """Where one worker cannot, because it lost the version, the others get their split back."""
    async with (
        fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as one,
        fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as two,
        open_pool(one.address, two.address) as (pool, _),
        front_end(two.address) as only_two,
    ):
        for worker in (one, two):
            store_bundle(worker.store, fake_bundle(Task.CLASSIFY, SECOND))
        await all_ready(pool)
        await pool.load(SECOND, far_deadline_s())
        await pool.set_split(FIRST, HALVES, far_deadline_s())
        await until(lambda: FIRST in only_two.routes and shares(only_two) == {FIRST: 50, SECOND: 50})
        await only_two.unload(SECOND, far_deadline_s())
        with pytest.raises(ModelNotFound, match=r"on 1 of 2 workers; the others have the split that they had"):
            await pool.set_split(FIRST, {"1": 10, "2": 90}, far_deadline_s())
        assert shares(pool) == {FIRST: 50, SECOND: 50}
        two.stop.set()
        await until(lambda: pool.readiness().reason != "ready")
        with pytest.raises(Unavailable, match="only while all workers are up"):
            await pool.set_split(FIRST, {"1": 100}, far_deadline_s())


async def test_versions_have_one_task() -> None:
    """A version for another task cannot answer for its name: it is refused when it is loaded, and at the start."""
    async with at_work() as (worker, pool):
        other = fake_bundle(Task.DETECT, "fake_classify@3")
        store_bundle(worker.store, other)
        with pytest.raises(ModelInvalid, match="is for detect, and its version 'fake_classify' for classify"):
            await pool.load("fake_classify@3", far_deadline_s())
        with pytest.raises(BundleInvalid, match="versions of a model have one task"):
            ModelRegistry(map(new_model, [fake_bundle(Task.CLASSIFY), other]))
