"""gRPC calls and streams that are refused, broken, or answered by something else; and what requests contain."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from convmlp.v1 import vision_pb2 as pb
from convmlp_client import (
    AsyncClient,
    BadParameter,
    BadRequest,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    Forbidden,
    Internal,
    NotFound,
    Overloaded,
    ProtocolError,
    Retries,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from convmlp_client.transport import MAX_RESPONSE_BYTES
from convmlp_client.transport.grpc import KEEPALIVE_MS
from service.frontend.grpc.server import KeepAlive
from service.settings import Settings
from tests.client.fault_servers import abort, cat_reply, grpc_server, parse_request, status_with_details
from tests.client.local_service import LocalService
from tests.ports import closed_port
from tests.service.frontend.rest_server import picture

Context = grpc.aio.ServicerContext[bytes, bytes]
Code = grpc.StatusCode

QUICK = Retries(attempts=3, first_wait_s=0.001)


async def echo(messages: AsyncIterator[bytes], context: Context) -> None:
    """Answers each message with the image's bytes as the label."""
    async for message in messages:
        request = parse_request(message)
        await context.write(cat_reply(request.id, request.image.decode()))


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (Code.RESOURCE_EXHAUSTED, "OVERLOADED", Overloaded),
        (Code.UNAVAILABLE, "UNAVAILABLE", Unavailable),
        (Code.PERMISSION_DENIED, "FORBIDDEN", Forbidden),
        (Code.INVALID_ARGUMENT, "IMAGE_TOO_LARGE", TooLarge),
        (Code.INTERNAL, "INTERNAL", Internal),
        (Code.NOT_FOUND, "SOMETHING_NEW", NotFound),
    ],
)
async def test_details_decide_the_error(code: Code, reason: str, kind: type[ClientError]) -> None:
    """The reason in the details decides the class, whatever the status code. RetryInfo is `retry_after_s`."""

    async def refuse(_: AsyncIterator[bytes], context: Context) -> None:
        await abort(context, status_with_details(code, reason, "words", retry_after_s=1.25))

    async with grpc_server(refuse) as url, AsyncClient(url, retries=0) as client:
        with pytest.raises(ClientError) as caught:
            await client.classify(b"picture")
    error = caught.value
    assert (type(error), error.code, error.retry_after_s) == (kind, reason.lower().replace("_", "-"), 1.25)
    assert "words" in error.detail


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (Code.UNAVAILABLE, "no healthy upstream", ConnectionFailed),
        (Code.UNAUTHENTICATED, "who are you", Unauthenticated),
        (Code.PERMISSION_DENIED, "no", Forbidden),
        (Code.INVALID_ARGUMENT, "what", BadRequest),
        (Code.RESOURCE_EXHAUSTED, "quota", Overloaded),
        (Code.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 8)", TooLarge),
        (Code.UNIMPLEMENTED, "Method not found!", ProtocolError),
        (Code.DEADLINE_EXCEEDED, "late", DeadlineExceeded),
        (Code.DATA_LOSS, "lost", Internal),
        (Code.UNKNOWN, "", Internal),
    ],
)
async def test_a_status_without_details_is_mapped_by_its_code(
    code: Code, message: str, kind: type[ClientError]
) -> None:
    """A status of a proxy, of gRPC or of another service is mapped by its code. The error names the address."""

    async def refuse(_: AsyncIterator[bytes], context: Context) -> None:
        await context.abort(code, message)

    async with grpc_server(refuse) as url, AsyncClient(url, retries=0) as client:
        with pytest.raises(ClientError) as caught:
            await client.classify(b"picture")
        assert type(caught.value) is kind
        assert caught.value.detail == f"{url}: {message or 'UNKNOWN'}"


