"""Models that are loaded and unloaded while the worker serves, over real sockets and with a fake device."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from model.bundle import CONFIG_FILE, WEIGHTS_FILE, Accuracy, read_bundle, write_accuracy
from model.types import Task
from service.errors import DeadlineExceeded, Forbidden, ModelInvalid, ModelNotFound, Overloaded, Unavailable
from service.settings import Settings
from service.types import StoredModel
from service.wire.messages import PROTOCOL, Hello, State, encode
from service.wire.pool import WorkerPool
from service.worker.model_control import MAX_REQUESTS
from tests.fakes import FakeWorker, fake_bundle, fake_worker, lying_bundle, store_bundle
from tests.service.wire.raw_front_end import RawFrontEnd
from tests.service.wire.worker_pool import LEVEL, classify, far_deadline_s, front_end, served, status_of
from tests.waiting import PATIENCE_S, until

SETTINGS = Settings(models=("fake",), heartbeat_interval_ms=20, model_control=True)
FIRST = "fake_classify"


@asynccontextmanager
async def at_work(settings: Settings = SETTINGS) -> AsyncIterator[tuple[FakeWorker, WorkerPool]]:
    """A worker that serves FIRST, and has `second` and `third` in its store."""
    async with fake_worker(settings, tasks=[Task.CLASSIFY]) as worker, front_end(worker.address) as pool:
        for name in ("second", "third"):
            store_bundle(worker.store, fake_bundle(Task.CLASSIFY, name))
        await until(lambda: pool.readiness().ready)
        yield worker, pool


def in_memory(worker: FakeWorker) -> list[str]:
    """The models on the device, in the order of their coming."""
    return [bundle.config.name for bundle in worker.runner.slots.values()]


def gauge(worker: FakeWorker, name: str, model: str) -> float | None:
    return worker.registry.get_sample_value(name, {"model": model})


def depth(worker: FakeWorker) -> float | None:
    return gauge(worker, "convmlp_queue_depth", FIRST)


async def stored(pool: WorkerPool, name: str) -> StoredModel:
    return next(one for one in await pool.repository(far_deadline_s()) if one.name == name)


async def until_being_loaded(pool: WorkerPool, name: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await stored(pool, name)).reason != "it is being loaded":
            await asyncio.sleep(0.005)


async def test_a_loaded_model_answers_at_once_and_everywhere() -> None:
    """When a load returns, its model is ready and last in order; other front-ends have it, and the store lists it."""
    async with at_work() as (worker, pool), front_end(worker.address) as other:
        assert await stored(pool, "second") == StoredModel("second", False, False, "it is not loaded")
        await pool.load("second", far_deadline_s())
        assert served(pool) == [FIRST, "second"]
        assert pool.readiness().ready
        assert await classify(pool, model="second") == LEVEL
        await until(lambda: served(other) == [FIRST, "second"])
        assert await classify(other, model="second") == LEVEL
        assert await stored(pool, "second") == StoredModel("second", True, True, "")
        assert in_memory(worker) == [FIRST, "second"]
        assert gauge(worker, "convmlp_model_ready", "second") == 1


async def test_a_change_is_sent_to_all_front_ends() -> None:
    """The worker announces a change by itself, long before a front-end's next heartbeat."""
    settings = SETTINGS.with_changes(heartbeat_interval_ms=20, worker_timeout_ms=100_000)
    async with (
        at_work(settings) as (worker, pool),
        front_end(worker.address, heartbeat_s=1000.0, timeout_s=5000.0) as rare,
    ):
        await rare.wait_for_state()
        await pool.load("second", far_deadline_s())
        await until(lambda: served(rare) == [FIRST, "second"])
        assert await classify(rare, model="second") == LEVEL
        await pool.unload("second", far_deadline_s())
        await until(lambda: served(rare) == [FIRST])


async def test_without_the_setting_nothing_changes() -> None:
    """Unless `model_control` allows it nobody loads or unloads; the store can be listed."""
    async with at_work(SETTINGS.with_changes(model_control=False)) as (worker, pool):
        with pytest.raises(Forbidden, match="model_control"):
            await pool.load("second", far_deadline_s())
        with pytest.raises(Forbidden, match="model_control"):
            await pool.unload(FIRST, far_deadline_s())
        assert not (await stored(pool, "second")).served
        assert in_memory(worker) == [FIRST]


