"""The calls in flight, of every service: their messages are received within bounds, and they end when the server stops.

Unary calls are finished. A stream reads no more messages, delivers the replies in flight, and ends: with UNAVAILABLE if
its client had more to send, because that was not read. Calls that outlast the drain end with UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from model.errors import ConvMLPError
from service.errors import Overloaded, Unavailable
from service.frontend.core.request_log import usable_id
from service.frontend.grpc.call import request_id_of
from service.frontend.grpc.receive import Messages, Receiver
from service.frontend.grpc.status import Context, abort

END_OF_STREAM_S = 0.2
"""How long a stream waits for the end of its client's messages before it counts them as unread."""

RESERVED = 64
"""Calls of probes beyond the limit of calls."""

DRAINING = "this process is shutting down; send the messages without a reply again"
OUT_OF_TIME = "this process is shutting down and had no time left for the call; send it again"

Behaviour = Callable[[Any, Context], Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Drain(grpc.aio.ServerInterceptor):
    """Tracks the calls in flight, and ends them on demand. `receiver` reads their messages.

    Beyond `max_calls` only `probes` are answered, `RESERVED` at a time; these are names of methods, `/SERVICE/METHOD`.
    `refuse` makes the error of other calls.

    For gRPC each method reads a stream, whatever its kind: only such a call can be answered before its message has
    arrived. The handler of a stream gets its `Messages`; one that has one reply reads `only` one.
    """

    def __init__(
        self, receiver: Receiver, max_calls: int, probes: Collection[str], refuse: Callable[[], Overloaded]
    ) -> None:
        self._receiver = receiver
        self._max_calls = max_calls
        self._probes = probes
        self._refuse = refuse
        self._begun = asyncio.Event()
        self._calls: set[asyncio.Task[Any]] = set()
        self._given_up: set[asyncio.Task[Any]] = set()
        self._handlers: dict[str, Handler] = {}

    def begin(self) -> None:
        """Read no more messages."""
        self._begun.set()

    def give_up(self) -> None:
        """End all calls in flight."""
        self._given_up |= self._calls
        for call in self._calls:
            call.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        tracked = self._handlers.get(method)
        if tracked is None:
            handler = await continuation(handler_call_details)
            if handler is None:  # no such method
                return None
            tracked = self._handlers[method] = self._track_handler(handler, method in self._probes)
        return tracked

    def _track_handler(self, handler: Handler, is_probe: bool) -> Handler:
        kinds = (
            "stream" if streams else "unary" for streams in (handler.request_streaming, handler.response_streaming)
        )
        behaviour = getattr(handler, "_".join(kinds))
        if inspect.isasyncgenfunction(behaviour):
            behaviour = _write_replies(behaviour)
        behaviour = self._track_calls(behaviour, handler, self._max_calls + (RESERVED if is_probe else 0))
        make: Callable[..., Handler] = grpc.stream_unary_rpc_method_handler
        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    def _track_calls(self, behaviour: Behaviour, handler: Handler, max_calls: int) -> Behaviour:
        streams = handler.request_streaming
        is_open = streams and handler.response_streaming

        async def answer(context: Context) -> Any:  # noqa: ANN401  (any message type)
            task = asyncio.current_task()
            assert task is not None
            if len(self._calls) >= max_calls:
                await abort(context, self._refuse(), usable_id(request_id_of(context)))
            self._calls.add(task)
            messages = Messages(self._receiver, context, self._begun)
            try:
                if not streams:
                    return await behaviour(await messages.only(), context)
                reply = await behaviour(messages, context)
                if is_open and await messages.cut_short(END_OF_STREAM_S):
                    await abort(context, Unavailable(DRAINING), usable_id(request_id_of(context)))
                return reply
            except ConvMLPError as error:
                await abort(context, error, usable_id(request_id_of(context)))
            except asyncio.CancelledError:
                if task not in self._given_up:
                    raise  # the client disconnected
                await abort(context, Unavailable(OUT_OF_TIME), usable_id(request_id_of(context)))
            finally:
                messages.close()
                self._calls.discard(task)
                self._given_up.discard(task)

        async def forget(grpcs_messages: object, context: Context) -> Any:  # noqa: ANN401
            """A call keeps the error of its abort. That must not keep the call, and what arrived of its message."""
            answering = answer(context)
            del grpcs_messages, context
            try:
                return await answering
            except grpc.aio.AbortError as error:
                error.__traceback__ = error.__context__ = None
                raise

        return forget


def _write_replies(generator: Callable[[Any, Context], Any]) -> Behaviour:
    """An async generator's replies, written to the context."""

    async def answer(request: object, context: Context) -> None:
        async with aclosing(generator(request, context)) as replies:
            async for reply in replies:
                await context.write(reply)

    return answer
