"""The calls in flight while the server stops, of every service.

Unary calls are finished. A stream reads no more messages, delivers the replies in flight, and ends: with UNAVAILABLE if
its client had more to send, because that was not read. Calls that outlast the drain end with UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from service.errors import Unavailable
from service.frontend.core.request_log import usable_id
from service.frontend.grpc.call import request_id_of
from service.frontend.grpc.status import Context, abort

END_OF_STREAM_S = 0.2
"""How long a stream waits for the end of its client's messages before it counts them as unread."""

DRAINING = "this process is shutting down; send the messages without a reply again"
OUT_OF_TIME = "this process is shutting down and had no time left for the call; send it again"

Behaviour = Callable[[Any, Context], Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

KINDS: dict[tuple[bool, bool], tuple[str, Callable[..., Handler]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
"""By whether requests and replies are streams: the attribute with a handler's behaviour, and the handler's factory."""


class Drain(grpc.aio.ServerInterceptor):
    """Tracks the calls in flight, and ends them on demand."""

    def __init__(self) -> None:
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
            tracked = self._handlers[method] = self._track_handler(handler)
        return tracked

    def _track_handler(self, handler: Handler) -> Handler:
        name, make = KINDS[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, name)
        if inspect.isasyncgenfunction(behaviour):
            behaviour = _write_replies(behaviour)
        behaviour = self._track_calls(behaviour, streams=handler.request_streaming)
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    def _track_calls(self, behaviour: Behaviour, *, streams: bool) -> Behaviour:
        async def answer(request: Any, context: Context) -> Any:  # noqa: ANN401  (any message type)
            task = asyncio.current_task()
            assert task is not None
            self._calls.add(task)
            messages = _Messages(context, self._begun) if streams else None
            try:
                reply = await behaviour(request if messages is None else messages, context)
                if messages is not None and await messages.cut_short():
                    await abort(context, Unavailable(DRAINING), usable_id(request_id_of(context)))
                return reply
            except asyncio.CancelledError:
                if task not in self._given_up:
                    raise  # the client disconnected
                await abort(context, Unavailable(OUT_OF_TIME), usable_id(request_id_of(context)))
            finally:
                if messages is not None:
                    messages.close()
                self._calls.discard(task)
                self._given_up.discard(task)

        return answer


class _Messages:
    """A stream's messages until it ends, or until the drain begins."""

    def __init__(self, context: Context, drain: asyncio.Event) -> None:
        self._context = context
        self._drain = drain
        self._draining = asyncio.create_task(drain.wait())
        self._reading: asyncio.Task[Any] | None = None
        self._ended = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401
        if self._ended:
            raise StopAsyncIteration
        reading = self._read()
        await asyncio.wait({reading, self._draining}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise StopAsyncIteration
        self._reading = None
        if reading.result() is grpc.aio.EOF:
            self._ended = True
            raise StopAsyncIteration
        return reading.result()

    async def cut_short(self) -> bool:
        """Whether the client had more to send, or may have."""
        if self._ended or not self._drain.is_set():
            return False
        reading = self._read()
        await asyncio.wait({reading}, timeout=END_OF_STREAM_S)
        return not (reading.done() and reading.result() is grpc.aio.EOF)

    def close(self) -> None:
        self._draining.cancel()
        if self._reading is not None:
            self._reading.cancel()

    def _read(self) -> asyncio.Task[Any]:
        if self._reading is None:  # else the read that the drain interrupted goes on
            self._reading = asyncio.create_task(self._context.read())
        return self._reading


def _write_replies(generator: Callable[[Any, Context], Any]) -> Behaviour:
    """An async generator's replies, written to the context."""

    async def answer(request: object, context: Context) -> None:
        async with aclosing(generator(request, context)) as replies:
            async for reply in replies:
                await context.write(reply)

    return answer