@pytest.mark.parametrize("name", ["nonesuch", "", "..", f"../{FIRST}", "/etc", "a\0b", "x" * 5000])
async def test_a_name_that_is_not_in_the_store_is_not_found(name: str) -> None:
    """Only names that the store lists are opened: no caller's text becomes a path."""
    async with at_work() as (worker, pool):
        with pytest.raises(ModelNotFound):
            await pool.load(name, far_deadline_s())
        with pytest.raises(ModelNotFound):
            await pool.unload(name, far_deadline_s())
        assert in_memory(worker) == [FIRST]
        assert await classify(pool) == LEVEL


async def test_a_broken_bundle_s_error_has_the_reason_and_no_path() -> None:
    """A wrong hash and weights that do not fit are the bundle's fault. The caller gets the reason, without a path
    of the worker, and nothing is left behind."""
    async with at_work() as (worker, pool):
        (worker.store / "second" / WEIGHTS_FILE).write_bytes(b"another")
        worker.runner.damaged = frozenset({"third"})
        for name, reason in (("second", "has SHA-256 .* expects"), ("third", "the weights do not fit")):
            with pytest.raises(
                ModelInvalid, match=f"model '{name}' cannot be loaded: bundle {name}: .*{reason}"
            ) as caught:
                await pool.load(name, far_deadline_s())
            assert str(worker.store) not in caught.value.detail
            assert gauge(worker, "convmlp_model_ready", name) is None
        assert served(pool) == in_memory(worker) == [FIRST]


async def test_a_model_that_fails_its_self_check_is_not_served() -> None:
    """A model with a wrong answer on the reference picture is removed from memory, and the caller gets the reason."""
    async with at_work() as (worker, pool):
        store_bundle(worker.store, lying_bundle("second"))
        with pytest.raises(ModelInvalid, match="the reference is"):
            await pool.load("second", far_deadline_s())
        await until(lambda: in_memory(worker) == [FIRST])
        assert served(pool) == [FIRST]
        assert gauge(worker, "convmlp_model_ready", "second") is None
        assert gauge(worker, "convmlp_queue_depth", "second") is None


async def test_a_model_without_memory_is_not_loaded() -> None:
    """A model that does not fit is refused and the others answer; it fits once another one is unloaded."""
    async with at_work() as (worker, pool):
        await pool.load("second", far_deadline_s())
        worker.runner.memory_models = 2
        with pytest.raises(Overloaded, match="unload another model"):
            await pool.load("third", far_deadline_s())
        assert served(pool) == in_memory(worker) == [FIRST, "second"]
        assert await classify(pool, model="second") == LEVEL
        await pool.unload(FIRST, far_deadline_s())
        await pool.load("third", far_deadline_s())
        assert served(pool) == in_memory(worker) == ["second", "third"]


async def test_loading_a_served_model_changes_it_only_with_the_disk() -> None:
    """The same bundle stays as it is; another config under its name replaces it, in the same place."""
    async with at_work() as (worker, pool):
        await pool.load("second", far_deadline_s())
        before = dict(worker.runner.slots)
        await pool.load(FIRST, far_deadline_s())
        assert worker.runner.slots == before
        changed = fake_bundle(Task.CLASSIFY, FIRST, weights=b"trained for longer")
        store_bundle(worker.store, changed, weights=b"trained for longer")
        await pool.load(FIRST, far_deadline_s())
        assert served(pool) == [FIRST, "second"]
        assert status_of(pool, FIRST).config == changed.config
        assert in_memory(worker) == ["second", FIRST]
        assert await classify(pool) == LEVEL


async def test_a_measured_model_has_its_figures_without_being_loaded_again() -> None:
    """`eval --write` changes no answer: a load takes over the figures, under the version that is served."""
    async with at_work() as (worker, pool):
        before, slots = status_of(pool, FIRST), list(worker.runner.slots)
        accuracy = Accuracy(metrics={"top1": 0.5}, measured_on="ten pictures")
        write_accuracy(read_bundle(worker.store / FIRST), accuracy)
        await pool.load(FIRST, far_deadline_s())
        await until(lambda: status_of(pool, FIRST).config.accuracy == accuracy)
        assert status_of(pool, FIRST).version == before.version
        assert list(worker.runner.slots) == slots
        assert await classify(pool) == LEVEL


