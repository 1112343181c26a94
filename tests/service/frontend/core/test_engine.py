"""The engine on a real worker but for its device: admission, resolution, order of stages."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import PIL.Image
import pytest

from model.errors import ImageUndecodable
from model.types import ClassifyResult, QueryParams, Result, Task
from service.errors import BadParameter, DeadlineExceeded, ModelNotFound, Overloaded, Refusal, Unavailable
from service.frontend.core.engine import Engine
from service.frontend.core.frontend import open_front_end
from service.settings import Settings
from service.types import PredictRequest
from service.wire.messages import WaitEstimate
from tests.fakes import FakeWorker, fake_worker
from tests.service.wire.scripted_worker import NO_WAIT, ScriptedWorker
from tests.service.wire.worker_pool import until

SETTINGS = Settings(models=("fake",), heartbeat_interval_ms=50, max_in_flight=2, max_in_flight_bytes=1000)


def png_of(level: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (60, 40), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def asked(image: bytes, *, model: str | None = None, task: Task = Task.CLASSIFY, seconds: float = 20) -> PredictRequest:
    return PredictRequest("r", task, model, image, QueryParams(top_k=1), time.monotonic() + seconds)


def first_label(result: Result) -> int:
    assert isinstance(result, ClassifyResult)
    return result.labels[0].index


@asynccontextmanager
async def engine_at_work() -> AsyncIterator[tuple[Engine, FakeWorker]]:
    async with (
        fake_worker(SETTINGS) as worker,
        open_front_end(SETTINGS.with_changes(worker_address=worker.address)) as front_end,
    ):
        async with asyncio.timeout(10):
            while not front_end.engine.readiness().ready:
                await asyncio.sleep(0.01)
        yield front_end.engine, worker


async def test_an_image_is_answered_by_the_task_s_default_model() -> None:
    """Bytes go in, the encoded result comes out, with the model, the upright size and the stages' times."""
    async with engine_at_work() as (engine, _):
        reply = await engine.predict(asked(png_of(77)), first_label)
        assert (reply.payload, reply.model) == (77, "fake_classify")
        assert (reply.size.width, reply.size.height) == (60, 40)
        assert reply.timings.decode > 0
        assert reply.timings.infer > 0


async def test_a_model_is_resolved_or_refused_by_name() -> None:
    """An unknown name and a model of another task are errors of their own."""
    async with engine_at_work() as (engine, _):
        with pytest.raises(ModelNotFound, match="nonesuch"):
            await engine.predict(asked(png_of(1), model="nonesuch"), first_label)
        with pytest.raises(BadParameter, match="classify"):
            await engine.predict(asked(png_of(1), model="fake_classify", task=Task.DETECT), first_label)


async def test_a_bad_image_never_reaches_the_worker() -> None:
    """Undecodable bytes are refused in the front-end; the device hears nothing of them."""
    async with engine_at_work() as (engine, worker):
        before = len(worker.runner.batches)
        with pytest.raises(ImageUndecodable):
            await engine.predict(asked(png_of(1)[:40]), first_label)
        assert len(worker.runner.batches) == before


async def test_images_in_hand_are_bounded() -> None:
    """Beyond the bound a request is refused at once, and the bound frees up again."""
    async with engine_at_work() as (engine, worker):
        worker.runner.gate.clear()
        held = [asyncio.create_task(engine.predict(asked(png_of(level)), first_label)) for level in (3, 4)]
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded):
            await engine.predict(asked(png_of(5)), first_label)
        worker.runner.gate.set()
        assert [(await one).payload for one in held] == [3, 4]
        assert (await engine.predict(asked(png_of(6)), first_label)).payload == 6


async def test_bytes_in_hand_are_bounded() -> None:
    """All bodies together have a budget; what one request held is free once it is done."""
    async with engine_at_work() as (engine, _):
        with engine.body_budget() as take:
            take(900)
            with engine.body_budget() as other, pytest.raises(Overloaded):
                other(101)
        with engine.body_budget() as take:
            take(1000)


async def test_a_deadline_that_has_passed_costs_no_decoding() -> None:
    """A request whose time is over is told so before anything is done for it."""
    async with engine_at_work() as (engine, worker):
        before = len(worker.runner.batches)
        with pytest.raises(DeadlineExceeded):
            await engine.predict(asked(png_of(1), seconds=-1), first_label)
        assert len(worker.runner.batches) == before


async def test_without_a_worker_the_engine_says_so() -> None:
    """Before any worker was heard of, predictions and the list of models are Unavailable."""
    settings = SETTINGS.with_changes(worker_address="ipc:///tmp/convmlp-test-nobody-is-here")
    async with open_front_end(settings) as front_end:
        assert not front_end.engine.readiness().ready
        with pytest.raises(Unavailable):
            front_end.engine.models()
        with pytest.raises(Unavailable):
            await front_end.engine.predict(asked(png_of(1)), first_label)


async def test_what_would_be_too_late_is_refused_undecoded(tmp_path: Path) -> None:
    """A worker told that an answer takes longer than the deadline: the picture is not looked at, its caller hears at
    once when to come back; the worker's next answer may say better."""
    settings = SETTINGS.with_changes(worker_address=f"ipc://{tmp_path}/w")
    no_picture = asked(png_of(1)[:40])
    async with open_front_end(settings) as front_end, ScriptedWorker(f"ipc://{tmp_path}/w") as worker:
        await worker.introduce()
        await until(lambda: front_end.engine.readiness().ready)

        async def answered(estimate: WaitEstimate) -> None:
            asking = asyncio.create_task(front_end.engine.predict(asked(png_of(1)), first_label))
            job = await worker.next_job()
            if estimate is NO_WAIT:
                with pytest.raises(Overloaded) as caught:
                    await front_end.engine.predict(no_picture, first_label)
                assert caught.value.reason is Refusal.QUEUE
                assert caught.value.retry_after_s > 90
            job.answer(estimate=estimate)
            await asking

        await answered(WaitEstimate(100.0, 1.0))
        with pytest.raises(ImageUndecodable):  # nothing else is in hand: it is tried, whatever is expected
            await front_end.engine.predict(no_picture, first_label)
        await answered(NO_WAIT)
        asking = asyncio.create_task(front_end.engine.predict(asked(png_of(1)), first_label))
        await worker.next_job()
        with pytest.raises(ImageUndecodable):
            await front_end.engine.predict(no_picture, first_label)
        asking.cancel()
