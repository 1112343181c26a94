"""One image's turn, a unary call or one message of a stream; and what a call says of itself beside its messages.

What is told of a gRPC call, by the semantic conventions of OpenTelemetry for RPC servers.

A stream's messages, each answered as soon as it can be, and no more of them in hand than a bound.

A stream's messages, answered together and replied to in their order.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import grpc

from convmlp.v1 import vision_pb2 as pb
from service.errors import BadParameter
from service.frontend.core.auth import Auth, Caller, host_of
from service.frontend.core.request_log import SANE_ID, RequestLog, RequestRecord
from service.frontend.grpc.status import Context
from service.observability.logs import request_id
from service.observability.tracing import TraceContext, received_context

MAX_ID = 128


@dataclass(slots=True)
class CallRecord(RequestRecord):
    """`given_id` is that of the request's message; the logs know the turn by it if it is fit for them."""

    given_id: str = ""

    def name(self, given_id: str) -> None:
        """Take up the message's own id.

        Raises:
            BadParameter: it is too long.
        """
        self.given_id = given_id[:MAX_ID]
        if len(given_id) > MAX_ID:
            raise BadParameter(f"parameter 'id' has {len(given_id)} characters; expected at most {MAX_ID}", "id")
        if SANE_ID.fullmatch(given_id):
            self.request_id = given_id
            request_id.set(given_id)

    @property
    def reply_id(self) -> str:
        return self.given_id or self.request_id

    def timings_message(self) -> pb.Timings:
        return pb.Timings(**{f"{stage}_ms": duration for stage, duration in self.durations_ms().items()})


def given_id_of(context: Context) -> str:
    return _metadata(context, "x-request-id") or ""


def context_of(context: Context) -> TraceContext:
    """That of the caller's trace."""
    return received_context(_all_metadata(context, "traceparent"), _all_metadata(context, "tracestate"))


def timeout_ms_of(context: Context) -> int | None:
    """What is left of the call's deadline; None where it has none."""
    seconds: float | None = context.time_remaining()
    return None if seconds is None else int(seconds * 1000)


def caller_of(context: Context, gate: Auth) -> Caller:
    """Raises Unauthenticated."""
    return gate.identify(_metadata(context, "authorization"), host_of(context.peer()))


def _metadata(context: Context, key: str) -> str | None:
    return next(iter(_all_metadata(context, key)), None)


def _all_metadata(context: Context, key: str) -> list[str]:
    return [value for name, value in context.invocation_metadata() or () if name == key and isinstance(value, str)]


@contextmanager
def rpc_span(
    request_log: RequestLog, record: RequestRecord, method: str, context: Context, *, probe: bool = False
) -> Iterator[None]:
    """Whatever is done for a call is done within. `method`: `package.Service/Method`."""
    record.method = method
    about = {"rpc.system.name": "grpc", "rpc.method": method}
    with request_log.request(record, method, partial(context_of, context), about, probe=probe) as span:
        try:
            yield
            record.status = "OK"
        except asyncio.CancelledError:
            record.status = "CANCELLED"
            raise
        finally:
            # Where it was aborted that has said with what.
            span.set({"rpc.response.status_code": str(record.status or "UNKNOWN")})


async def answer_each(
    messages: AsyncIterator[bytes],
    answer: Callable[[int, bytes], Awaitable[bytes]],
    write: Callable[[bytes], Awaitable[None]],
    max_in_hand: int,
) -> None:
    """Write each message's reply once it is ready, in whatever order; `answer` gets the message's position, from 0.

    A message is in hand until its reply was taken by the caller, and only so many are read: a caller who does not
    read, or who pours, holds up nobody else. Returns when the messages have ended and all replies are out. If this
    is cancelled all answers are.
    """
    room = asyncio.Semaphore(max_in_hand)
    writing = asyncio.Lock()  # gRPC takes one message of a call at a time

    async def handle(at: int, message: bytes) -> None:
        try:
            reply = await answer(at, message)
            del message  # only the reply waits for a slow caller
            async with writing:
                await write(reply)
        except grpc.aio.BaseError:
            return  # the caller is gone, and the call is about to be cancelled
        finally:
            room.release()

    async with asyncio.TaskGroup() as group:
        at = 0
        await room.acquire()
        async for message in messages:
            group.create_task(handle(at, message))
            at += 1
            await room.acquire()


async def answer_in_order(
    messages: AsyncIterator[bytes],
    answer: Callable[[int, bytes], Awaitable[bytes]],
    write: Callable[[bytes], Awaitable[None]],
    max_in_hand: int,
) -> None:
    """Write the messages' replies in the order in which they came; `answer` gets the message's position, from 0.

    A message is in hand until its reply was taken by the caller, and only so many are read. Returns when the
    messages have ended and all replies are out. If this is cancelled all answers are.
    """
    room = asyncio.Semaphore(max_in_hand)
    in_hand: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()  # as long as there is room

    async def write_all() -> None:
        while (answering := await in_hand.get()) is not None:
            reply = await answering
            with contextlib.suppress(grpc.aio.BaseError):  # the caller is gone, and the call is about to be cancelled
                await write(reply)
            room.release()

    async with asyncio.TaskGroup() as group:
        group.create_task(write_all())
        at = 0
        await room.acquire()
        async for message in messages:
            in_hand.put_nowait(group.create_task(_awaited(answer(at, message))))
            at += 1
            await room.acquire()
        in_hand.put_nowait(None)


async def _awaited(work: Awaitable[bytes]) -> bytes:
    return await work
