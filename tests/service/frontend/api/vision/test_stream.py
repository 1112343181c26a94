"""Streams: replies with the ids of their messages, and errors of single messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from convmlp.v1 import vision_pb2 as pb
from service.settings import Settings
from tests.service.frontend.api.vision.classify_stream import next_of, request, rest_of, send, status_of
from tests.service.frontend.grpc_server import (
    RpcWithWorker,
    field,
    open_rpc,
    open_rpc_at,
    reason,
    request_id,
    retry_s,
)
from tests.service.frontend.rest_server import picture
from tests.service.wire.scripted_worker import ScriptedWorker
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_each_reply_has_its_requests_id(rpc: RpcWithWorker) -> None:
    """Every message gets one reply, with its id and its own image's answer; then the stream ends with OK."""
    stream = rpc.stub.ClassifyStream()
    await send(stream, [request(f"picture {grey}", grey) for grey in range(64)])
    received = {reply.id: reply.labels[0].index for reply in await rest_of(stream)}
    assert received == {f"picture {grey}": grey for grey in range(64)}
    assert await status_of(stream) is grpc.StatusCode.OK


async def test_every_task_streams(rpc: RpcWithWorker) -> None:
    """Detections and segments stream as labels do, with the parameters of unary calls."""

    async def detect() -> AsyncIterator[pb.DetectRequest]:
        yield pb.DetectRequest(id="a", image=picture(), max_detections=1, mask_format=pb.MASK_FORMAT_PNG)

    async def segment() -> AsyncIterator[pb.SegmentRequest]:
        yield pb.SegmentRequest(id="b", image=picture(), label_map=True)

    (detected,) = [reply async for reply in rpc.stub.DetectStream(detect())]
    assert (detected.id, len(detected.detections), detected.model) == ("a", 1, "fake_detect")
    assert detected.detections[0].mask.png
    assert detected.timings.total_ms > 0
    assert detected.precision == "fp32"
    (segmented,) = [reply async for reply in rpc.stub.SegmentStream(segment())]
    assert (segmented.id, len(segmented.segments)) == ("b", 2)
    assert segmented.label_map_png
    assert segmented.precision == "fp32"


async def test_a_reply_waits_for_no_other(fresh_rpc: RpcWithWorker) -> None:
    """Replies come as they are ready: an error overtakes an image that the device still holds."""
    fresh_rpc.worker.runner.unblocked.clear()
    stream = fresh_rpc.stub.ClassifyStream()
    await send(stream, [request("held"), pb.ClassifyRequest(id="refused", image=b"%PDF")])
    assert (await next_of(stream)).id == "refused"
    fresh_rpc.worker.runner.unblocked.set()
    assert [reply.id for reply in await rest_of(stream)] == ["held"]


async def test_a_bad_message_is_an_error_of_its_own(rpc: RpcWithWorker) -> None:
    """A bad image, parameter, model or id is an error with details in its own reply; other messages are answered."""
    stream = rpc.stub.ClassifyStream()
    bad = [
        pb.ClassifyRequest(id="format", image=b"%PDF"),
        pb.ClassifyRequest(id="empty"),
        pb.ClassifyRequest(id="range", image=picture(), top_k=0),
        pb.ClassifyRequest(id="model", image=picture(), model="nothing"),
        pb.ClassifyRequest(id="i" * 129, image=picture()),
    ]
    await send(stream, [one for at, wrong in enumerate(bad) for one in (request(f"good {at}", at), wrong)])
    replies = {reply.id: reply for reply in await rest_of(stream)}
    assert await status_of(stream) is grpc.StatusCode.OK
    for at in range(len(bad)):
        assert replies[f"good {at}"].labels[0].index == at
    errors = {id_: reply.error for id_, reply in replies.items() if reply.HasField("error")}
    assert {id_: (reason(error), field(error)) for id_, error in errors.items()} == {
        "format": ("UNSUPPORTED_FORMAT", "image"),
        "empty": ("IMAGE_UNDECODABLE", "image"),
        "range": ("BAD_PARAMETER", "top_k"),
        "model": ("MODEL_NOT_FOUND", None),
        "i" * 128: ("BAD_PARAMETER", "id"),
    }
    assert errors["format"].code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert request_id(errors["format"]) == "format"
    assert not replies["format"].labels
    assert not replies["format"].HasField("timings")
    assert (replies["good 0"].precision, replies["format"].precision) == ("fp32", "")