async def test_refusals_are_retried() -> None:
    """A refusal that may pass and a broken connection are retried."""
    seen = 0

    async def refuse_twice(messages: AsyncIterator[bytes], context: Context) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            await abort(context, status_with_details(Code.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after_s=0.001))
        if seen == 2:
            await context.abort(Code.UNAVAILABLE, "connection reset")
        await echo(messages, context)

    async with grpc_server(refuse_twice) as url, AsyncClient(url, retries=QUICK) as client:
        assert (await client.classify(b"picture")).labels[0].label == "picture"
    assert seen == 3


async def test_what_a_request_contains() -> None:
    """The timeout is gRPC's own; API key, request id and user agent are metadata."""
    seen: list[tuple[dict[str, Any], float | None, pb.ClassifyRequest]] = []

    async def note(messages: AsyncIterator[bytes], context: Context) -> None:
        async for message in messages:
            metadata = dict(context.invocation_metadata() or ())
            seen.append((metadata, context.time_remaining(), parse_request(message)))
            await context.write(cat_reply(parse_request(message).id))

    async with (
        grpc_server(note) as url,
        AsyncClient(url, api_key="a-key", user_agent="me/1", timeout_s=None) as client,
    ):
        await client.classify(b"picture", top_k=3, model="m")
        await client.classify(b"picture", timeout_s=20)
        async for outcome in client.classify_many([b"picture"], timeout_s=20):
            assert outcome.result
    for metadata, _, request in seen:
        assert metadata["authorization"] == "Bearer a-key"
        assert metadata["user-agent"].startswith("me/1 ")
        assert request.id.startswith(metadata["x-request-id"])
    assert (seen[0][2].top_k, seen[0][2].model) == (3, "m")
    assert not seen[1][2].HasField("top_k")  # the service chooses what is left out
    assert seen[0][1] is None
    assert seen[1][1] is not None
    assert 15 < seen[1][1] < 20.5  # gRPC rounds it up
    assert seen[2][1] is None  # a stream has no deadline of its own


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("classify", {"top_k": -1}),
        ("classify", {"top_k": 2**40}),
        ("detect", {"score_threshold": "high"}),
        ("segment", {"mask_format": "zip"}),
    ],
)
async def test_values_that_do_not_fit_are_bad_parameters(method: str, parameters: dict[str, Any]) -> None:
    """A value that a message cannot hold raises BadParameter, as the service does over REST."""
    async with AsyncClient("grpc://127.0.0.1:1") as client:
        with pytest.raises(BadParameter, match=f"parameter '{next(iter(parameters))}' is "):
            await getattr(client, method)(b"picture", **parameters)


async def test_many_images_are_one_stream() -> None:
    """All images share one call. Each has its own id, and the stream is ended regularly."""
    calls: list[str] = []
    ids: list[str] = []
    ended = asyncio.Event()

    async def count(messages: AsyncIterator[bytes], context: Context) -> None:
        calls.append(dict(context.invocation_metadata() or ())["x-request-id"])  # type: ignore[arg-type]
        async for message in messages:
            ids.append(parse_request(message).id)
            await context.write(cat_reply(ids[-1]))
        ended.set()

    async with grpc_server(count) as url, AsyncClient(url) as client:
        outcomes = [one async for one in client.classify_many([b"picture"] * 40)]
        assert ended.is_set()
    assert len(outcomes) == 40
    assert ids == [f"{calls[0]}-{at}" for at in range(40)]
    assert len(calls) == 1


async def test_replies_may_come_in_any_order() -> None:
    """Replies are matched to images by id. Replies with unknown or repeated ids are ignored."""

    async def backwards(messages: AsyncIterator[bytes], context: Context) -> None:
        requests = []
        async for message in messages:
            requests.append(parse_request(message))
            if len(requests) == 4:
                await context.write(cat_reply("unknown"))
                for request in reversed(requests):
                    await context.write(cat_reply(request.id, request.image.decode()))
                    await context.write(cat_reply(request.id, "repeated"))
                requests.clear()

    images = [str(number).encode() for number in range(16)]
    async with grpc_server(backwards) as url, AsyncClient(url) as client:
        outcomes = [one async for one in client.classify_many(images, concurrency=4)]
    assert [one.result.labels[0].label.encode() for one in outcomes] == images


