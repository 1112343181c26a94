"""One image's turn, a unary call or one message of a stream; and what a call says of itself beside its messages.

What is told of a gRPC call, by the semantic conventions of OpenTelemetry for RPC servers.

A stream's messages, each answered as soon as it can be, and no more of them in hand than a bound.

A stream's messages, answered together and replied to in their order.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from convmlp.v1 import vision_pb2 as pb
from service.errors import BadParameter
from service.frontend.core.auth import Auth, Caller, host_of
from service.frontend.core.request_log import SANE_ID, RequestLog, RequestRecord
from service.frontend.grpc.status import Context
from service.observability.logs import request_id
from service.observability.tracing import TraceContext, received_context

MAX_ID = 128


def take_id(record: RequestRecord, given_id: str) -> None:
    """Take up the id in the request's message; the logs use it if it is fit for them.

    Raises:
        BadParameter: it is too long.
    """
    record.given_id = given_id[:MAX_ID]
    if len(given_id) > MAX_ID:
        raise BadParameter(f"parameter 'id' has {len(given_id)} characters; expected at most {MAX_ID}", "id")
    if SANE_ID.fullmatch(given_id):
        record.request_id = given_id
        request_id.set(given_id)


def reply_id(record: RequestRecord) -> str:
    return record.given_id or record.request_id


def timings_message(record: RequestRecord) -> pb.Timings:
    return pb.Timings(**{f"{stage}_ms": duration for stage, duration in record.finish().items()})


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


def begin_call(request_log: RequestLog, method: str, context: Context, *, probe: bool = False) -> RequestRecord:
    """The record of a call that arrives now. `method`: `package.Service/Method`."""
    record = request_log.request(given_id_of(context), method, probe=probe)
    record.status = "OK"  # until an error says otherwise
    if request_log.tracing.on and not probe:
        about = {"rpc.system.name": "grpc", "rpc.method": method}
        record.span = request_log.tracing.request(method, context_of(context), about)
    return record


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