async def test_a_malformed_message_is_an_error_of_its_own(rpc: RpcWithWorker) -> None:
    """Bytes that are not a message are an error in their own reply."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}") as channel:
        raw: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/convmlp.v1.Vision/ClassifyStream"
        )
        stream = raw(iter([b"\xff", request("good", 3).SerializeToString()]))
        replies = {reply.id: reply async for reply in (pb.ClassifyResponse.FromString(data) async for data in stream)}
    assert replies.pop("good").labels[0].index == 3
    ((id_, malformed),) = replies.items()
    assert id_.endswith("-0")
    assert reason(malformed.error) == "BAD_REQUEST"


async def test_messages_without_an_id_are_numbered(rpc: RpcWithWorker) -> None:
    """A reply to a message without an id has the call's id, from the initial metadata, and the message's position."""
    stream = rpc.stub.ClassifyStream(metadata=(("x-request-id", "mine"),))
    assert dict(await stream.initial_metadata())["x-request-id"] == "mine"
    await send(stream, [request("", grey) for grey in (10, 11, 12)])
    received = {reply.id: reply.labels[0].index for reply in await rest_of(stream)}
    assert received == {"mine-0": 10, "mine-1": 11, "mine-2": 12}


async def test_an_empty_stream_ends_with_ok(rpc: RpcWithWorker) -> None:
    """A stream without messages has no replies and ends with OK."""
    stream = rpc.stub.ClassifyStream()
    await stream.done_writing()
    assert await rest_of(stream) == []
    assert await status_of(stream) is grpc.StatusCode.OK


async def test_a_lost_worker_fails_the_messages_and_not_the_stream(tmp_path: Path) -> None:
    """Messages of a lost worker are UNAVAILABLE at once; the stream stays open."""
    address = f"ipc://{tmp_path}/w"
    async with open_rpc_at(address, Settings(heartbeat_interval_ms=50, request_timeout_ms=10**6)) as rpc:
        stream = rpc.stub.ClassifyStream()
        async with ScriptedWorker(address) as worker:
            await worker.introduce()
            await until(lambda: rpc.front_end.engine.readiness().ready)
            await send(stream, [request("in flight")], close=False)
            await worker.next_job()
        assert reason((await next_of(stream)).error) == "UNAVAILABLE"
        await send(stream, [request("after")])
        (after,) = await rest_of(stream)
        assert (after.id, reason(after.error)) == ("after", "UNAVAILABLE")
        assert await status_of(stream) is grpc.StatusCode.OK


@pytest.mark.settings(max_image_bytes=1000)
async def test_an_image_over_its_limit_is_an_error_of_its_own(fresh_rpc: RpcWithWorker) -> None:
    """An image over the limit of bytes is an error in its own reply."""
    stream = fresh_rpc.stub.ClassifyStream()
    await send(stream, [pb.ClassifyRequest(id="large", image=bytes(2000)), request("good")])
    replies = {reply.id: reply for reply in await rest_of(stream)}
    assert reason(replies["large"].error) == "IMAGE_TOO_LARGE"
    assert replies["good"].labels


async def test_wrong_credentials_fail_the_whole_stream_at_once(tmp_path: Path) -> None:
    """A stream without a valid key ends before its messages are read."""
    keys = tmp_path / "keys"
    keys.write_text("partner 0123456789abcdef\n")
    async with open_rpc(api_keys_file=keys) as rpc:
        stream = rpc.stub.ClassifyStream()
        assert await status_of(stream) is grpc.StatusCode.UNAUTHENTICATED
        assert rpc.outcomes("classify", "unauthenticated", model="") == 1
        allowed = rpc.stub.ClassifyStream(metadata=(("authorization", "Bearer 0123456789abcdef"),))
        await send(allowed, [request("good", 4)])
        assert [reply.labels[0].index for reply in await rest_of(allowed)] == [4]


@pytest.mark.settings(rate_limit_per_s=0.001, rate_limit_burst=2)
async def test_a_rate_refuses_messages_one_by_one(fresh_rpc: RpcWithWorker) -> None:
    """Messages over the rate are errors in their own replies."""
    stream = fresh_rpc.stub.ClassifyStream()
    await send(stream, [request(str(at)) for at in range(4)])
    replies = await rest_of(stream)
    refused = [reply.error for reply in replies if reply.HasField("error")]
    assert (len(replies), [reason(error) for error in refused]) == (4, ["RATE_LIMITED"] * 2)
    assert all((retry_s(error) or 0) > 100 for error in refused)