async def test_a_model_that_is_not_ready_is_loaded_anew() -> None:
    """A load returns only when the model is ready: one whose self-check fails is read again."""
    settings = SETTINGS.with_changes(self_check_interval_ms=20)
    async with at_work(settings) as (worker, pool):
        (slot,) = worker.runner.slots
        worker.runner.damaged_slots = frozenset({slot})
        await until(lambda: not pool.readiness().ready)
        assert (await stored(pool, FIRST)).served
        assert "the reference is" in (await stored(pool, FIRST)).reason
        await pool.load(FIRST, far_deadline_s())
        assert await classify(pool) == LEVEL
        assert slot not in worker.runner.slots


async def test_a_replaced_model_answers_its_own_inputs() -> None:
    """Inputs that were prepared for the old version run on it for a while; after that they are Unavailable."""
    settings = SETTINGS.with_changes(heartbeat_interval_ms=300)
    async with at_work(settings) as (worker, pool):
        old = status_of(pool, FIRST)
        old_slot = next(iter(worker.runner.slots))
        new = fake_bundle(Task.CLASSIFY, FIRST, weights=b"new")
        store_bundle(worker.store, new, weights=b"new")
        loading = asyncio.create_task(pool.load(FIRST, far_deadline_s()))
        await until(lambda: status_of(pool, FIRST).config == new.config)
        assert not loading.done()  # the old one is being kept for those who come late
        worker.runner.damaged_slots = frozenset({old_slot})
        assert await classify(pool, model=old) != LEVEL
        assert await classify(pool) == LEVEL
        await loading
        assert old_slot not in worker.runner.slots
        with pytest.raises(Unavailable, match="was replaced"):
            await classify(pool, model=old)


async def test_unloading_answers_pending_jobs_first() -> None:
    """Jobs in an unloaded model's queue are answered, and so are those that front-ends prepared before they received
    the change. Later ones are to be sent again."""
    async with at_work() as (worker, pool):
        await pool.load("second", far_deadline_s())
        model = status_of(pool, FIRST)
        ran = len(worker.runner.batches)
        worker.runner.unblocked.clear()
        asked = [asyncio.create_task(classify(pool))]
        await until(lambda: len(worker.runner.batches) > ran)
        asked += [asyncio.create_task(classify(pool)) for _ in range(4)]
        await until(lambda: depth(worker) == 4)
        unloading = asyncio.create_task(pool.unload(FIRST, far_deadline_s()))
        await until(lambda: served(pool) == ["second"])
        asked.append(asyncio.create_task(classify(pool, model=model)))
        await until(lambda: depth(worker) == 5)
        assert (await stored(pool, FIRST)).reason == "it is being unloaded"
        assert in_memory(worker) == [FIRST, "second"]
        assert not unloading.done()
        worker.runner.unblocked.set()
        assert await asyncio.gather(*asked) == [LEVEL] * 6
        await unloading
        with pytest.raises(Unavailable, match="was unloaded during this request; send it again"):
            await classify(pool, model=model)
        assert in_memory(worker) == ["second"]
        assert await classify(pool, model="second") == LEVEL


async def test_an_unloaded_model_keeps_its_counters() -> None:
    """An unload removes a model's gauges and keeps its counters, which go on counting after a load."""
    async with at_work() as (worker, pool):
        await classify(pool)
        images = gauge(worker, "convmlp_images_total", FIRST)
        assert images
        await pool.unload(FIRST, far_deadline_s())
        assert depth(worker) is None
        assert gauge(worker, "convmlp_model_ready", FIRST) is None
        assert gauge(worker, "convmlp_images_total", FIRST) == images
        await pool.load(FIRST, far_deadline_s())
        assert depth(worker) == 0
        assert (gauge(worker, "convmlp_images_total", FIRST) or 0) > images


async def test_the_last_model_can_be_unloaded() -> None:
    """Without any model the service is not ready and gives the reason; the next load makes it ready."""
    async with at_work() as (worker, pool):
        await pool.unload(FIRST, far_deadline_s())
        assert pool.models == ()
        assert not pool.readiness().ready
        assert "no model is served" in pool.readiness().reason
        assert in_memory(worker) == []
        with pytest.raises(ModelNotFound):
            await pool.unload(FIRST, far_deadline_s())
        await pool.load("second", far_deadline_s())
        assert pool.readiness().ready
        assert await classify(pool, model="second") == LEVEL


async def test_others_are_served_while_a_model_is_read() -> None:
    """Reading a model from disk takes no device time."""
    async with at_work() as (worker, pool):
        worker.runner.reading.clear()
        loading = asyncio.create_task(pool.load("second", far_deadline_s()))
        await until_being_loaded(pool, "second")
        assert [await classify(pool) for _ in range(20)] == [LEVEL] * 20
        assert served(pool) == [FIRST]
        worker.runner.reading.set()
        await loading


