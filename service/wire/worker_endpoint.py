"""A worker's end of the wire: receives what front-ends send, answers each by its address."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog
import zmq

from model.errors import ConvMLPError
from model.types import RawOutput
from service.errors import RetryLater
from service.types import StoredModel
from service.wire.messages import (
    Answer,
    Answers,
    Failure,
    MalformedMessage,
    State,
    Store,
    ToFrontEnd,
    ToWorker,
    WaitEstimate,
    answer_of,
    decode_to_worker,
    encode,
)
from service.wire.zmq_socket import HIGH_WATER_MARK, ZmqSocket

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message, who sent it, and its array frames."""

    sender: bytes
    message: ToWorker
    frames: list[memoryview]


class WorkerEndpoint:
    """Use as an async context manager; binds `address` on entry. `address` then is the real one (for port 0)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._context = zmq.Context()
        self._outbox: dict[bytes, list[tuple[Answer, list[memoryview]]]] = {}

    async def __aenter__(self) -> WorkerEndpoint:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 1000)  # the last answers of a drain still leave
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # tell us when a front-end is gone
        socket.set_hwm(HIGH_WATER_MARK)
        socket.bind(self.address)
        self.address = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._mailbox = ZmqSocket(socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._send_answers()
        self._mailbox.close()
        self._context.term()

    async def receive(self) -> Envelope:
        """The next well-formed message; others are logged and dropped, for their sender cannot be helped."""
        while True:
            sender, header, *frames = await self._mailbox.receive()
            try:
                return Envelope(sender.bytes, decode_to_worker(header.buffer), [frame.buffer for frame in frames])
            except MalformedMessage as error:
                log.error("malformed message from a front-end", error=str(error))

    def answer(
        self,
        receiver: bytes,
        job: int,
        output: RawOutput,
        queue_s: float,
        infer_s: float,
        batch_images: int,
        outlook: WaitEstimate,
    ) -> None:
        """Sent as soon as the caller is through, together with what else it answers to the same front-end.

        `batch_images` shared the job's batch, itself among them.
        """
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._send_answers)
        answer = answer_of(job, output, queue_s, infer_s, batch_images, outlook)
        self._outbox.setdefault(receiver, []).append(answer)

    def fail(self, receiver: bytes, job: int, error: ConvMLPError) -> None:
        retry_after_s = error.retry_after_s if isinstance(error, RetryLater) else None
        self._send(receiver, Failure(job, error.code, error.detail, retry_after_s))

    def tell_store(self, receiver: bytes, job: int, models: tuple[StoredModel, ...]) -> None:
        self._send(receiver, Store(job, models))

    def tell(self, receiver: bytes, state: State) -> None:
        self._send(receiver, state)

    def _send_answers(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for receiver, answers in outbox.items():
            header = Answers(tuple([answer for answer, _ in answers]))
            self._send(receiver, header, *(frame for _, frames in answers for frame in frames))

    def _send(self, receiver: bytes, header: ToFrontEnd, *frames: memoryview) -> None:
        try:
            self._mailbox.send(receiver, encode(header), *frames)
        except zmq.ZMQError as error:
            # The front-end is gone or does not read any more: there is nobody left to tell.
            log.info("message to a front-end dropped", error=str(error), message=type(header).__name__)
