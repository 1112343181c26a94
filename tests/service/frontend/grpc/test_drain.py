"""Calls in flight, and new calls, while the server stops."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from convmlp.v1 import vision_pb2 as pb
from service.process import hold_port
from tests.service.frontend.api.vision.classify_stream import next_of
from tests.service.frontend.grpc_server import (
    RpcWithWorker,
    open_rpc,
    reason,
    reflection_of,
    refusal,
    request_id,
    retry_s,
    rich,
)
from tests.service.frontend.rest_server import picture
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


def classify(grey: int, name: str = "") -> pb.ClassifyRequest:
    return pb.ClassifyRequest(id=name, image=picture(grey), top_k=1)


def assert_unavailable(error: grpc.aio.AioRpcError, words: str) -> None:
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert words in (error.details() or "")
    assert reason(rich(error)) == "UNAVAILABLE"
    assert retry_s(rich(error)) is not None


async def drain_begun(rpc: RpcWithWorker) -> None:
    """Stop the server, and wait until it accepts no connection."""
    rpc.server.stop.set()
    host, _, port = rpc.address.rpartition(":")
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.01)


async def test_calls_in_flight_are_finished(fresh_rpc: RpcWithWorker) -> None:
    """Calls in flight are answered, new calls are UNAVAILABLE, and then the server ends."""
    fresh_rpc.worker.runner.unblocked.clear()
    held = [asyncio.ensure_future(fresh_rpc.stub.Classify(classify(grey))) for grey in (5, 6, 7)]
    await until(lambda: fresh_rpc.in_flight == 3)
    await drain_begun(fresh_rpc)
    assert (await refusal(fresh_rpc.stub.Classify(classify(1)))).code() is grpc.StatusCode.UNAVAILABLE
    fresh_rpc.worker.runner.unblocked.set()
    assert [(await one).labels[0].index for one in held] == [5, 6, 7]
    await asyncio.wait_for(fresh_rpc.server.ended, PATIENCE_S)


async def test_the_port_is_free_again_at_once() -> None:
    """The port can be used again immediately, although closed connections linger for a minute."""
    async with open_rpc() as rpc:
        assert (await rpc.stub.Classify(classify(5))).labels[0].index == 5
        rpc.server.stop.set()
        await rpc.server.ended
        port = int(rpc.address.rpartition(":")[2])
    hold_port("127.0.0.1", port).close()


@pytest.mark.settings(drain_timeout_s=0.5)
async def test_a_call_that_outlasts_the_drain_is_unavailable(fresh_rpc: RpcWithWorker) -> None:
    """A call that outlasts the drain is UNAVAILABLE, with its own id, and the server ends in time."""
    fresh_rpc.worker.runner.unblocked.clear()
    held = asyncio.ensure_future(fresh_rpc.stub.Classify(classify(5), metadata=[("x-request-id", "mine")]))
    stream = fresh_rpc.stub.ClassifyStream(metadata=[("x-request-id", "stream")])
    await stream.write(classify(6))
    await until(lambda: fresh_rpc.in_flight == 2)
    fresh_rpc.server.stop.set()
    error = await refusal(held)
    assert_unavailable(error, "no time left")
    assert request_id(rich(error)) == "mine"
    error = await refusal(stream.read())
    assert_unavailable(error, "no time left")
    assert request_id(rich(error)) == "stream"
    await asyncio.wait_for(fresh_rpc.server.ended, PATIENCE_S)


async def test_a_stream_reads_no_more_and_delivers_its_replies(fresh_rpc: RpcWithWorker) -> None:
    """A stream delivers the replies in flight, reads no later message, and ends with UNAVAILABLE."""
    stream = fresh_rpc.stub.ClassifyStream()
    fresh_rpc.worker.runner.unblocked.clear()
    for grey in (5, 6):
        await stream.write(classify(grey, name=str(grey)))
    await until(lambda: fresh_rpc.in_flight == 2)
    await drain_begun(fresh_rpc)
    await stream.write(classify(7, name="7"))
    fresh_rpc.worker.runner.unblocked.set()
    assert {(await next_of(stream)).id for _ in range(2)} == {"5", "6"}
    assert_unavailable(await refusal(stream.read()), "send the messages without a reply again")
    await asyncio.wait_for(fresh_rpc.server.ended, PATIENCE_S)


async def check_sent_stream_ends_with_ok(rpc: RpcWithWorker) -> None:
    """A stream of two messages, all sent before the drain begins, delivers both replies and ends with OK."""
    stream = rpc.stub.ClassifyStream()
    rpc.worker.runner.unblocked.clear()
    for grey in (5, 6):
        await stream.write(classify(grey))
    await stream.done_writing()
    await until(lambda: rpc.in_flight == 2)
    await drain_begun(rpc)
    rpc.worker.runner.unblocked.set()
    assert {(await next_of(stream)).labels[0].index for _ in range(2)} == {5, 6}
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK
    await asyncio.wait_for(rpc.server.ended, PATIENCE_S)


async def test_a_stream_whose_client_had_sent_all_ends_with_ok(fresh_rpc: RpcWithWorker) -> None:
    """A stream whose client had sent all messages delivers all replies and ends with OK."""
    await check_sent_stream_ends_with_ok(fresh_rpc)


@pytest.mark.settings(max_stream_in_flight=2)
async def test_a_full_stream_whose_client_had_sent_all_ends_with_ok(fresh_rpc: RpcWithWorker) -> None:
    """The same where the end of the client's messages was not read yet, because the stream was at its limit."""
    await check_sent_stream_ends_with_ok(fresh_rpc)


@pytest.mark.settings(drain_timeout_s=10 * PATIENCE_S)
async def test_idle_streams_end_at_once(fresh_rpc: RpcWithWorker) -> None:
    """Idle streams end at once, those of Vision as those of reflection."""
    idle = fresh_rpc.stub.SegmentStream()
    curious = reflection_of(fresh_rpc.channel)()
    await idle.wait_for_connection()
    await curious.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await curious.read()
    fresh_rpc.server.stop.set()
    for stream in (idle, curious):
        assert_unavailable(await refusal(stream.read()), "shutting down")
    await asyncio.wait_for(fresh_rpc.server.ended, PATIENCE_S)
