"""Both ends of the wire over real sockets: a real worker with a fake device, or a scripted worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import structlog

from model.types import (
    ClassifyOutput,
    DetectOutput,
    Geometry,
    QueryParams,
    RawOutput,
    SegmentOutput,
    Task,
)
from service.errors import DeadlineExceeded, Internal, ModelNotFound, Unavailable
from service.settings import Settings
from service.wire.messages import (
    PROTOCOL,
    Answers,
    Cancel,
    ListStore,
    Phase,
    Predict,
    Predicts,
    ProtocolMismatch,
    State,
    encode,
)
from service.wire.worker_client import WorkerClient
from service.wire.worker_view import NO_WORKER, WorkerAnswer
from service.worker.model_registry import new_model
from tests.fakes import fake_answer, fake_bundle, fake_worker
from tests.model.batches import segment_output
from tests.service.wire.raw_front_end import RawFrontEnd
from tests.service.wire.scripted_worker import ScriptedWorker
from tests.service.wire.worker_pool import SIZE, far_deadline_s, picture
from tests.waiting import PATIENCE_S, until

SETTINGS = Settings(models=("fake",), heartbeat_interval_ms=50)


@asynccontextmanager
async def connect(
    address: str, timeout_s: float = 30.0, on_replaced: Callable[[], None] = lambda: None
) -> AsyncIterator[WorkerClient]:
    async with WorkerClient(address, 0.05, timeout_s, lambda: None, on_replaced) as client:
        yield client


async def predict(
    client: WorkerClient, model: str = "fake_classify", level: int = 1, seconds: float = 20.0
) -> WorkerAnswer:
    return await client.predict(
        "r", model, version_of(client, model), picture(level), QueryParams(), time.monotonic() + seconds
    )


def version_of(client: WorkerClient, model: str) -> str:
    return next(served.version for served in client.view().models or () if served.config.name == model)


def ready(client: WorkerClient) -> bool:
    """Whether a worker is there, and all of its models are proven."""
    view = client.view()
    return view.phase is Phase.READY and all(model.ready for model in view.models or ())


def assert_equal(found: RawOutput, expected: RawOutput) -> None:
    match found, expected:
        case ClassifyOutput(), ClassifyOutput():
            np.testing.assert_array_equal(found.indices, expected.indices)
            np.testing.assert_array_equal(found.scores, expected.scores)
        case DetectOutput(), DetectOutput():
            np.testing.assert_array_equal(found.boxes, expected.boxes)
            np.testing.assert_array_equal(found.classes, expected.classes)
            assert found.mask_logits is not None
            np.testing.assert_array_equal(found.mask_logits, expected.mask_logits)
        case SegmentOutput(), SegmentOutput():
            np.testing.assert_array_equal(found.label_map, expected.label_map)
        case _:
            pytest.fail(f"{type(found)} is not {type(expected)}")


async def test_every_kind_of_answer_arrives_unchanged() -> None:
    """Arrays of every task cross the wire unchanged, each to its own caller, many at once."""
    async with fake_worker(SETTINGS) as worker, connect(worker.address) as client:
        await until(lambda: ready(client))
        asked = [(task, level) for task in Task for level in range(10)]
        answers = await asyncio.gather(*(predict(client, f"fake_{task.value}", level) for task, level in asked))
        for (task, level), answer in zip(asked, answers, strict=True):
            one = picture(level)
            assert_equal(answer.output, fake_answer(task, one.pixels, one.geometry, QueryParams()))


async def test_empty_detections_arrive() -> None:
    """An answer with no detections is an answer: arrays of length 0 cross the wire."""
    async with fake_worker(SETTINGS, tasks=[Task.DETECT]) as worker, connect(worker.address) as client:
        await until(lambda: ready(client))
        params = QueryParams(score_threshold=1.0)
        version = version_of(client, "fake_detect")
        answer = await client.predict("r", "fake_detect", version, picture(3), params, time.monotonic() + 20)
        assert isinstance(answer.output, DetectOutput)
        assert answer.output.boxes.shape == (0, 4)


async def test_answers_of_one_message_reach_their_own_callers(tmp_path: Path) -> None:
    """Small and large outputs that are answered together each reach their caller, with the size of their batch."""
    outputs: list[RawOutput] = [
        segment_output(np.full((300, 400), 7, np.uint8), 8, QueryParams(confidence_map=True)),
        ClassifyOutput(np.arange(5), np.ones(5, np.float32)),
        DetectOutput(
            np.ones((90, 4), np.float32), np.ones(90, np.float32), np.arange(90), np.ones((90, 28, 28), np.float32)
        ),
        segment_output(np.full((3, 4), 9, np.uint16), 10),
    ]
    async with connect(f"ipc://{tmp_path}/w") as client, ScriptedWorker(f"ipc://{tmp_path}/w") as worker:
        await worker.introduce()
        await until(lambda: ready(client))
        asked = [asyncio.create_task(predict(client)) for _ in outputs]
        jobs = [await worker.next_job() for _ in outputs]
        for job, output in zip(jobs, outputs, strict=True):
            job.answer(output=output, queue_s=0.25, infer_s=0.5, batch_images=len(outputs))
        for answer, output in zip(await asyncio.gather(*asked), outputs, strict=True):
            assert_equal(answer.output, output)
            assert (answer.queue_s, answer.infer_s, answer.batch_images) == (0.25, 0.5, 4)


async def test_a_malformed_answer_costs_its_own_job_only(tmp_path: Path) -> None:
    """A malformed answer is Internal for its caller; the other answers of its message arrive."""
    good = ClassifyOutput(np.arange(5), np.ones(5, np.float32))
    bad = ClassifyOutput(np.array([None]), np.ones(1, np.float32))
    async with connect(f"ipc://{tmp_path}/w") as client, ScriptedWorker(f"ipc://{tmp_path}/w") as worker:
        await worker.introduce()
        await until(lambda: ready(client))
        asked = [asyncio.create_task(predict(client)) for _ in range(3)]
        for output in (good, bad, good):
            (await worker.next_job()).answer(output=output)
        first, broken, last = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(broken, Internal)
        for answer in (first, last):
            assert isinstance(answer, WorkerAnswer)
            assert_equal(answer.output, good)


async def test_a_batch_is_answered_in_one_message() -> None:
    """All answers of a batch to one front-end are one message."""
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as worker, connect(worker.address) as client:
        await until(lambda: ready(client))
        async with RawFrontEnd(worker.address) as front_end:
            before = len(worker.runner.batches)
            worker.runner.unblocked.clear()
            send_predict(front_end, 1)
            await until(lambda: len(worker.runner.batches) == before + 1)
            for job in range(2, 6):
                send_predict(front_end, job)
            depth = "convmlp_queue_depth"
            await until(lambda: worker.registry.get_sample_value(depth, {"model": "fake_classify"}) == 4)
            worker.runner.unblocked.set()
            answered: list[list[int]] = []
            while sum(map(len, answered)) < 5:
                message = await front_end.receive()
                assert isinstance(message, Answers)
                answered.append([one.job for one in message.answers])
        assert [job for jobs in answered for job in jobs] == [1, 2, 3, 4, 5]
        # The sizes of the batches were measured and depend on the machine.
        assert [len(jobs) for jobs in answered] == [images for _, images in worker.runner.batches[before:]]


async def test_the_front_end_learns_what_is_served() -> None:
    """The worker's bundles' configs reach the front-end complete, in the worker's order."""
    async with fake_worker(SETTINGS) as worker, connect(worker.address) as client:
        await until(lambda: ready(client))
        models = client.view().models
        assert models is not None
        assert [model.config for model in models] == [fake_bundle(task).config for task in Task]
        assert {model.ready for model in models} == {True}


