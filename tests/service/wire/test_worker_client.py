"""Both ends of the wire over real sockets: a real worker but for its device, or a bare door."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq
import zmq.asyncio

from model.types import (
    ClassifyOutput,
    DetectOutput,
    Geometry,
    QueryParams,
    RawOutput,
    SegmentOutput,
    Task,
)
from service.errors import DeadlineExceeded, Internal, Unavailable
from service.settings import Settings
from service.wire.messages import PROTOCOL, Answers, Hello, Phase, Predict, decode_to_front_end, encode
from service.wire.worker_client import WorkerAnswer, WorkerClient
from service.wire.worker_endpoint import WorkerEndpoint
from service.wire.worker_view import NO_WORKER
from service.worker.model_registry import new_model
from tests.fakes import fake_answer, fake_bundle, fake_worker
from tests.service.wire.peers import NOTHING_AHEAD, SIZE, introduce, next_job, picture, until

SETTINGS = Settings(models=("fake",), heartbeat_interval_ms=50)


@asynccontextmanager
async def channel_to(
    address: str, timeout_s: float = 30.0, on_replaced: Callable[[], None] = lambda: None
) -> AsyncIterator[WorkerClient]:
    async with WorkerClient(address, 0.05, timeout_s, lambda: None, on_replaced) as channel:
        yield channel


async def ask(channel: WorkerClient, model: str, level: int = 1, seconds: float = 20.0) -> WorkerAnswer:
    return await channel.predict(
        "r", model, version_of(channel, model), picture(level), QueryParams(), time.monotonic() + seconds
    )


def version_of(channel: WorkerClient, model: str) -> str:
    return next(offer.version for offer in channel.view().offers or () if offer.config.name == model)


def ready(channel: WorkerClient) -> bool:
    """Whether a worker is there, and all of its models are proven."""
    view = channel.view()
    return view.phase is Phase.READY and all(offer.ready for offer in view.offers or ())


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


async def test_each_kind_of_answer_arrives_as_it_was() -> None:
    """Arrays of every task cross the wire unchanged, to the caller who asked, many at once."""
    async with fake_worker(SETTINGS) as worker, channel_to(worker.address) as channel:
        await until(lambda: ready(channel))
        asked = [(task, level) for task in Task for level in range(10)]
        answers = await asyncio.gather(*(ask(channel, f"fake_{task.value}", level) for task, level in asked))
        for (task, level), answer in zip(asked, answers, strict=True):
            one = picture(level)
            assert_equal(answer.output, fake_answer(task, one.pixels, one.geometry, QueryParams()))


async def test_empty_detections_arrive() -> None:
    """An answer with no detections is an answer: arrays of length 0 cross the wire."""
    async with fake_worker(SETTINGS, tasks=[Task.DETECT]) as worker, channel_to(worker.address) as channel:
        await until(lambda: ready(channel))
        params = QueryParams(score_threshold=1.0)
        version = version_of(channel, "fake_detect")
        answer = await channel.predict("r", "fake_detect", version, picture(3), params, time.monotonic() + 20)
        assert isinstance(answer.output, DetectOutput)
        assert answer.output.boxes.shape == (0, 4)


async def test_answers_that_leave_together_come_apart_rightly(tmp_path: Path) -> None:
    """Small outputs and large ones, answered at once, each reach their own caller, with the size of their batch."""
    outputs: list[RawOutput] = [
        SegmentOutput(np.full((300, 400), 7, np.uint8)),
        ClassifyOutput(np.arange(5), np.ones(5, np.float32)),
        DetectOutput(
            np.ones((90, 4), np.float32), np.ones(90, np.float32), np.arange(90), np.ones((90, 28, 28), np.float32)
        ),
        SegmentOutput(np.full((3, 4), 9, np.uint16)),
    ]
    async with channel_to(f"ipc://{tmp_path}/w") as channel, WorkerEndpoint(f"ipc://{tmp_path}/w") as door:
        await introduce(door)
        await until(lambda: ready(channel))
        asked = [asyncio.create_task(ask(channel, "fake_classify")) for _ in outputs]
        jobs = [await next_job(door) for _ in outputs]
        for (letter, job), output in zip(jobs, outputs, strict=True):
            door.answer(letter.sender, job, output, 0.25, 0.5, len(outputs), NOTHING_AHEAD)
        for answer, output in zip(await asyncio.gather(*asked), outputs, strict=True):
            assert_equal(answer.output, output)
            assert (answer.queue_s, answer.infer_s, answer.batch_images) == (0.25, 0.5, 4)


async def test_a_malformed_answer_costs_its_own_job_only(tmp_path: Path) -> None:
    """An answer that cannot be read is told its caller as an error at once; those beside it arrive."""
    good = ClassifyOutput(np.arange(5), np.ones(5, np.float32))
    bad = ClassifyOutput(np.array([None]), np.ones(1, np.float32))
    async with channel_to(f"ipc://{tmp_path}/w") as channel, WorkerEndpoint(f"ipc://{tmp_path}/w") as door:
        await introduce(door)
        await until(lambda: ready(channel))
        asked = [asyncio.create_task(ask(channel, "fake_classify")) for _ in range(3)]
        for output in (good, bad, good):
            letter, job = await next_job(door)
            door.answer(letter.sender, job, output, 0.0, 0.0, 3, NOTHING_AHEAD)
        first, broken, last = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(broken, Internal)
        for answer in (first, last):
            assert isinstance(answer, WorkerAnswer)
            assert_equal(answer.output, good)


async def test_a_batch_is_answered_in_one_message() -> None:
    """What one batch brought to one front-end costs one message."""
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as worker, channel_to(worker.address) as channel:
        await until(lambda: ready(channel))
        context = zmq.asyncio.Context()
        with context.socket(zmq.DEALER) as front_end:
            front_end.setsockopt(zmq.LINGER, 0)
            front_end.connect(worker.address)
            before = len(worker.runner.batches)
            worker.runner.gate.clear()
            await send_predict(front_end, 1)
            await until(lambda: len(worker.runner.batches) == before + 1)
            for job in range(2, 6):
                await send_predict(front_end, job)
            depth = "convmlp_queue_depth"
            await until(lambda: worker.registry.get_sample_value(depth, {"model": "fake_classify"}) == 4)
            worker.runner.gate.set()
            answered: list[list[int]] = []
            while sum(map(len, answered)) < 5:
                message = decode_to_front_end((await front_end.recv_multipart())[0])
                assert isinstance(message, Answers)
                answered.append([one.job for one in message.answers])
        context.term()
        assert [job for jobs in answered for job in jobs] == [1, 2, 3, 4, 5]
        # How many share a batch was measured, and is the machine's affair.
        assert [len(jobs) for jobs in answered] == [images for _, images in worker.runner.batches[before:]]


async def test_the_front_end_learns_what_is_served() -> None:
    """The worker's bundles' configs reach the front-end complete, in the worker's order."""
    async with fake_worker(SETTINGS) as worker, channel_to(worker.address) as channel:
        await until(lambda: ready(channel))
        offers = channel.view().offers
        assert offers is not None
        assert [offer.config for offer in offers] == [fake_bundle(task).config for task in Task]
        assert {offer.ready for offer in offers} == {True}


