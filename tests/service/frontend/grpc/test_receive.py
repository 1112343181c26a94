"""Which messages begin to arrive, by the memory in use; the calls are scripted, and the memory is a number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from convmlp.v1 import vision_pb2 as pb
from service.errors import DeadlineExceeded, Overloaded
from service.frontend.grpc.receive import ARRIVING_BYTES, HARD_BYTES, MIN_ARRIVING, Receiver, host_of
from service.settings import Settings
from tests.service.frontend.grpc_server import RpcWithWorker, refusal
from tests.waiting import until

IMAGE_BYTES = ARRIVING_BYTES // 8
SETTINGS = Settings(max_image_bytes=IMAGE_BYTES, max_in_flight_bytes=1, max_decoded_bytes=1, request_timeout_ms=60_000)


class Call:
    """A call whose message is `sent`; `reads` once it is being read."""

    def __init__(self, port: int, host: str = "10.0.0.1") -> None:
        self._peer = f"ipv4:{host}:{port}"
        self.reads = asyncio.Event()
        self.sent: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def peer(self) -> str:
        return self._peer

    async def read(self) -> bytes:
        self.reads.set()
        return await self.sent


class Memory:
    """In use."""

    def __init__(self) -> None:
        self.nbytes = 1000

    def __call__(self) -> int:
        return self.nbytes


class Bench:
    """A receiver, and the reads that it was asked for."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.memory = Memory()
        self.receiver = Receiver(settings, lambda: 0, lambda: 7.0, self.memory)
        self.reads: list[asyncio.Task[Any]] = []

    async def begin(self, *calls: Call) -> None:
        for call in calls:
            self.reads.append(asyncio.ensure_future(self.receiver.read(call)))  # type: ignore[arg-type]
        for _ in range(3):
            await asyncio.sleep(0)


@asynccontextmanager
async def open_bench(settings: Settings = SETTINGS) -> AsyncIterator[Bench]:
    bench = Bench(settings)
    try:
        yield bench
    finally:
        for read in bench.reads:
            read.cancel()
        await asyncio.gather(*bench.reads, return_exceptions=True)


def begun(calls: list[Call]) -> int:
    return sum(call.reads.is_set() for call in calls)


async def test_messages_begin_while_there_is_room() -> None:
    """Each message of an unknown connection is expected to take twice the largest image; those beyond the room wait for
    the end of another, in their order."""
    async with open_bench() as bench:
        calls = [Call(port) for port in range(12)]
        await bench.begin(*calls)
        assert begun(calls) == ARRIVING_BYTES // (2 * IMAGE_BYTES) == 4
        calls[0].sent.set_result(b"short")
        await until(calls[4].reads.is_set)
        assert not calls[5].reads.is_set()
        assert await bench.reads[0] == b"short"


async def test_connections_of_short_messages_have_room_for_more() -> None:
    """A connection's next message is expected to be about as long as the last ones."""
    async with open_bench() as bench:
        for _ in range(3):
            call = Call(port=1)
            call.sent.set_result(bytes(IMAGE_BYTES // 100))
            await bench.begin(call)
        calls = [Call(port=1) for _ in range(100)]
        await bench.begin(*calls)
        assert begun(calls) == 100


async def test_each_host_may_begin_one() -> None:
    """However many messages of one caller arrive or wait, another caller's first one begins at once."""
    async with open_bench() as bench:
        await bench.begin(*(Call(port) for port in range(12)))
        other = [Call(port, "10.0.0.2") for port in range(2)]
        await bench.begin(*other)
        await until(other[0].reads.is_set)
        assert not other[1].reads.is_set()


async def test_some_messages_arrive_whatever_the_memory() -> None:
    """A process whose memory is full never stops for good."""
    async with open_bench() as bench:
        bench.memory.nbytes = 10 * (ARRIVING_BYTES + HARD_BYTES)
        calls = [Call(port) for port in range(MIN_ARRIVING + 1)]
        await bench.begin(*calls)
        assert begun(calls) == MIN_ARRIVING


async def test_what_takes_too_much_memory_is_refused_latest_first() -> None:
    """Messages that have begun are refused, with a time to retry, until the memory in use is within its limit: the
    latest of the caller with the most. The oldest ones go on."""
    async with open_bench() as bench:
        calls, other = [Call(port) for port in range(8)], Call(port=1, host="10.0.0.2")
        await bench.begin(*calls, other)
        bench.memory.nbytes = 2 * (ARRIVING_BYTES + HARD_BYTES)
        await until(bench.reads[3].done)
        with pytest.raises(Overloaded, match="too much memory") as refused:
            await bench.reads[3]
        assert refused.value.retry_after_s == 7.0
        bench.memory.nbytes = 1000
        calls[0].sent.set_result(b"first")
        other.sent.set_result(b"other")
        assert (await bench.reads[0], await bench.reads[8]) == (b"first", b"other")


async def test_a_message_has_the_time_of_a_request() -> None:
    """A message that does not arrive in time ends its call, whether it had begun or waited; a stream waits for its
    client."""
    async with open_bench(SETTINGS.with_changes(request_timeout_ms=50)) as bench:
        stream = asyncio.ensure_future(bench.receiver.read(Call(port=99), waits_for_client=True))  # type: ignore[arg-type]
        bench.reads.append(stream)
        await bench.begin(*(Call(port) for port in range(12)))
        for read in bench.reads[1:]:
            with pytest.raises(DeadlineExceeded, match="before the message had arrived"):
                await read
        assert not stream.done()


async def test_a_caller_that_leaves_gives_its_place_to_another() -> None:
    """Cancelled calls are neither waited for nor counted, whether they had begun or not."""
    async with open_bench() as bench:
        calls = [Call(port) for port in range(11)]
        await bench.begin(*calls)
        for number in (5, 4, 0, 1):
            bench.reads[number].cancel()
        await until(calls[7].reads.is_set)
        assert not calls[5].reads.is_set()
        assert not calls[8].reads.is_set()


async def test_the_memory_in_use_counts() -> None:
    """What has arrived is in the memory in use, and leaves less room."""
    async with open_bench() as bench:
        bench.memory.nbytes += 2 * IMAGE_BYTES
        calls = [Call(port) for port in range(12)]
        await bench.begin(*calls)
        assert begun(calls) == 3


@pytest.mark.asyncio(loop_scope="module")
async def test_a_call_without_a_message_is_an_error(rpc: RpcWithWorker) -> None:
    """A client that ends its call before it has sent a message gets INVALID_ARGUMENT."""
    method = rpc.channel.stream_unary(
        "/convmlp.v1.Vision/Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
    )
    error = await refusal(method(iter([])))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no message" in (error.details() or "")


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:192.0.2.7:5000", "192.0.2.7"),
        ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::1"),
        ("ipv6:[::1]:5000", "::1"),
        ("unix:/tmp/socket", "unix"),
        ("unix:", "unix"),
    ],
)
def test_the_host_of_a_grpc_peer(peer: str, host: str) -> None:
    """The host of a peer, without its port, which differs between connections."""
    assert host_of(peer) == host
