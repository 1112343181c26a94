"""What the methods of every gRPC service have in common: records, credentials, deadlines, errors and streams.

A method is a function from a message to its reply, both bytes. It parses its messages itself, because gRPC would answer
a malformed one with its own internals. Spans follow OpenTelemetry's semantic conventions for RPC servers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Never, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status

from model.errors import ConvMLPError
from service.errors import INTERNAL_DETAIL, BadRequest, DeadlineExceeded, Internal
from service.frontend.core.auth import Auth
from service.frontend.core.request_log import RequestLog, RequestRecord
from service.frontend.grpc.receive import Messages, host_of
from service.frontend.grpc.status import Context, abort, record_error, status_of
from service.observability.tracing import TraceContext, received_context

EARLY_S = 0.02
"""How much too early gRPC may cancel a call at its deadline: its timers read a coarse clock."""

M = TypeVar("M", bound=Message)

Method = Callable[[RequestRecord, bytes, int | None], Awaitable[bytes]]
"""From a message to its reply. The last argument is what remains of the caller's deadline, in ms. Raises domain errors
as ConvMLPError."""
ErrorReply = Callable[[RequestRecord, Status], bytes]
"""The reply to a message of a stream that failed."""

log = structlog.get_logger(__name__)


class RpcService:
    """The methods of one gRPC service. `name` is `package.Service`."""

    def __init__(self, name: str, auth: Auth, request_log: RequestLog, max_stream_in_flight: int) -> None:
        self._name = name
        self._auth = auth
        self._log = request_log
        self._max_stream_in_flight = max_stream_in_flight
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def add_unary(self, name: str, method: Method, *, task: str | None = None, probe: bool = False) -> None:
        """`task`: the metrics count the calls as predictions of it; "" where it depends on the message.

        A `probe` needs no key and is not logged. Trailing metadata are `x-request-id` and a prediction's
        `server-timing` and `x-model-precision`.
        """

        async def handle(messages: Messages, context: Context) -> bytes:
            metadata = _first_values(context)
            with self._begin(name, context, metadata, probe=probe) as record:
                record.predicts, record.task = task is not None, task or ""
                timeout_ms = _timeout_ms(context)
                try:
                    if not probe:
                        record.caller = self._identify(context, metadata)
                    data = await messages.only()
                    record.request_bytes = len(data)
                    answering = method(record, data, _timeout_ms(context))
                    del data  # the method drops it once it is parsed
                    reply = await answering
                except (Exception, asyncio.CancelledError) as error:
                    if (domain_error := _domain_error(error, record, timeout_ms)) is None:
                        raise
                    await _fail(context, domain_error, record)
                trailing = [("x-request-id", record.request_id)]
                if record.predicts:
                    trailing.append(("server-timing", record.server_timing()))
                if record.precision:
                    trailing.append(("x-model-precision", record.precision))
                context.set_trailing_metadata(tuple(trailing))
                record.reply_bytes = len(reply)
                return reply

        self._handlers[name] = grpc.stream_unary_rpc_method_handler(handle)  # see `Drain`

    def add_stream(
        self, name: str, method: Method, error_reply: ErrorReply, *, task: str = "", ordered: bool = False
    ) -> None:
        """A stream of predictions. Invalid credentials end it; every other error is the reply to its message.

        `ordered`: replies come in the order of their messages. The initial metadata are `x-request-id`.
        """

        async def handle(messages: Messages, context: Context) -> None:
            metadata = _first_values(context)
            with self._begin(name, context, metadata) as call:
                call.task = task
                try:
                    call.caller = self._identify(context, metadata)
                except ConvMLPError as error:
                    call.predicts = True
                    await _fail(context, error, call)
                await context.send_initial_metadata((("x-request-id", call.request_id),))

                async def answer(position: int, data: bytes) -> bytes:
                    with self._log.message(call, position) as record:
                        record.predicts, record.task = True, task
                        record.request_bytes = len(data)
                        call.request_bytes += len(data)
                        timeout_ms = _timeout_ms(context)
                        answering = method(record, data, timeout_ms)
                        del data  # the method drops it once it is parsed
                        try:
                            reply = await answering
                        except (Exception, asyncio.CancelledError) as error:
                            if (domain_error := _domain_error(error, record, timeout_ms)) is None:
                                raise
                            record_error(domain_error, record)
                            reply = error_reply(record, status_of(domain_error, record.request_id))
                        record.reply_bytes = len(reply)
                    call.reply_bytes += len(reply)
                    return reply

                try:
                    await answer_stream(messages, answer, context.write, self._max_stream_in_flight, ordered=ordered)
                except ExceptionGroup as errors:
                    (unread,) = errors.exceptions
                    if not isinstance(unread, ConvMLPError):
                        raise
                    _drop_frames(errors)
                    _drop_frames(unread)
                    call.predicts = True
                    await _fail(context, unread, call)

        self._handlers[name] = grpc.stream_stream_rpc_method_handler(handle)

    def add_unsupported(self, name: str, reason: str) -> None:
        """A method that ends with UNIMPLEMENTED."""

        async def handle(_: bytes, context: Context) -> None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, reason)

        self._handlers[name] = grpc.unary_unary_rpc_method_handler(handle)

    def add_to(self, server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(self._name, self._handlers),))

    def _begin(self, name: str, context: Context, metadata: dict[str, str], *, probe: bool = False) -> RequestRecord:
        """The record of a call that arrives now."""
        method = f"{self._name}/{name}"
        record = self._log.request(metadata.get("x-request-id", ""), method, probe=probe)
        record.status = "OK"  # until an error sets another
        if self._log.tracing.on and not probe:
            attributes = {"rpc.system.name": "grpc", "rpc.method": method}
            record.span = self._log.tracing.request(method, _trace_context(context), attributes)
        return record

    def _identify(self, context: Context, metadata: dict[str, str]) -> str:
        """The caller's name, or its host where every caller is served. Raises Unauthenticated."""
        host = host_of(context.peer())
        if (proxies := self._auth.proxies) is not None:
            host = proxies.caller(host, _values(context, proxies.header))
        return host if self._auth.is_open else self._auth.identify(metadata.get("authorization"), host)


