"""Streams: limits, cancellation, deadlines, and what they leave to other calls."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable

import grpc
import numpy as np
import PIL.Image
import pytest

from convmlp.v1 import vision_pb2 as pb
from tests.service.frontend.api.vision.classify_stream import next_of, request, rest_of, send, status_of
from tests.service.frontend.grpc_server import RpcWithWorker, open_rpc, reason, retry_s, stub_of
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_half_closing_waits_for_the_replies(fresh_rpc: RpcWithWorker) -> None:
    """A client may end its messages long before they are answered; no reply is lost."""
    fresh_rpc.worker.runner.unblocked.clear()
    stream = fresh_rpc.stub.ClassifyStream()
    await send(stream, [request(str(grey), grey) for grey in range(10)])
    await until(lambda: fresh_rpc.in_flight == 10)
    fresh_rpc.worker.runner.unblocked.set()
    assert len(await rest_of(stream)) == 10


@pytest.mark.settings(max_stream_in_flight=4)
async def test_a_fast_client_is_read_no_faster_than_answered(fresh_rpc: RpcWithWorker) -> None:
    """However fast a client sends, its stream has a limited number of images in flight, and other calls are served."""
    fresh_rpc.worker.runner.unblocked.clear()
    stream = fresh_rpc.stub.ClassifyStream()
    sending = asyncio.create_task(send(stream, [request(str(at), at) for at in range(100)]))
    await until(lambda: fresh_rpc.in_flight == 4)
    other = fresh_rpc.stub.Classify(request("other", 200))
    await until(lambda: fresh_rpc.in_flight == 5)
    for _ in range(20):  # time enough for more to be read, if any were
        reply = fresh_rpc.stub.Classify(pb.ClassifyRequest(image=b"%PDF"))
        assert await reply.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert fresh_rpc.in_flight == 5
    fresh_rpc.worker.runner.unblocked.set()
    assert (await other).labels[0].index == 200
    assert {reply.labels[0].index for reply in await rest_of(stream)} == set(range(100))
    await sending


async def test_a_client_that_does_not_read_delays_only_itself() -> None:
    """Replies that are not read stop the reading of their own stream only, and none is lost."""
    total, bound = 300, 4
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 2**16)]
    async with open_rpc(options, max_stream_in_flight=bound) as rpc:
        stream = rpc.stub.ClassifyStream()
        bitmap = io.BytesIO()
        PIL.Image.fromarray(np.full((60, 80, 3), 9, np.uint8)).save(bitmap, "BMP")
        assert len(bitmap.getvalue()) > 14_000
        # Replies of 256 labels, 5 kB each: about a dozen fit into the connection's window.
        requests = [pb.ClassifyRequest(id=str(at), image=bitmap.getvalue(), top_k=256) for at in range(total)]
        sending = asyncio.create_task(send(stream, requests))
        answered = await settled(lambda: rpc.outcomes("classify", "ok"))
        assert bound <= answered < bound + 40
        async with grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}") as channel:
            classify = stub_of(channel).Classify
            for grey in range(10):
                assert (await classify(request("", grey), timeout=PATIENCE_S)).labels[0].index == grey
        assert rpc.outcomes("classify", "ok") == answered + 10
        assert {reply.id for reply in await rest_of(stream)} == {str(at) for at in range(total)}
        await sending


async def test_a_client_that_cancels_with_unread_replies(caplog: pytest.LogCaptureFixture) -> None:
    """A client that cancels with unread replies leaves no images in flight and no error in the log."""
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 2**16)]
    async with open_rpc(options, max_stream_in_flight=8) as rpc:
        stream = rpc.stub.ClassifyStream()
        sending = asyncio.create_task(send(stream, [request(str(at), top_k=256) for at in range(100)]))
        await settled(lambda: rpc.outcomes("classify", "ok"))
        stream.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert (await rpc.stub.Classify(request("other", 6))).labels[0].index == 6
        assert rpc.in_flight == 0
    assert not caplog.records


async def settled(count: Callable[[], float]) -> float:
    """A count once it has stopped changing."""
    value, unchanged = 0.0, 0
    async with asyncio.timeout(PATIENCE_S):
        while unchanged < 25:
            await asyncio.sleep(0.02)
            before, value = value, count()
            unchanged = unchanged + 1 if value == before > 0 else 0
    return value


async def test_cancelling_a_stream_cancels_its_jobs(fresh_rpc: RpcWithWorker) -> None:
    """Cancelling a stream removes its jobs from the worker's queue; only the batch on the device runs."""
    before = len(fresh_rpc.worker.runner.batches)
    fresh_rpc.worker.runner.unblocked.clear()
    stream = fresh_rpc.stub.ClassifyStream()
    await send(stream, [request("first")], close=False)
    await until(lambda: len(fresh_rpc.worker.runner.batches) == before + 1)
    await send(stream, [request(str(at)) for at in range(5)], close=False)
    await until(lambda: fresh_rpc.waiting == 5)
    stream.cancel()
    await until(lambda: fresh_rpc.waiting == 0 and fresh_rpc.in_flight == 0)
    await until(lambda: fresh_rpc.outcomes("classify", "cancelled") == 6)
    fresh_rpc.worker.runner.unblocked.set()
    await fresh_rpc.stub.Classify(request("other"))
    assert fresh_rpc.worker.runner.batches[before:] == [("fake_classify", 1)] * 2