async def test_without_a_worker_a_request_fails_at_once(tmp_path: Path) -> None:
    """Without a worker a request is Unavailable at once, and nothing is queued for later."""
    address = f"ipc://{tmp_path}/w"
    async with connect(address) as client:
        async with fake_worker(SETTINGS, address):
            await until(lambda: ready(client))
        await until(lambda: client.view().reason == NO_WORKER)
        with pytest.raises(Unavailable, match=NO_WORKER):
            await predict(client)
        with pytest.raises(Unavailable, match=NO_WORKER):
            await client.repository(time.monotonic() + 20)


async def test_a_deadline_ends_the_wait_and_cancels_the_job() -> None:
    """The caller gets its error in time, and the worker does not run the job."""
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as worker, connect(worker.address) as client:
        await until(lambda: ready(client))
        before = len(worker.runner.batches)
        worker.runner.unblocked.clear()
        first = asyncio.create_task(predict(client))
        await until(lambda: len(worker.runner.batches) == before + 1)
        with pytest.raises(DeadlineExceeded):
            await predict(client, seconds=0.5)
        await until(lambda: worker.registry.get_sample_value("convmlp_queue_depth", {"model": "fake_classify"}) == 0)
        worker.runner.unblocked.set()
        await first
        assert len(worker.runner.batches) == before + 1