async def test_without_a_worker_a_request_fails_at_once(tmp_path: Path) -> None:
    """No worker: Unavailable without waiting, and nothing is kept in line for later."""
    address = f"ipc://{tmp_path}/w"
    async with channel_to(address) as channel:
        async with fake_worker(SETTINGS, address):
            await until(lambda: ready(channel))
        await until(lambda: channel.view().reason == NO_WORKER)
        with pytest.raises(Unavailable, match=NO_WORKER):
            await ask(channel, "fake_classify")
        with pytest.raises(Unavailable, match=NO_WORKER):
            await channel.repository(time.monotonic() + 20)


async def test_a_deadline_ends_the_wait_and_withdraws_the_job() -> None:
    """The caller is told in time, and the worker does not run what nobody waits for any more."""
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as worker, channel_to(worker.address) as channel:
        await until(lambda: ready(channel))
        before = len(worker.runner.batches)
        worker.runner.gate.clear()
        first = asyncio.create_task(ask(channel, "fake_classify"))
        await until(lambda: len(worker.runner.batches) == before + 1)
        with pytest.raises(DeadlineExceeded):
            await ask(channel, "fake_classify", seconds=0.2)
        await until(lambda: worker.registry.get_sample_value("convmlp_queue_depth", {"model": "fake_classify"}) == 0)
        worker.runner.gate.set()
        await first
        assert len(worker.runner.batches) == before + 1


