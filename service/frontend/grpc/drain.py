"""Calls in hand while the server is being stopped, whichever service they are for.

Unary calls are finished. A stream takes in no more messages; the replies in hand are delivered, then it ends: with
UNAVAILABLE where its caller had more to send, for what it sent since was not read. What outlasts the drain is told
UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Never, TypeAlias

import grpc

from service.errors import Unavailable
from service.frontend.core.request_log import usable_id
from service.frontend.grpc.call import given_id_of
from service.frontend.grpc.status import Context, refuse

LAST_LOOK_S = 0.2
"""How long a stream that is about to end waits for its caller's word that nothing more would have come."""

ENDING = "this process is shutting down; messages without a reply were not taken in: send them again"
OUT_OF_TIME = "this process is shutting down and had no time left for the call; send it again"

Behaviour = Callable[[Any, Context], Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

KINDS: dict[tuple[bool, bool], tuple[str, Callable[..., Handler]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
"""By whether requests and replies are streams: where a handler keeps its behaviour, and what makes one."""


class Drain(grpc.aio.ServerInterceptor):
    """Knows the calls in hand, and ends them when told to."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._calls: set[asyncio.Task[Any]] = set()
        self._given_up: set[asyncio.Task[Any]] = set()

    def begin(self) -> None:
        """Take in no more messages."""
        self._begun.set()

    def give_up(self) -> None:
        """End all calls that are still in hand."""
        self._given_up |= self._calls
        for call in self._calls:
            call.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method
            return None
        name, remade = KINDS[handler.request_streaming, handler.response_streaming]
        keep = self._streamed if handler.request_streaming else self._held
        return remade(keep(getattr(handler, name)), handler.request_deserializer, handler.response_serializer)

    def _held(self, behaviour: Behaviour) -> Behaviour:
        async def answer(request: Any, context: Context) -> Any:  # noqa: ANN401  (whatever the method's messages are)
            task = asyncio.current_task()
            assert task is not None
            self._calls.add(task)
            try:
                return await _run(behaviour, request, context)
            except asyncio.CancelledError:
                if task not in self._given_up:
                    raise  # the caller left
                await _refuse(context, OUT_OF_TIME)
            finally:
                self._calls.discard(task)
                self._given_up.discard(task)

        return answer

    def _streamed(self, behaviour: Behaviour) -> Behaviour:
        async def answer(_: object, context: Context) -> Any:  # noqa: ANN401
            messages = _Messages(context, self._begun)
            try:
                reply = await _run(behaviour, messages, context)
                if await messages.cut_short():
                    await _refuse(context, ENDING)
                return reply
            finally:
                messages.close()

        return self._held(answer)


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
        """Whether the caller had more to send, or may have."""
        if self._ended or not self._drain.is_set():
            return False
        reading = self._read()
        await asyncio.wait({reading}, timeout=LAST_LOOK_S)
        return not (reading.done() and reading.result() is grpc.aio.EOF)

    def close(self) -> None:
        self._draining.cancel()
        if self._reading is not None:
            self._reading.cancel()

    def _read(self) -> asyncio.Task[Any]:
        if self._reading is None:  # one that was cut off by the drain goes on
            self._reading = asyncio.create_task(self._context.read())
        return self._reading


async def _refuse(context: Context, words: str) -> Never:
    await refuse(context, Unavailable(words), usable_id(given_id_of(context)))


async def _run(behaviour: Behaviour, request: object, context: Context) -> Any:  # noqa: ANN401
    """The reply, or None for one that replies by writing to the context; generators are made to do so."""
    answer = behaviour(request, context)
    if not isinstance(answer, AsyncGenerator):
        return await answer
    async with aclosing(answer):
        async for reply in answer:
            await context.write(reply)
    return None