async def test_a_cancelled_call_cancels_its_job() -> None:
    """Cancelling a call removes its job from the worker's queue."""
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as worker, connect(worker.address) as client:
        await until(lambda: ready(client))

        def depth() -> float | None:
            return worker.registry.get_sample_value("convmlp_queue_depth", {"model": "fake_classify"})

        before = len(worker.runner.batches)
        worker.runner.unblocked.clear()
        first = asyncio.create_task(predict(client))
        await until(lambda: len(worker.runner.batches) == before + 1)
        second = asyncio.create_task(predict(client))
        await until(lambda: depth() == 1)
        second.cancel()
        await until(lambda: depth() == 0)
        worker.runner.unblocked.set()
        await first
        assert len(worker.runner.batches) == before + 1


async def test_a_worker_that_disappears_fails_its_jobs_at_once(tmp_path: Path) -> None:
    """When the connection breaks, pending jobs fail with Unavailable long before their deadline."""
    address = f"ipc://{tmp_path}/w"
    async with connect(address) as client:
        async with ScriptedWorker(address) as worker:
            await worker.introduce()
            await until(lambda: ready(client))
            asked = asyncio.create_task(predict(client, seconds=1000))
            await worker.next_job()
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(Unavailable, match="send the request again"):
                await asked
        assert client.phase is None


async def test_outstanding_work_is_pixels_sent_and_the_worker_s_seconds(tmp_path: Path) -> None:
    """A job's pixels count from its sending to its end, however it ends; the seconds are the worker's latest."""
    async with connect(f"ipc://{tmp_path}/w") as client, ScriptedWorker(f"ipc://{tmp_path}/w") as worker:
        await worker.introduce(retry_after_s=7.5)
        await until(lambda: ready(client))
        assert client.outstanding() == (0, 7.5)
        asked = [asyncio.create_task(predict(client, seconds=20)) for _ in range(2)]
        await until(lambda: client.outstanding() == (2 * 32 * 64, 7.5))
        asked.pop().cancel()
        await until(lambda: client.outstanding() == (32 * 64, 7.5))
        asked.pop().cancel()
        await until(lambda: client.outstanding() == (0, 7.5))


async def test_a_replaced_worker_is_reported_once(tmp_path: Path) -> None:
    """A worker that connects again is the same one; only another instance replaces it."""
    replaced: list[str] = []
    address = f"ipc://{tmp_path}/w"
    async with connect(address, on_replaced=lambda: replaced.append("once")) as client:
        for instance, known in (("one", 0), ("one", 0), ("two", 1), ("two", 1)):
            async with ScriptedWorker(address) as worker:
                await worker.introduce(instance)
                await until(lambda: ready(client))
                assert len(replaced) == known
            await until(lambda: client.phase is None)


async def test_a_silent_worker_counts_as_lost(tmp_path: Path) -> None:
    """A connected worker that sends nothing is lost after the timeout: its jobs fail, and it gets no others."""
    address = f"ipc://{tmp_path}/w"
    async with connect(address, timeout_s=0.5) as client, ScriptedWorker(address) as worker:
        await worker.introduce()
        await until(lambda: ready(client))
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(Unavailable, match="silent"):
                await predict(client, seconds=1000)
            with pytest.raises(Unavailable, match=NO_WORKER):
                await predict(client, seconds=1000)


async def test_a_front_end_that_stood_still_loses_no_worker() -> None:
    """A worker whose messages a front-end could not read, because itself did not run, has not been silent."""
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as worker, connect(worker.address, timeout_s=0.5) as client:
        await until(lambda: ready(client))
        before = len(worker.runner.batches)
        worker.runner.unblocked.clear()
        asked = asyncio.create_task(predict(client))
        await until(lambda: len(worker.runner.batches) == before + 1)
        time.sleep(1.0)  # noqa: ASYNC251  (it is what stops the front-end)
        worker.runner.unblocked.set()
        await asked