async def test_a_caller_that_leaves_withdraws_its_job() -> None:
    """Cancelling a call takes its job out of the worker's queue."""
    async with fake_worker(SETTINGS, tasks=[Task.CLASSIFY]) as worker, channel_to(worker.address) as channel:
        await until(lambda: ready(channel))

        def depth() -> float | None:
            return worker.registry.get_sample_value("convmlp_queue_depth", {"model": "fake_classify"})

        before = len(worker.runner.batches)
        worker.runner.gate.clear()
        first = asyncio.create_task(ask(channel, "fake_classify"))
        await until(lambda: len(worker.runner.batches) == before + 1)
        second = asyncio.create_task(ask(channel, "fake_classify"))
        await until(lambda: depth() == 1)
        second.cancel()
        await until(lambda: depth() == 0)
        worker.runner.gate.set()
        await first
        assert len(worker.runner.batches) == before + 1


async def test_a_worker_that_disappears_fails_its_jobs_at_once(tmp_path: Path) -> None:
    """When the connection breaks, jobs in hand fail with Unavailable long before their deadline."""
    address = f"ipc://{tmp_path}/w"
    async with channel_to(address) as channel:
        async with WorkerEndpoint(address) as door:
            await introduce(door, "one")
            await until(lambda: ready(channel))
            asked = asyncio.create_task(ask(channel, "fake_classify", seconds=1000))
            await next_job(door)
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable, match="send the request again"):
                await asked
        assert channel.phase is None


async def test_what_waits_at_a_worker_is_told_in_pixels_and_in_its_own_seconds(tmp_path: Path) -> None:
    """Work in hand counts from its sending to its end, however it ends; the worker's own word is the last one heard."""
    async with channel_to(f"ipc://{tmp_path}/w") as channel, WorkerEndpoint(f"ipc://{tmp_path}/w") as door:
        await introduce(door, "one", backlog_s=7.5)
        await until(lambda: ready(channel))
        assert channel.outstanding() == (0, 7.5)
        asked = [asyncio.create_task(ask(channel, "fake_classify", seconds=20)) for _ in range(2)]
        await until(lambda: channel.outstanding() == (2 * 32 * 64, 7.5))
        asked.pop().cancel()
        await until(lambda: channel.outstanding() == (32 * 64, 7.5))
        asked.pop().cancel()
        await until(lambda: channel.outstanding() == (0, 7.5))


async def test_a_worker_that_took_another_one_s_place_is_told_once(tmp_path: Path) -> None:
    """A worker that comes back after its connection broke is the same one; only another instance is another worker."""
    replaced: list[str] = []
    address = f"ipc://{tmp_path}/w"
    async with channel_to(address, on_replaced=lambda: replaced.append("once")) as channel:
        for instance, known in (("one", 0), ("one", 0), ("two", 1), ("two", 1)):
            async with WorkerEndpoint(address) as door:
                await introduce(door, instance)
                await until(lambda: ready(channel))
                assert len(replaced) == known
            await until(lambda: channel.phase is None)


async def test_a_silent_worker_is_taken_for_lost(tmp_path: Path) -> None:
    """A worker whose connection stands but who says nothing is lost after the timeout; its jobs fail then."""
    address = f"ipc://{tmp_path}/w"
    async with channel_to(address, timeout_s=0.3) as channel, WorkerEndpoint(address) as door:
        await introduce(door, "one")
        await until(lambda: ready(channel))
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable, match="silent"):
                await ask(channel, "fake_classify", seconds=1000)


async def test_garbage_does_not_end_a_worker() -> None:
    """Bytes that are no message, another protocol, and frames unlike their header cost nobody else anything."""
    async with fake_worker(SETTINGS) as worker, channel_to(worker.address) as channel:
        await until(lambda: ready(channel))
        context = zmq.asyncio.Context()
        with context.socket(zmq.DEALER) as stranger:
            stranger.setsockopt(zmq.LINGER, 0)
            stranger.connect(worker.address)
            await stranger.send_multipart([b"\xff\xfe garbage"])
            await stranger.send_multipart([b""])
            await stranger.send_multipart([encode(Hello(PROTOCOL + 1, ()))])
            await stranger.send_multipart([predict_32x32(), b"too short"])
            await stranger.send_multipart([predict_32x32()])
            failures = [await stranger.recv_multipart() for _ in range(2)]
            assert all(b"internal" in header for (header,) in failures)
        context.term()
        await ask(channel, "fake_classify")


async def send_predict(front_end: zmq.asyncio.Socket, job: int) -> None:
    await front_end.send_multipart([predict_32x32(job), bytes(32 * 32 * 3)])


def predict_32x32(job: int = 1) -> bytes:
    model = new_model(fake_bundle(Task.CLASSIFY))
    return encode(Predict(job, "r", model.name, model.version, 32, 32, Geometry(SIZE, SIZE), QueryParams(), 10.0))
