"""Models that come and go, as every transport of a front-end sees it."""

from __future__ import annotations

import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import PIL.Image
import pytest

from model.bundle import BundleConfig
from model.types import ClassifyOutput, QueryParams, RawOutput, Size, Task
from service.errors import DeadlineExceeded, Forbidden, ModelNotFound, Unavailable
from service.frontend.core.engine import Engine
from service.frontend.core.frontend import open_front_end
from service.settings import Settings
from service.types import ModelStatus, PredictRequest
from tests.fakes import FakeWorker, fake_bundle, fake_worker, store_bundle
from tests.waiting import until

SETTINGS = Settings(models=("fake",), heartbeat_interval_ms=50, model_control=True)


@asynccontextmanager
async def engine_at_work(settings: Settings = SETTINGS) -> AsyncIterator[tuple[Engine, FakeWorker]]:
    async with (
        fake_worker(SETTINGS) as worker,
        open_front_end(settings.with_changes(worker_address=worker.address)) as front_end,
    ):
        store_bundle(worker.store, fake_bundle(Task.CLASSIFY, "second"))
        await until(lambda: front_end.engine.readiness().ready)
        yield front_end.engine, worker


async def grey_level(engine: Engine, model: str | None) -> tuple[str, int]:
    """Which model answers, and what, about a picture of grey level 77."""
    return await grey_level_by(engine, engine.resolve(Task.CLASSIFY, model))


async def grey_level_by(engine: Engine, status: ModelStatus) -> tuple[str, int]:
    """The same by a model that was resolved before."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (60, 40), (77, 77, 77)).save(buffer, "PNG")
    request = PredictRequest("r", status, buffer.getvalue(), QueryParams(top_k=1), time.monotonic() + 20)

    def first(raw: RawOutput, config: BundleConfig, _: Size) -> tuple[str, int]:
        assert isinstance(raw, ClassifyOutput)
        return config.name, int(raw.indices[0])

    return (await engine.predict(request, first)).payload


async def test_a_model_comes_and_goes() -> None:
    """A loaded model answers when the load returns, and the default stays; it is the next default of its task."""
    async with engine_at_work() as (engine, _):
        await engine.control.load("second")
        assert await grey_level(engine, "second") == ("second", 77)
        assert await grey_level(engine, None) == ("fake_classify", 77)
        await engine.control.unload("fake_classify")
        assert await grey_level(engine, None) == ("second", 77)
        with pytest.raises(ModelNotFound, match="fake_classify"):
            await grey_level(engine, "fake_classify")
        states = {one.name: one.ready for one in await engine.control.repository()}
        assert (states["second"], states["fake_classify"]) == (True, False)
        await engine.control.load("fake_classify")
        assert await grey_level(engine, None) == ("second", 77)  # who comes back comes last


async def test_a_model_may_change_while_a_body_arrives() -> None:
    """A request that resolved a model before its upload is answered by the version that is served after it."""
    async with engine_at_work() as (engine, worker):
        resolved = engine.resolve(Task.CLASSIFY, "fake_classify")
        changed = fake_bundle(Task.CLASSIFY, "fake_classify", weights=b"trained for longer")
        store_bundle(worker.store, changed, weights=b"trained for longer")
        await engine.control.load("fake_classify")
        assert engine.model("fake_classify").version != resolved.version
        assert await grey_level_by(engine, resolved) == ("fake_classify", 77)
        await engine.control.load("second")
        await engine.control.unload("fake_classify")
        with pytest.raises(Unavailable, match="'fake_classify' was unloaded during this request; send it again"):
            await grey_level_by(engine, resolved)
        with pytest.raises(ModelNotFound, match="fake_classify"):
            engine.resolve(Task.CLASSIFY, "fake_classify")


async def test_a_front_end_may_forbid_what_its_worker_allows() -> None:
    """Without the setting a front-end's callers change nothing, whatever the worker would do; they may ask."""
    async with engine_at_work(SETTINGS.with_changes(model_control=False)) as (engine, _):
        with pytest.raises(Forbidden, match="model_control"):
            await engine.control.load("second")
        with pytest.raises(Forbidden, match="model_control"):
            await engine.control.unload("fake_classify")
        assert "second" in [one.name for one in await engine.control.repository()]
        assert await grey_level(engine, None) == ("fake_classify", 77)


async def test_without_models_the_service_knows_that_it_has_none() -> None:
    """After the last unload the list of models is empty, not unknown, and readiness has the reason."""
    async with engine_at_work() as (engine, _):
        for status in engine.models():
            await engine.control.unload(status.config.name)
        assert engine.models() == ()
        with pytest.raises(ModelNotFound):
            await grey_level(engine, None)
        assert "no model is served" in engine.readiness().reason


async def test_a_deadline_holds_for_models_too() -> None:
    """The caller's deadline, or the setting's where it is sooner, ends the wait for a load."""
    async with engine_at_work(SETTINGS.with_changes(model_control_timeout_ms=500)) as (engine, worker):
        worker.runner.reading.clear()
        with pytest.raises(DeadlineExceeded):
            await engine.control.load("second", time.monotonic() + 0.2)
        with pytest.raises(DeadlineExceeded):
            await engine.control.load("second", time.monotonic() + 1000)
        with pytest.raises(DeadlineExceeded):
            await engine.control.load("second")
        with pytest.raises(DeadlineExceeded):
            await engine.control.repository(time.monotonic() - 1)


async def test_without_a_worker_nothing_can_be_asked_about_models() -> None:
    """Before any worker reports, the repository is Unavailable at once."""
    settings = SETTINGS.with_changes(worker_address="ipc:///tmp/convmlp-test-nobody-is-here")
    async with open_front_end(settings) as front_end:
        with pytest.raises(Unavailable):
            await front_end.engine.control.repository()
        with pytest.raises(Unavailable):
            await front_end.engine.control.load("second")