async def test_nothing_is_kept_of_a_request_that_ended(tmp_path: Path) -> None:
    """Failed, late, cancelled or never sent: no request stays pending, and a later answer to it is ignored."""
    address = f"ipc://{tmp_path}/w"
    async with connect(address) as client:
        with pytest.raises(Unavailable):
            await client.repository(far_deadline_s())
        with pytest.raises(DeadlineExceeded):
            await client.repository(time.monotonic() - 1)
        async with ScriptedWorker(address) as worker:
            await worker.introduce()
            await until(lambda: ready(client))
            failed = asyncio.create_task(predict(client))
            (await worker.next_job()).fail(ModelNotFound("none"))
            with pytest.raises(ModelNotFound):
                await failed
            late = asyncio.create_task(predict(client, seconds=2.0))
            late_job = await worker.next_job()
            with pytest.raises(DeadlineExceeded):
                await late
            cancelled = asyncio.create_task(predict(client))
            cancelled_job = await worker.next_job()
            cancelled.cancel()
            await asyncio.wait([cancelled])
            for job in (late_job, cancelled_job):
                job.answer()
                job.fail(ModelNotFound("none"))
            assert client.outstanding() == (0, 0.0)
            answered = asyncio.create_task(predict(client))
            (await worker.next_job()).answer()
            await answered


async def test_a_job_is_cancelled_under_its_own_number(tmp_path: Path) -> None:
    """A Cancel names the job of the call that ended, and numbers are never used twice."""
    address = f"ipc://{tmp_path}/w"
    async with connect(address) as client, ScriptedWorker(address) as worker:
        await worker.introduce()
        await until(lambda: ready(client))
        calls = [asyncio.create_task(client.repository(far_deadline_s())), asyncio.create_task(predict(client))]
        numbers = [message.job async for message in requests(worker, 2)]
        assert len(set(numbers)) == 2
        for call, number in zip(calls, numbers, strict=True):
            call.cancel()
            assert [message async for message in requests(worker, 1)] == [Cancel(number)]


async def requests(worker: ScriptedWorker, count: int) -> AsyncIterator[Predict | ListStore | Cancel]:
    """The next messages about jobs."""
    while count:
        message = (await worker.receive()).message
        if isinstance(message, Predict | ListStore | Cancel):
            count -= 1
            yield message


async def test_garbage_does_not_end_a_worker() -> None:
    """Malformed messages, another protocol, and frames that do not fit their header do not disturb other requests."""
    async with fake_worker(SETTINGS) as worker, connect(worker.address) as client:
        await until(lambda: ready(client))
        async with RawFrontEnd(worker.address) as stranger:
            stranger.send(b"\xff\xfe garbage")
            stranger.send(predict_32x32(), b"too short")
            stranger.send(predict_32x32(), b"")
            stranger.send(predict_32x32())
            stranger.send(predict_32x32(2, 3), bytes(32 * 32 * 3))
            failed: list[int] = []
            while len(failed) < 5:  # some may be answered together
                answers = await stranger.receive()
                assert isinstance(answers, Answers)
                assert all(failure.code == "internal" for failure in answers.failures)
                failed += [failure.job for failure in answers.failures]
            assert failed == [1, 1, 1, 2, 3]
        await predict(client)


async def test_a_worker_of_another_protocol_is_named(tmp_path: Path) -> None:
    """Callers get the reason why a front-end cannot use a worker, and answers when the worker is updated."""
    reason = f"the worker speaks protocol {PROTOCOL + 1}, this front-end {PROTOCOL}; update both to the same version"
    with structlog.testing.capture_logs() as logged:
        async with ScriptedWorker(f"ipc://{tmp_path}/w") as worker, connect(worker.address) as client:
            for state in (None, State("one", Phase.READY, "ready", 0.0, (), {}), None):
                sender = (await worker.receive()).sender
                if state is None:
                    worker._send(sender, ProtocolMismatch(PROTOCOL + 1))
                    await until(lambda: client.view().reason == reason)
                    assert client.phase is None
                    with pytest.raises(Unavailable, match=reason):
                        await client.repository(far_deadline_s())
                else:
                    worker.send_state(sender, state)
                    await until(lambda: client.phase is Phase.READY)
    assert [line["event"] for line in logged] == ["a worker cannot be used", "a worker cannot be used", "worker lost"]


def send_predict(front_end: RawFrontEnd, job: int) -> None:
    front_end.send(predict_32x32(job), bytes(32 * 32 * 3))


def predict_32x32(*jobs: int) -> bytes:
    """The header of so many jobs; of job 1 without a number."""
    model, geometry = new_model(fake_bundle(Task.CLASSIFY)), Geometry(SIZE, SIZE)
    names = model.name, model.version
    return encode(
        Predicts(tuple([Predict(job, "r", *names, 32, 32, geometry, QueryParams(), 10.0) for job in jobs or (1,)]))
    )