def parse(kind: type[M], data: bytes) -> M:
    """Raises BadRequest where the bytes are not such a message."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise BadRequest(f"the request is not a valid message {kind.DESCRIPTOR.full_name}") from None


async def answer_stream(
    messages: AsyncIterator[bytes],
    answer: Callable[[int, bytes], Awaitable[bytes]],
    write: Callable[[bytes], Awaitable[None]],
    max_in_flight: int,
    *,
    ordered: bool = False,
) -> None:
    """Answer a stream's messages concurrently, and write each reply once it is ready; `ordered`: in their order.

    `answer` gets a message's position, from 0, and the message. A message is in flight until its reply is written. No
    message is read beyond `max_in_flight`, so a client that sends fast or reads slowly holds up only itself. Returns
    when the messages have ended and all replies are written. Cancelling this cancels all answers; so does an error of
    `messages`, which is raised in an ExceptionGroup.
    """
    room = asyncio.Semaphore(max_in_flight)
    writing = asyncio.Lock()  # gRPC takes one message of a call at a time

    async def handle(position: int, message: bytes, previous: asyncio.Task[None] | None) -> None:
        answering = answer(position, message)
        del message  # the answer drops it once it is parsed
        try:
            reply = await answering
            if previous is not None:
                await asyncio.wait((previous,))
            async with writing:
                await write(reply)
        except grpc.aio.BaseError:
            return  # the client disconnected; gRPC is about to cancel the call
        finally:
            room.release()

    async with asyncio.TaskGroup() as group:
        position = 0
        previous: asyncio.Task[None] | None = None
        await room.acquire()
        async for message in messages:
            task = group.create_task(handle(position, message, previous))
            del message
            previous = task if ordered else None
            position += 1
            await room.acquire()


def request_id_of(context: Context) -> str:
    """The caller's `x-request-id`; empty where there is none."""
    return _first_values(context).get("x-request-id", "")


def _first_values(context: Context) -> dict[str, str]:
    """The first value of each key of the call's metadata; only keys that end with -bin have values that are bytes."""
    metadata: Any = context.invocation_metadata() or ()
    return dict(reversed(metadata))


def _trace_context(context: Context) -> TraceContext:
    return received_context(_values(context, "traceparent"), _values(context, "tracestate"))


def _values(context: Context, name: str) -> list[str]:
    """All values of a key of the call's metadata, in their order."""
    metadata: Any = context.invocation_metadata() or ()
    return [value for key, value in metadata if key == name]


def _timeout_ms(context: Context) -> int | None:
    """What remains of the call's deadline; None where it has none."""
    seconds: float | None = context.time_remaining()
    return None if seconds is None else int(seconds * 1000)


async def _fail(context: Context, error: ConvMLPError, record: RequestRecord) -> Never:
    """End a call with an error. Raises an exception that ends the handler."""
    record_error(error, record)
    await abort(context, error, record.request_id)


def _domain_error(error: BaseException, record: RequestRecord, timeout_ms: int | None) -> ConvMLPError | None:
    """The domain error that a caller gets for an exception; None for the CancelledError of a caller that has left."""
    if isinstance(error, asyncio.CancelledError):
        # gRPC cancels a call whose deadline has passed, too.
        if timeout_ms is None or time.monotonic() < record.started_s + timeout_ms / 1000 - EARLY_S:
            return None
        domain_error: ConvMLPError = DeadlineExceeded("timed out before the answer was ready")
    elif isinstance(error, ConvMLPError):
        domain_error = error
    else:
        log.error("unexpected error", request_id=record.request_id, exc_info=error)
        domain_error = Internal(INTERNAL_DETAIL)
    _drop_frames(error)
    return domain_error


def _drop_frames(error: BaseException) -> None:
    """They hold the message, and one of them may hold the error: a cycle, which Python would free much later."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