async def test_an_error_in_a_reply_belongs_to_one_image() -> None:
    """An error in a reply fails or retries one image, and the stream continues."""
    seen: Counter[bytes] = Counter()

    async def refuse(messages: AsyncIterator[bytes], context: Context) -> None:
        async for message in messages:
            request = parse_request(message)
            seen[request.image] += 1
            reply = pb.ClassifyResponse(id=request.id)
            if request.image == b"bad":
                reply.error.CopyFrom(status_with_details(Code.INVALID_ARGUMENT, "IMAGE_UNDECODABLE", "it is bad"))
            elif request.image == b"later" and seen[request.image] < 3:
                reply.error.CopyFrom(status_with_details(Code.UNAVAILABLE, "UNAVAILABLE", retry_after_s=0.001))
            await context.write(reply.SerializeToString())

    async with grpc_server(refuse) as url, AsyncClient(url, retries=QUICK) as client:
        outcomes = [one async for one in client.classify_many([b"a", b"bad", b"later", b"c"])]
    assert [one.error and one.error.args[0] for one in outcomes] == [None, "it is bad", None, None]
    assert seen == {b"a": 1, b"bad": 1, b"later": 3, b"c": 1}


@pytest.mark.parametrize("how", ["status", "end"])
async def test_a_broken_stream_loses_no_image(how: str) -> None:
    """Images on a broken stream are sent again by unary calls. Later images use a new stream."""
    calls: list[int] = []

    async def break_off(messages: AsyncIterator[bytes], context: Context) -> None:
        call = len(calls)
        calls.append(0)
        async for message in messages:
            request = parse_request(message)
            calls[call] += 1
            if call == 0 and calls[call] == 3:
                if how == "status":
                    await context.abort(Code.UNAVAILABLE, "shutting down")
                return
            await context.write(cat_reply(request.id, request.image.decode()))

    images = [str(number).encode() for number in range(20)]
    async with grpc_server(break_off) as url, AsyncClient(url, retries=0) as client:
        outcomes = [one async for one in client.classify_many(images, concurrency=4)]
    assert [one.result.labels[0].label.encode() for one in outcomes] == images
    assert max(calls[1:]) > 1  # a new stream
    assert min(calls[1:]) == 1  # unary calls


async def test_an_image_that_breaks_the_stream_fails_alone() -> None:
    """A message that is too long ends the stream, and fails only its own image."""
    images = [b"a", b"x" * 5000, b"c", b"d"]
    async with grpc_server(echo, max_receive_message_length=1000) as url, AsyncClient(url) as client:
        outcomes = [one async for one in client.classify_many(images, concurrency=4)]
    assert [type(one.error) for one in outcomes] == [type(None), TooLarge, type(None), type(None)]


async def test_a_timeout_of_one_image_keeps_the_stream() -> None:
    """The timeout of an image ends neither the stream nor other images, and its late reply is ignored."""
    calls = 0
    late = asyncio.Event()

    async def slow(messages: AsyncIterator[bytes], context: Context) -> None:
        nonlocal calls
        calls += 1
        first = parse_request(await anext(messages))
        async for message in messages:
            request = parse_request(message)
            if request.image == b"last":
                await context.write(cat_reply(first.id, "late"))
            await context.write(cat_reply(request.id, request.image.decode()))
        late.set()

    async with grpc_server(slow) as url, AsyncClient(url) as client:
        images = [b"slow", b"b", b"c", b"last"]
        outcomes = [one async for one in client.classify_many(images, concurrency=1, timeout_s=4.0)]
    assert isinstance(outcomes[0].error, DeadlineExceeded)
    assert [one.result.labels[0].label for one in outcomes[1:]] == ["b", "c", "last"]
    assert calls == 1
    assert late.is_set()