async def test_a_model_is_loaded_while_batches_run() -> None:
    """Under steady load a model is loaded and unloaded, and no request of another model fails."""
    async with at_work() as (worker, pool):
        stop = asyncio.Event()

        async def keep_asking() -> list[int]:
            answers = []
            while not stop.is_set():
                answers.append(await classify(pool))
            return answers

        asking = [asyncio.create_task(keep_asking()) for _ in range(8)]
        for _ in range(5):
            await pool.load("second", far_deadline_s())
            assert await classify(pool, model="second") == LEVEL
            await pool.unload("second", far_deadline_s())
        stop.set()
        answers = await asyncio.gather(*asking)
        assert all(answers)
        assert {level for some in answers for level in some} == {LEVEL}
        assert in_memory(worker) == [FIRST]


async def test_loads_run_one_after_the_other() -> None:
    """Two front-ends load the same model and another one: all loads succeed, with one copy of each in memory."""
    async with at_work() as (worker, pool), front_end(worker.address) as other:
        await other.wait_for_state()
        worker.runner.reading.clear()
        loads = [
            asyncio.create_task(one.load(name, far_deadline_s()))
            for one, name in ((pool, "second"), (other, "second"), (other, "third"))
        ]
        await until_being_loaded(pool, "second")
        worker.runner.reading.set()
        await asyncio.gather(*loads)
        assert sorted(in_memory(worker)) == sorted([FIRST, "second", "third"])
        await until(lambda: served(pool) == served(other) == in_memory(worker))
        assert worker.runner.most_read_at_once == 1


async def test_model_requests_are_bounded() -> None:
    """Beyond the bound a request is refused at once; the others are carried out."""
    async with at_work() as (worker, pool):
        worker.runner.reading.clear()
        inside = [asyncio.create_task(pool.load("second", far_deadline_s())) for _ in range(MAX_REQUESTS)]
        await asyncio.sleep(0)  # they are sent in this order
        with pytest.raises(Overloaded, match="try again later"):
            await pool.load("third", far_deadline_s())
        worker.runner.reading.set()
        await asyncio.gather(*inside)
        assert served(pool) == [FIRST, "second"]


async def test_a_cancelled_load_changes_nothing() -> None:
    """Whether the model is being read, waits for the device or is checked when its caller leaves, it is removed."""
    async with at_work() as (worker, pool):
        worker.runner.reading.clear()
        loading = asyncio.create_task(pool.load("second", far_deadline_s()))
        await until_being_loaded(pool, "second")
        loading.cancel()
        await until(lambda: gauge(worker, "convmlp_model_ready", "second") is None)
        assert (await stored(pool, "second")).reason == "it is not loaded"
        worker.runner.reading.set()

        for device_is_busy in (True, False):
            ran = len(worker.runner.batches)
            worker.runner.unblocked.clear()
            asked = [asyncio.create_task(classify(pool))] if device_is_busy else []
            await until(lambda: len(worker.runner.batches) > ran or not asked)  # noqa: B023
            loading = asyncio.create_task(pool.load("third", far_deadline_s()))
            if device_is_busy:
                await until_being_loaded(pool, "third")
            else:
                await until(lambda: worker.runner.batches[-1][0] == "third")
            loading.cancel()
            await until(lambda: gauge(worker, "convmlp_queue_depth", "third") is None)
            worker.runner.unblocked.set()
            assert await asyncio.gather(*asked) == [LEVEL] * len(asked)
            await until(lambda: in_memory(worker) == [FIRST])

        await pool.load("second", far_deadline_s())
        assert served(pool) == in_memory(worker) == [FIRST, "second"]


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("kind", ["FIFO", "folder", "device"])
async def test_what_is_not_a_regular_file_is_refused(file: str, kind: str) -> None:
    """A FIFO in the place of a bundle's file, for whose writer a reader would wait for ever, is an error at once, as
    a folder and a device are. Other models load."""
    async with at_work() as (worker, pool):
        path = worker.store / "second" / file
        path.unlink()
        match kind:
            case "FIFO":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case _:
                path.symlink_to("/dev/zero")
        with pytest.raises(ModelInvalid, match=f"cannot read second/{file}: not a regular file"):
            await pool.load("second", far_deadline_s())
        await pool.load("third", far_deadline_s())
        assert served(pool) == [FIRST, "third"]