async def test_the_streams_deadline_ends_it_and_its_jobs(fresh_rpc: RpcWithWorker) -> None:
    """A stream's deadline applies to its messages: when it passes, they leave the queue."""
    fresh_rpc.worker.runner.unblocked.clear()
    stream = fresh_rpc.stub.ClassifyStream(timeout=2.0)
    await send(stream, [request(str(at)) for at in range(3)], close=False)
    assert await status_of(stream) is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: fresh_rpc.in_flight == 0)
    await until(lambda: fresh_rpc.outcomes("classify", "deadline-exceeded") == 3)


@pytest.mark.settings(request_timeout_ms=4000)
async def test_each_message_has_the_services_time_from_its_arrival(fresh_rpc: RpcWithWorker) -> None:
    """The service's timeout counts from each message's arrival; a late one is an error in its own reply."""
    fresh_rpc.worker.runner.unblocked.clear()
    stream = fresh_rpc.stub.ClassifyStream()
    await send(stream, [request("late")], close=False)
    late = await next_of(stream)
    assert (late.id, reason(late.error)) == ("late", "DEADLINE_EXCEEDED")
    fresh_rpc.worker.runner.unblocked.set()
    await send(stream, [request("in time", 8)])
    assert [(reply.id, reply.labels[0].index) for reply in await rest_of(stream)] == [("in time", 8)]


@pytest.mark.settings(max_queue_images=2)
async def test_an_overloaded_service_refuses_messages_one_by_one(fresh_rpc: RpcWithWorker) -> None:
    """Messages beyond a full queue are errors with RetryInfo in their own replies; the others are answered."""
    before = len(fresh_rpc.worker.runner.batches)
    fresh_rpc.worker.runner.unblocked.clear()
    stream = fresh_rpc.stub.ClassifyStream()
    await send(stream, [request("first")], close=False)
    await until(lambda: len(fresh_rpc.worker.runner.batches) == before + 1)
    await send(stream, [request(str(at)) for at in range(5)])
    refused = [await next_of(stream) for _ in range(3)]
    assert {reason(reply.error) for reply in refused} == {"OVERLOADED"}
    assert all(retry_s(reply.error) is not None for reply in refused)
    fresh_rpc.worker.runner.unblocked.set()
    answered = await rest_of(stream)
    assert len(answered) == 3
    assert not any(reply.HasField("error") for reply in answered)


@pytest.mark.settings(max_image_bytes=1000, max_request_bytes=1000)
async def test_a_huge_message_ends_its_stream_alone(fresh_rpc: RpcWithWorker) -> None:
    """A message that gRPC itself refuses ends its stream, cancels its jobs, and affects no other stream."""
    fresh_rpc.worker.runner.unblocked.clear()
    stream, neighbour = fresh_rpc.stub.ClassifyStream(), fresh_rpc.stub.ClassifyStream()
    await send(stream, [request("held")], close=False)
    await send(neighbour, [request("neighbour", 5)])
    await until(lambda: fresh_rpc.in_flight == 2)
    await stream.write(pb.ClassifyRequest(image=bytes(40 * 2**20)))
    assert await status_of(stream) is grpc.StatusCode.RESOURCE_EXHAUSTED
    await until(lambda: fresh_rpc.in_flight == 1)
    fresh_rpc.worker.runner.unblocked.set()
    assert [reply.labels[0].index for reply in await rest_of(neighbour)] == [5]
