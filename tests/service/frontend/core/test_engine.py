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
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from model.bundle import BundleConfig
from model.errors import ImageTooLarge, ImageUndecodable
from model.types import ClassifyOutput, QueryParams, RawOutput, Size, Task
from service.errors import BadParameter, DeadlineExceeded, ModelNotFound, Overloaded, Refusal, Unavailable
from service.frontend.core.engine import Engine
from service.frontend.core.frontend import open_front_end
from service.frontend.core.request_log import RequestLog
from service.observability.metrics import FrontEndMetrics
from service.observability.tracing import NO_TRACING
from service.settings import Settings
from service.types import PredictRequest, Reply
from service.wire.messages import WaitEstimate
from tests.fakes import FakeWorker, fake_worker
from tests.service.wire.scripted_worker import NO_WAIT, ScriptedWorker
from tests.waiting import until

SETTINGS = Settings(models=("fake",), heartbeat_interval_ms=50, max_in_flight=2, max_in_flight_bytes=1000)


def png_of(level: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (60, 40), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def request_for(engine: Engine, image: bytes, *, seconds: float = 20) -> PredictRequest:
    model = engine.resolve(Task.CLASSIFY, None)
    return PredictRequest("r", model, image, QueryParams(top_k=1), time.monotonic() + seconds)


def first_label(raw: RawOutput, _: BundleConfig, __: Size) -> int:
    assert isinstance(raw, ClassifyOutput)
    return int(raw.indices[0])


@asynccontextmanager
async def engine_at_work(settings: Settings = SETTINGS) -> AsyncIterator[tuple[Engine, FakeWorker]]:
    async with (
        fake_worker(settings) as worker,
        open_front_end(settings.with_changes(worker_address=worker.address)) as front_end,
    ):
        await until(lambda: front_end.engine.readiness().ready)
        yield front_end.engine, worker


async def test_an_image_is_answered_by_the_task_s_default_model() -> None:
    """Bytes go in; what `encode` makes of the output comes out, with the times of the stages."""
    async with engine_at_work() as (engine, _):
        reply = await engine.predict(request_for(engine, png_of(77)), first_label)
        assert reply.payload == 77
        assert reply.timings.decode > 0
        assert reply.timings.infer > 0


async def test_a_model_is_resolved_or_refused_by_name() -> None:
    """Without a name it is the first of its task; an unknown name and a model of another task are errors."""
    async with engine_at_work() as (engine, _):
        assert engine.resolve(Task.CLASSIFY, None).config.name == "fake_classify"
        assert engine.resolve(Task.CLASSIFY, "fake_classify") is engine.resolve(Task.CLASSIFY, None)
        with pytest.raises(ModelNotFound, match="nonesuch"):
            engine.resolve(Task.CLASSIFY, "nonesuch")
        with pytest.raises(BadParameter, match="classify"):
            engine.resolve(Task.DETECT, "fake_classify")


async def test_a_bad_image_never_reaches_the_worker() -> None:
    """Undecodable bytes are refused in the front-end; they never reach the device."""
    async with engine_at_work() as (engine, worker):
        before = len(worker.runner.batches)
        with pytest.raises(ImageUndecodable):
            await engine.predict(request_for(engine, png_of(1)[:40]), first_label)
        assert len(worker.runner.batches) == before


async def test_images_in_flight_are_bounded() -> None:
    """Beyond the bound a request is refused at once, and the bound frees up again."""
    async with engine_at_work() as (engine, worker):
        worker.runner.unblocked.clear()
        held = [
            asyncio.create_task(engine.predict(request_for(engine, png_of(level)), first_label)) for level in (3, 4)
        ]
        await asyncio.sleep(0)  # both are admitted
        with pytest.raises(Overloaded):
            await engine.predict(request_for(engine, png_of(5)), first_label)
        worker.runner.unblocked.set()
        assert [(await one).payload for one in held] == [3, 4]
        assert (await engine.predict(request_for(engine, png_of(6)), first_label)).payload == 6


async def test_bytes_of_bodies_are_bounded() -> None:
    """All bodies together have a budget; what one request held is free once it is done."""
    async with engine_at_work() as (engine, _):
        log = RequestLog("rest", FrontEndMetrics(CollectorRegistry()), NO_TRACING, access_log=False)
        first, second = log.request("1", "POST"), log.request("2", "POST")
        engine.bodies.take(first, 900)
        with pytest.raises(Overloaded):
            engine.bodies.take(second, 101)
        engine.bodies.release(second)
        engine.bodies.release(first)
        engine.bodies.take(second, 1000)


async def test_a_caller_s_images_leave_room_for_others() -> None:
    """Of five places one caller gets four, however many it asks for; another one gets the fifth."""
    settings = SETTINGS.with_changes(max_in_flight=5)
    async with engine_at_work(settings) as (engine, worker):
        worker.runner.unblocked.clear()

        def asked(level: int, caller: str) -> asyncio.Task[Reply[int]]:
            request = replace(request_for(engine, png_of(level)), caller=caller)
            return asyncio.create_task(engine.predict(request, first_label))

        many = [asked(level, "many") for level in range(1, 8)]
        await until(lambda: sum(task.done() for task in many) == 3)
        another = asked(9, "another")
        worker.runner.unblocked.set()
        assert (await another).payload == 9
        outcomes = await asyncio.gather(*many, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
        assert len(refused) == 3
        assert all("its share" in error.detail for error in refused)


async def test_a_caller_s_bodies_leave_room_for_others() -> None:
    """A caller that holds four fifths of the bytes gets no more; another one does."""
    async with engine_at_work() as (engine, _):
        log = RequestLog("rest", FrontEndMetrics(CollectorRegistry()), NO_TRACING, access_log=False)
        records = [log.request(str(at), "POST") for at in range(10)]
        for record in records:
            record.caller = "many"
        for record in records[:8]:
            engine.bodies.take(record, 100)
        with pytest.raises(Overloaded, match="hold 800 bytes of at most 1000"):
            engine.bodies.take(records[8], 100)
        records[9].caller = "another"
        engine.bodies.take(records[9], 150)
        for record in records:
            engine.bodies.release(record)
        engine.bodies.take(records[8], 1000)


async def test_an_image_that_needs_too_much_memory_is_refused() -> None:
    """Its header shows it: nothing is decoded, and the error gives the limit."""
    async with engine_at_work(SETTINGS.with_changes(max_decoded_bytes=10_000)) as (engine, _):
        with pytest.raises(ImageTooLarge, match=r"bytes of memory; the limit is 10,000; scale it down"):
            await engine.predict(request_for(engine, png_of(1)), first_label)


async def test_inputs_that_wait_for_the_worker_count() -> None:
    """While the device is held, images are decoded only as long as the memory of their inputs fits."""
    async with engine_at_work(SETTINGS.with_changes(max_in_flight=100, max_decoded_bytes=20_000)) as (engine, worker):
        worker.runner.unblocked.clear()
        asking = [asyncio.create_task(engine.predict(request_for(engine, png_of(at)), first_label)) for at in range(8)]
        await until(lambda: 0 < engine.threads.waiting < 7)
        await asyncio.sleep(0.05)
        assert engine.threads.waiting > 0
        assert engine.threads.held_bytes <= 20_000
        worker.runner.unblocked.set()
        assert [(await one).payload for one in asking] == list(range(8))
        assert engine.threads.held_bytes == 0


async def test_memory_of_an_answered_image_is_free() -> None:
    """Also where its caller left, its deadline passed or it could not be decoded."""
    async with engine_at_work() as (engine, worker):
        await engine.predict(request_for(engine, png_of(1)), first_label)
        with pytest.raises(ImageUndecodable):
            await engine.predict(request_for(engine, png_of(1)[:60]), first_label)
        worker.runner.unblocked.clear()
        leaving = asyncio.create_task(engine.predict(request_for(engine, png_of(2)), first_label))
        await until(lambda: engine.threads.held_bytes > 0)
        leaving.cancel()
        with pytest.raises(DeadlineExceeded):
            await engine.predict(request_for(engine, png_of(3), seconds=0.2), first_label)
        await until(lambda: engine.threads.held_bytes == 0)


async def test_a_deadline_that_has_passed_costs_no_decoding() -> None:
    """A request whose deadline has passed is refused before anything is done for it."""
    async with engine_at_work() as (engine, worker):
        before = len(worker.runner.batches)
        with pytest.raises(DeadlineExceeded):
            await engine.predict(request_for(engine, png_of(1), seconds=-1), first_label)
        assert len(worker.runner.batches) == before


async def test_without_a_worker_the_engine_is_unavailable() -> None:
    """Before any worker reports, no model can be resolved and the list of models is Unavailable."""
    settings = SETTINGS.with_changes(worker_address="ipc:///tmp/convmlp-test-nobody-is-here")
    async with open_front_end(settings) as front_end:
        assert not front_end.engine.readiness().ready
        with pytest.raises(Unavailable):
            front_end.engine.models()
        with pytest.raises(Unavailable):
            front_end.engine.resolve(Task.CLASSIFY, None)


async def test_what_would_be_too_late_is_refused_undecoded(tmp_path: Path) -> None:
    """If the worker's estimate is after the deadline the picture is not decoded, and the caller gets the time to come
    back at once; the worker's next answer may bring a better estimate."""
    settings = SETTINGS.with_changes(worker_address=f"ipc://{tmp_path}/w")
    async with open_front_end(settings) as front_end, ScriptedWorker(f"ipc://{tmp_path}/w") as worker:
        await worker.introduce()
        await until(lambda: front_end.engine.readiness().ready)
        picture = request_for(front_end.engine, png_of(1))
        no_picture = request_for(front_end.engine, png_of(1)[:40])

        async def answered(estimate: WaitEstimate) -> None:
            asking = asyncio.create_task(
                front_end.engine.predict(request_for(front_end.engine, png_of(1)), first_label)
            )
            job = await worker.next_job()
            if estimate is NO_WAIT:
                with pytest.raises(Overloaded) as caught:
                    await front_end.engine.predict(no_picture, first_label)
                assert caught.value.reason is Refusal.QUEUE
                assert caught.value.retry_after_s > 90
            job.answer(estimate=estimate)
            await asking

        await answered(WaitEstimate(100.0, 1.0))
        with pytest.raises(ImageUndecodable):  # nothing else is in flight: it is tried, whatever the estimate
            await front_end.engine.predict(no_picture, first_label)
        await answered(NO_WAIT)
        asking = asyncio.create_task(front_end.engine.predict(picture, first_label))
        await worker.next_job()
        with pytest.raises(ImageUndecodable):
            await front_end.engine.predict(no_picture, first_label)
        asking.cancel()