async def test_a_late_load_changes_nothing() -> None:
    """A load whose deadline passes gets DeadlineExceeded, and its model is not served afterwards."""
    async with at_work() as (worker, pool):
        worker.runner.reading.clear()
        with pytest.raises(DeadlineExceeded):
            await pool.load("second", time.monotonic() + 0.3)
        worker.runner.reading.set()
        await pool.load("third", far_deadline_s())
        assert served(pool) == in_memory(worker) == [FIRST, "third"]


@pytest.mark.parametrize("why", ["it left", "its deadline passed"])
async def test_an_unload_is_completed_without_its_caller(why: str) -> None:
    """An unload that has started is completed, even after its caller left."""
    async with at_work() as (worker, pool):
        worker.runner.unblocked.clear()
        asked = asyncio.create_task(classify(pool))
        await until(lambda: bool(worker.runner.batches) and depth(worker) == 0)
        deadline_s = far_deadline_s() if why == "it left" else time.monotonic() + 2.0
        unloading = asyncio.create_task(pool.unload(FIRST, deadline_s))
        await until(lambda: served(pool) == [])
        if why == "it left":
            unloading.cancel()
        with pytest.raises((asyncio.CancelledError, DeadlineExceeded)):
            await unloading
        assert in_memory(worker) == [FIRST]
        worker.runner.unblocked.set()
        assert await asked == LEVEL
        await until(lambda: in_memory(worker) == [])


async def test_a_config_is_sent_once() -> None:
    """The worker sends no config that a front-end named or was sent before."""
    async with at_work() as (worker, pool), RawFrontEnd(worker.address) as raw:

        async def received(count: int) -> tuple[State, list[str]]:
            """The next state of so many models, and the configs since the last; states may repeat each other."""
            configs: list[str] = []
            while True:
                message = await raw.receive()
                assert isinstance(message, State)
                configs += message.configs
                if len(message.models) == count and configs:
                    return message, configs

        raw.send(encode(Hello(PROTOCOL, ())))
        state, first = await received(1)
        assert first == [state.models[0].version]
        await pool.load("second", far_deadline_s())
        state, second = await received(2)
        assert [model.name for model in state.models] == [FIRST, "second"]
        assert second == [state.models[1].version]
        await pool.load("third", far_deadline_s())
        state, third = await received(3)
        assert third == [state.models[2].version]
        raw.send(encode(Hello(PROTOCOL, tuple(third))))
        _, again = await received(3)
        assert sorted(again) == sorted([*first, *second])


async def test_a_new_front_end_gets_the_present_models() -> None:
    """During a load a new front-end gets the old set, and the new one as soon as it is served."""
    async with at_work() as (worker, pool):
        worker.runner.reading.clear()
        loading = asyncio.create_task(pool.load("second", far_deadline_s()))
        await until_being_loaded(pool, "second")
        async with front_end(worker.address) as late:
            await until(lambda: late.readiness().ready)
            assert served(late) == [FIRST]
            worker.runner.reading.set()
            await loading
            await until(lambda: served(late) == [FIRST, "second"])
            assert await classify(late, model="second") == LEVEL


async def test_a_worker_that_ends_fails_pending_loads() -> None:
    """On SIGTERM during a load its caller gets an error at once, and the worker ends."""
    async with at_work() as (worker, pool):
        worker.runner.reading.clear()
        loading = asyncio.create_task(pool.load("second", far_deadline_s()))
        await until_being_loaded(pool, "second")
        worker.stop.set()
        with pytest.raises(Unavailable, match="shutting down"):
            await loading
        with pytest.raises(Unavailable, match="shutting down"):
            await pool.load("third", far_deadline_s())


async def test_the_served_models_are_saved(tmp_path: Path) -> None:
    """Each change is in the file when its call returns. Where the file cannot be written the change is still made."""
    file = tmp_path / "served.json"
    async with at_work(SETTINGS.with_changes(served_models_file=file)) as (_, pool):
        assert not file.exists()
        await pool.load("second", far_deadline_s())
        assert f'"served":["{FIRST}","second"]' in file.read_text()
        await pool.unload(FIRST, far_deadline_s())
        assert '"served":["second"]' in file.read_text()
    async with at_work(SETTINGS.with_changes(served_models_file=tmp_path / "missing" / "served.json")) as (_, pool):
        await pool.load("second", far_deadline_s())
        assert served(pool) == [FIRST, "second"]
