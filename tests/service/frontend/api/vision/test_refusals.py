"""Unary calls with invalid parameters or messages: the status names the field."""

from __future__ import annotations

import base64

import grpc
import pytest

from convmlp.v1 import vision_pb2 as pb
from tests.service.frontend.grpc_server import RpcWithWorker, field, reason, refusal, rich
from tests.service.frontend.rest_server import picture

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (pb.ClassifyRequest(top_k=0), "top_k"),
        (pb.ClassifyRequest(top_k=1001), "top_k"),
        (pb.ClassifyRequest(top_k=2**32 - 1), "top_k"),
        (pb.ClassifyRequest(model="x" * 75), "model"),
        (pb.ClassifyRequest(model="fake_detect"), "model"),
        (pb.ClassifyRequest(id="x" * 129), "id"),
        (pb.DetectRequest(score_threshold=-0.1), "score_threshold"),
        (pb.DetectRequest(score_threshold=1.01), "score_threshold"),
        (pb.DetectRequest(score_threshold=float("nan")), "score_threshold"),
        (pb.DetectRequest(score_threshold=float("inf")), "score_threshold"),
        (pb.DetectRequest(max_detections=0), "max_detections"),
        (pb.DetectRequest(max_detections=1001), "max_detections"),
        (pb.DetectRequest(mask_format=99), "mask_format"),  # type: ignore[arg-type]
        (pb.DetectRequest(mask_format=-1), "mask_format"),  # type: ignore[arg-type]
        (pb.SegmentRequest(mask_format=99), "mask_format"),  # type: ignore[arg-type]
        (pb.SegmentRequest(model="fake_classify"), "model"),
    ],
)
async def test_bad_values_are_named(
    rpc: RpcWithWorker, request_: pb.ClassifyRequest | pb.DetectRequest | pb.SegmentRequest, name: str
) -> None:
    """A value out of its range is an error that names its field; it is never ignored or corrected."""
    request_.image = picture()
    match request_:
        case pb.ClassifyRequest():
            error = await refusal(rpc.stub.Classify(request_))
        case pb.DetectRequest():
            error = await refusal(rpc.stub.Detect(request_))
        case pb.SegmentRequest():
            error = await refusal(rpc.stub.Segment(request_))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (reason(rich(error)), field(rich(error))) == ("BAD_PARAMETER", name)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"https://example.org/cat.jpg", "this is a URL, not a picture; URLs are not fetched"),
        (base64.b64encode(picture()), "this is base64 text, not a picture; decode it"),
        (b'{"image": "AAAA"}', "this is JSON, not a picture"),
    ],
)
async def test_text_in_an_image_s_place_is_named(rpc: RpcWithWorker, image: bytes, words: str) -> None:
    """The field `image` has a picture's bytes; the error names what stands there instead."""
    error = await refusal(rpc.stub.Classify(pb.ClassifyRequest(image=image)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in str(error.details())


@pytest.mark.parametrize("top_k", [1, 1000])
async def test_ends_of_a_range_are_in_it(rpc: RpcWithWorker, top_k: int) -> None:
    """The smallest and the largest value of a range are valid; there are 256 classes."""
    reply = await rpc.stub.Classify(pb.ClassifyRequest(image=picture(), top_k=top_k))
    assert len(reply.labels) == min(top_k, 256)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x0a\x01\xff", b"garbage"])
async def test_malformed_messages_are_refused(rpc: RpcWithWorker, data: bytes) -> None:
    """Bytes that are not a protobuf message are an INVALID_ARGUMENT without internals."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}") as channel:
        raw: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/convmlp.v1.Vision/Classify")
        error = await refusal(raw(data))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason(rich(error)) == "BAD_REQUEST"
    assert "convmlp.v1.ClassifyRequest" in str(error.details())


async def test_unknown_model_lists_the_known(rpc: RpcWithWorker) -> None:
    """An unknown model is NOT_FOUND, and the message lists the served ones."""
    error = await refusal(rpc.stub.Classify(pb.ClassifyRequest(image=picture(), model="nothing")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "fake_classify" in str(error.details())


@pytest.mark.settings(trusted_proxies="127.0.0.0/8", rate_limit_per_s=0.001, rate_limit_burst=1)
async def test_rates_are_of_callers_behind_a_proxy(fresh_rpc: RpcWithWorker) -> None:
    """Behind a trusted proxy each caller has a rate of its own, and cannot get another by forging the metadata."""

    async def code(*addresses: str) -> grpc.StatusCode:
        metadata = [("x-forwarded-for", address) for address in addresses]
        call = fresh_rpc.stub.Classify(pb.ClassifyRequest(image=picture()), timeout=60, metadata=metadata)
        return await call.code()

    assert await code("203.0.113.1") is grpc.StatusCode.OK
    assert await code("203.0.113.1") is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await code("203.0.113.2") is grpc.StatusCode.OK
    assert await code("203.0.113.9", "203.0.113.2") is grpc.StatusCode.RESOURCE_EXHAUSTED
