"""A bidirectional stream, asked as if each image had a call of its own: requests and replies meet by their ids."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from convmlp_client.transport.rpc_errors import error_of_status
from convmlp_client.transport.rpc_messages import Request, Response

Metadata = Sequence[tuple[str, str]]

LAST_REPLIES_S = 1.0
"""For a stream's end to be confirmed by the service; then it is cancelled."""


class Stream:
    """A stream, opened when it is first asked, and again when it is asked after it broke."""

    def __init__(self, method: Any, metadata: Metadata, address: str) -> None:  # noqa: ANN401  (each has its messages)
        self._method = method
        self._metadata = metadata
        self._address = address
        self._flight: _Flight | None = None

    async def ask(self, request: Request) -> Response | None:
        """The reply to a request, which is given an id of the stream's; None if the stream broke before it came.

        Whoever is told None does well to ask by a call of its own: what broke the stream may have been a neighbour's.

        Raises:
            ClientError: what the service says in the reply.
        """
        if self._flight is None or self._flight.broken:
            self._flight = _Flight(self._method, self._metadata)
        reply = await self._flight.ask(request)
        if reply is not None and reply.HasField("error"):
            raise error_of_status(reply.error, self._address, reply.id)
        return reply

    async def aclose(self) -> None:
        """End the stream; requests in hand are withdrawn."""
        if self._flight is not None:
            await self._flight.end()


@dataclass(eq=False, slots=True)
class _Asked:
    request: Request
    reply: asyncio.Future[Response | None]


class _Flight:
    """One stream, from its opening to its end."""

    def __init__(self, method: Any, metadata: Metadata) -> None:  # noqa: ANN401
        self.broken = False
        self._id = uuid.uuid4().hex
        self._call = method(metadata=(*metadata, ("x-request-id", self._id)))
        # Both hold no more than is being asked, which whoever asks keeps in bounds. None ends the stream.
        self._unsent: asyncio.Queue[_Asked | None] = asyncio.Queue()
        self._sent: dict[str, _Asked] = {}
        self._unanswered = 0
        """Requests that the service has in hand, those that were given up here among them."""
        self._writing = asyncio.create_task(self._write())
        self._reading = asyncio.create_task(self._read())

    async def ask(self, request: Request) -> Response | None:
        asked = _Asked(request, asyncio.get_running_loop().create_future())
        # Not written here: gRPC ends the whole stream when a write is cancelled.
        self._unsent.put_nowait(asked)
        try:
            return await asked.reply
        finally:
            self._sent.pop(request.id, None)

    async def end(self) -> None:
        if not (self.broken or self._unanswered):
            self._unsent.put_nowait(None)
            await asyncio.wait({self._reading}, timeout=LAST_REPLIES_S)
        self._call.cancel()
        self._writing.cancel()
        await asyncio.wait({self._writing, self._reading})

    async def _write(self) -> None:
        try:
            written = 0
            while (asked := await self._unsent.get()) is not None:
                if asked.reply.done():  # whoever asked gave up meanwhile
                    continue
                # As the service counts: it tells by the position what is wrong with a message that it does not read.
                asked.request.id = f"{self._id}-{written}"
                self._sent[asked.request.id] = asked
                self._unanswered += 1
                await self._call.write(asked.request)
                written += 1
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, asyncio.CancelledError):
            self._call.cancel()  # why it ended is what the reader is told

    async def _read(self) -> None:
        try:
            async for reply in self._call:
                if reply is None:  # gRPC's word for a message that is none
                    break
                self._unanswered -= 1
                asked = self._sent.get(reply.id)
                if asked is not None and not asked.reply.done():
                    asked.reply.set_result(reply)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        finally:
            self.broken = True
            self._call.cancel()
            self._writing.cancel()
            unsent = [self._unsent.get_nowait() for _ in range(self._unsent.qsize())]
            for asked in (*self._sent.values(), *unsent):
                if asked is not None and not asked.reply.done():
                    asked.reply.set_result(None)
