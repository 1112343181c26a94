"""The worker's life over its real wire: start, self-check, drain, end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from model.errors import BundleInvalid
from model.types import Task
from service.errors import Internal, Unavailable
from service.observability.metrics import WorkerMetrics
from service.settings import Settings
from service.wire.pool import WorkerPool
from service.wire.worker_endpoint import WorkerEndpoint
from service.worker.torch_runner import TorchRunner
from service.worker.worker import Worker, WorkerWedged
from tests.fakes import FakeRunner, FakeWorker, fake_bundle, fake_worker, lying_bundle, store_bundle
from tests.model.tiny_models import ARCHITECTURES, damaged_bundle
from tests.service.wire.worker_pool import LEVEL, classify, far_deadline_s, front_end, served
from tests.waiting import PATIENCE_S, until

SETTINGS = Settings(models=("fake",), heartbeat_interval_ms=20, self_check_interval_ms=50)


@asynccontextmanager
async def worker_and_channel(settings: Settings = SETTINGS) -> AsyncIterator[tuple[FakeWorker, WorkerPool]]:
    async with fake_worker(settings, tasks=[Task.CLASSIFY]) as worker, front_end(worker.address) as pool:
        yield worker, pool


async def test_a_model_that_answers_wrongly_is_not_ready() -> None:
    """A model that does not give its committed answer is not ready; once it does, it is."""
    async with worker_and_channel() as (worker, pool):
        await until(lambda: pool.readiness().ready)
        worker.runner.shift = 50
        await until(lambda: not pool.readiness().ready)
        assert "fake_classify" in pool.readiness().reason
        assert worker.registry.get_sample_value("convmlp_model_ready", {"model": "fake_classify"}) == 0
        with pytest.raises(Unavailable, match="the reference is"):
            await classify(pool)
        worker.runner.shift = 0
        await until(lambda: pool.readiness().ready)
        assert await classify(pool) == LEVEL


async def test_a_starting_worker_refuses_requests() -> None:
    """Before its self-check a worker answers Unavailable and queues nothing."""
    async with worker_and_channel() as (worker, pool):
        worker.runner.unblocked.clear()
        await until(lambda: bool(pool.models))
        if not pool.readiness().ready:  # the self-check may have ended before the device was blocked
            with pytest.raises(Unavailable):
                await classify(pool)
        worker.runner.unblocked.set()
        await until(lambda: pool.readiness().ready)


async def test_a_held_up_event_loop_is_reported() -> None:
    """The gauge has the time for which something held up the worker's event loop."""
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as worker:

        def lag_s() -> float:
            return worker.registry.get_sample_value("convmlp_worker_event_loop_lag_seconds") or 0.0

        await until(lambda: lag_s() > 0)
        time.sleep(1.0)  # noqa: ASYNC251  (it is what holds it up)
        await until(lambda: lag_s() > 0.5)


async def test_an_idle_worker_measures_precisions_again() -> None:
    """Once no job has come for a while, until each measurement is trustworthy, and then no more."""
    settings = SETTINGS.with_changes(self_check_interval_ms=1)
    async with fake_worker(settings, tasks=[Task.CLASSIFY]) as worker:
        worker.runner.doubtful_measurements = 2
        await until(lambda: len(worker.runner.measured_again) == 3)
        batches = len(worker.runner.batches)
        await until(lambda: len(worker.runner.batches) >= batches + 3)  # self-checks go on
        assert worker.runner.measured_again == [True] * 3


async def test_a_check_that_cannot_run_leaves_a_model_unready() -> None:
    """While the device has no memory for the reference picture the model is not ready; once it answers, it is."""
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as worker:
        worker.runner.memory_images = 0
        async with front_end(worker.address) as pool:
            await until(lambda: len(worker.runner.batches) >= 3)
            assert not pool.readiness().ready
            worker.runner.memory_images = None
            await until(lambda: pool.readiness().ready)


async def test_a_failed_check_is_repeated_soon() -> None:
    """A failed check does not wait for the next interval, which never ends in this test."""
    settings = SETTINGS.with_changes(self_check_interval_ms=10**9)
    async with fake_worker(settings, tasks=[Task.CLASSIFY]) as worker:
        worker.runner.shift = 50
        async with front_end(worker.address) as pool:
            await until(lambda: len(worker.runner.batches) >= 2)
            assert not pool.readiness().ready
            worker.runner.shift = 0
            await until(lambda: pool.readiness().ready)


async def test_an_output_that_is_not_finite_has_its_model_checked_soon() -> None:
    """NaN for one request is that request's internal error and has the model checked before the next interval, which
    never ends in this test. Where the check gives NaN too, the model is out of service until it does not."""
    settings = SETTINGS.with_changes(self_check_interval_ms=10**9)
    async with fake_worker(settings, tasks=[Task.CLASSIFY]) as worker, front_end(worker.address) as pool:
        await until(lambda: pool.readiness().ready)
        checked = len(worker.runner.batches)
        worker.runner.not_finite = {LEVEL}
        with pytest.raises(Internal, match="not finite"):
            await classify(pool)
        assert await classify(pool, level=LEVEL + 1) == LEVEL + 1
        await until(lambda: len(worker.runner.batches) == checked + 3)
        assert pool.readiness().ready
        worker.runner.not_finite = range(256)
        with pytest.raises(Internal, match="not finite"):
            await classify(pool)
        await until(lambda: not pool.readiness().ready)
        with pytest.raises(Unavailable, match="not finite"):
            await classify(pool)
        worker.runner.not_finite = ()
        await until(lambda: pool.readiness().ready)