async def test_a_slow_consumer_delays_only_itself() -> None:
    """Without a consumer a stream sends nothing more, and other streams continue."""
    received = 0

    async def count(messages: AsyncIterator[bytes], context: Context) -> None:
        nonlocal received
        async for message in messages:
            received += 1
            await context.write(cat_reply(parse_request(message).id))

    async with grpc_server(count) as url, AsyncClient(url) as client:
        slow = client.classify_many([b"picture"] * 1000, concurrency=2)
        await anext(slow)
        assert len([one async for one in client.classify_many([b"picture"] * 50)]) == 50
        assert received <= 50 + 1 + 2 * 2
        await slow.aclose()


async def test_malformed_replies_are_protocol_errors() -> None:
    """A reply that is not a message of the contract raises ProtocolError, in calls and in streams."""

    async def nonsense(messages: AsyncIterator[bytes], context: Context) -> None:
        async for _ in messages:
            await context.write(b"\xff\xff")

    async with grpc_server(nonsense) as url, AsyncClient(url) as client:
        with pytest.raises(ProtocolError, match="is not one of this service"):
            await client.classify(b"picture")
        outcomes = [one async for one in client.classify_many([b"a", b"b"])]
    assert [type(one.error) for one in outcomes] == [ProtocolError] * 2


async def test_another_server_is_a_connection_error(service: LocalService) -> None:
    """An HTTP port, and a port without a server, raise ConnectionFailed with the address, and `ready` is False. Without
    a server the error has the system's reason and what to check."""
    unused = "grpc://127.0.0.1:1"
    nobody = f"cannot connect to {unused}: connection refused"
    rest = service.url("rest").replace("http", "grpc")
    for url, beginning in ((rest, f"cannot connect to {rest}: "), (unused, nobody)):
        async with AsyncClient(url, retries=0) as client:
            with pytest.raises(ConnectionFailed) as caught:
                await client.classify(b"picture")
            assert caught.value.detail.startswith(beginning)
            assert await client.ready() is False


async def test_large_messages_pass(service: LocalService) -> None:
    """The largest image that the service accepts reaches it. A larger one gets the service's own error."""
    largest = picture() + bytes(Settings().max_image_bytes - len(picture()))
    assert largest[-1:] == b"\0"
    assert Settings().max_image_bytes < MAX_RESPONSE_BYTES
    async with AsyncClient(service.url("grpc")) as client:
        assert await client.classify(largest)
        with pytest.raises(TooLarge, match="bytes"):
            await client.classify(largest + b"\0")
        (outcome,) = [one async for one in client.classify_many([largest + b"\0"])]
        assert isinstance(outcome.error, TooLarge)


async def test_a_restarted_service_is_found_soon() -> None:
    """A channel that lost its server reconnects within the retries of one request."""
    with closed_port() as port:
        async with grpc_server(echo, port) as url:
            client = AsyncClient(url, retries=Retries(attempts=200, first_wait_s=0.05, backoff_limit_s=0.05))
            await client.classify(b"picture")
        assert await client.ready() is False
        async with grpc_server(echo, port), client:
            assert (await client.classify(b"picture")).labels[0].label == "picture"


def test_the_service_accepts_the_clients_pings() -> None:
    """The client pings no more often than the service allows."""
    assert KeepAlive().client_interval_ms <= KEEPALIVE_MS


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
async def test_messages_may_be_compressed(service: LocalService, compression: Any) -> None:  # noqa: ANN401
    """Compressed messages give the same results, in calls and in streams."""
    async with AsyncClient(service.url("grpc"), compression=compression) as client:
        assert (await client.classify(picture(8))).labels[0].index == 8
        assert [one.result.labels[0].index async for one in client.classify_many([picture(9)])] == [9]
