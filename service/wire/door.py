"""A worker's end of the wire: receives what front-ends send, answers each by its address."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
import zmq
import zmq.asyncio

from model.errors import ConvMLPError
from model.types import RawOutput
from service.errors import RetryLater
from service.types import StoredModel
from service.wire.frames import describe, frames_of
from service.wire.line import HIGH_WATER_MARK
from service.wire.messages import (
    Answer,
    Failure,
    MalformedMessage,
    State,
    Store,
    ToFrontEnd,
    ToWorker,
    decode_to_worker,
    encode,
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Letter:
    """One message, who sent it, and its array frames."""

    sender: bytes
    message: ToWorker
    frames: list[memoryview]


class Door:
    """Use as an async context manager; binds `address` on entry. `address` then is the real one (for port 0)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._context = zmq.asyncio.Context()

    async def __aenter__(self) -> Door:
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 1000)  # the last answers of a drain still leave
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # tell us when a front-end is gone
        self._socket.set_hwm(HIGH_WATER_MARK)
        self._socket.bind(self.address)
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()

    async def receive(self) -> Letter:
        """The next well-formed message; others are logged and dropped, for their sender cannot be helped."""
        while True:
            sender, header, *frames = await self._socket.recv_multipart(copy=False)
            try:
                return Letter(sender.bytes, decode_to_worker(header.bytes), [frame.buffer for frame in frames])
            except MalformedMessage as error:
                log.error("malformed message from a front-end", error=str(error))

    async def answer(self, receiver: bytes, job: int, output: RawOutput, queue_s: float, infer_s: float) -> None:
        kind, arrays = frames_of(output)
        header = Answer(job, kind, describe(arrays), queue_s, infer_s)
        await self._send(receiver, header, [array.data for array in arrays])

    async def fail(self, receiver: bytes, job: int, error: ConvMLPError) -> None:
        retry_after_s = error.retry_after_s if isinstance(error, RetryLater) else None
        await self._send(receiver, Failure(job, error.code, error.detail, retry_after_s), [])

    async def tell_store(self, receiver: bytes, job: int, models: tuple[StoredModel, ...]) -> None:
        await self._send(receiver, Store(job, models), [])

    async def tell(self, receiver: bytes, state: State) -> None:
        await self._send(receiver, state, [])

    async def _send(self, receiver: bytes, header: ToFrontEnd, frames: list[memoryview]) -> None:
        try:
            await self._socket.send_multipart([receiver, encode(header), *frames], flags=zmq.NOBLOCK, copy=False)
        except (zmq.Again, zmq.ZMQError) as error:
            # The front-end is gone or does not read any more: there is nobody left to tell.
            log.info("message to a front-end dropped", error=str(error), message=type(header).__name__)