@pytest.mark.parametrize("family", list(ARCHITECTURES))
async def test_a_model_of_nan_weights_is_never_ready(family: str, tmp_path: Path) -> None:
    """A bundle whose weights are NaN loads, and is out of service with the reason, whatever its reference answer."""
    bundle = damaged_bundle(tmp_path, family)
    registry = CollectorRegistry()
    worker = Worker(
        [bundle],
        lambda settings: TorchRunner((), settings),
        SETTINGS.with_changes(models=(bundle.config.name,), device="cpu", compute_threads=1),
        WorkerMetrics(registry, {bundle.config.name: bundle.config.task.value}),
    )
    async with WorkerEndpoint(f"ipc://{tmp_path}/w") as endpoint, front_end(endpoint.address) as pool:
        stop = asyncio.Event()
        serving = asyncio.create_task(worker.run(endpoint, stop))
        counted = ("convmlp_non_finite_outputs_total", {"model": bundle.config.name})
        await until(lambda: (registry.get_sample_value(*counted) or 0) >= 2)
        assert not pool.readiness().ready
        with pytest.raises(Unavailable, match="not finite"):
            await classify(pool, model=bundle.config.name)
        stop.set()
        await serving


async def test_an_unready_model_does_not_delay_the_others() -> None:
    """One of two models is never ready: readiness names it, and the other one answers."""
    async with (
        fake_worker(SETTINGS, tasks=[Task.CLASSIFY], more=[lying_bundle("liar")]) as worker,
        front_end(worker.address) as pool,
    ):
        await until(lambda: "not ready: liar" in pool.readiness().reason)
        assert not pool.readiness().ready
        assert await classify(pool) == LEVEL
        with pytest.raises(Unavailable, match="the reference is"):
            await classify(pool, model="liar")


async def test_only_a_configured_model_must_load_at_the_start(tmp_path: Path) -> None:
    """A caller's model that does not fit any more is left out; a configured one ends the worker."""
    bundles = [store_bundle(tmp_path, fake_bundle(Task.CLASSIFY, name)) for name in ("configured", "loaded")]

    def worker(damaged: str) -> Worker:
        return Worker(
            bundles,
            lambda _: FakeRunner(damaged=frozenset({damaged})),
            SETTINGS.with_changes(models=("configured",)),
            WorkerMetrics(CollectorRegistry(), {"configured": "classify", "loaded": "classify"}),
        )

    async with (
        WorkerEndpoint(f"ipc://{tmp_path}/w") as endpoint,
        front_end(endpoint.address) as pool,
        asyncio.timeout(PATIENCE_S),
    ):
        stop = asyncio.Event()
        serving = asyncio.create_task(worker("loaded").run(endpoint, stop))
        await until(lambda: pool.readiness().ready)
        assert served(pool) == ["configured"]
        stop.set()
        await serving
        with pytest.raises(ExceptionGroup) as caught:
            await worker("configured").run(endpoint, asyncio.Event())
        assert caught.group_contains(BundleInvalid)


async def test_draining_answers_pending_jobs() -> None:
    """After SIGTERM pending jobs are answered, front-ends get the new state, and the worker ends."""
    async with worker_and_channel() as (worker, pool):
        await until(lambda: pool.readiness().ready)
        worker.runner.unblocked.clear()
        asked = [asyncio.create_task(classify(pool)) for _ in range(9)]
        depth = "convmlp_queue_depth"
        await until(lambda: (worker.registry.get_sample_value(depth, {"model": "fake_classify"}) or 0) >= 1)
        worker.stop.set()
        await until(lambda: not pool.readiness().ready)
        assert "shutting down" in pool.readiness().reason
        assert [model.ready for model in pool.models or ()] == [False]
        worker.runner.unblocked.set()
        assert await asyncio.gather(*asked) == [LEVEL] * 9


@pytest.mark.parametrize("when", ["at the start", "in a load"])
async def test_a_wedged_device_ends_the_worker(when: str, tmp_path: Path) -> None:
    """A batch that never ends ends the worker, so that another one can take its place."""
    runner = FakeRunner()
    if when == "at the start":
        runner.unblocked.clear()
    worker = Worker(
        [store_bundle(tmp_path, fake_bundle(Task.CLASSIFY))],
        lambda _: runner,
        Settings(
            models=("fake",),
            heartbeat_interval_ms=20,
            batch_timeout_ms=1000,
            models_dir=tmp_path,
            model_control=True,
        ),
        WorkerMetrics(CollectorRegistry(), {"fake_classify": "classify"}),
    )
    store_bundle(tmp_path, fake_bundle(Task.CLASSIFY, "second"))
    async with (
        WorkerEndpoint(f"ipc://{tmp_path}/w") as endpoint,
        front_end(endpoint.address) as pool,
        asyncio.timeout(PATIENCE_S),
    ):

        async def load() -> None:
            if when == "in a load":
                await until(lambda: pool.readiness().ready)
                runner.unblocked.clear()
                await pool.load("second", far_deadline_s())

        loading = asyncio.create_task(load())
        with pytest.raises(ExceptionGroup) as caught:
            await worker.run(endpoint, asyncio.Event())
        loading.cancel()
    runner.unblocked.set()
    assert caught.group_contains(WorkerWedged)
