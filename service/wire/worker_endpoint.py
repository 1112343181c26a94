"""A worker's end of the wire: receives messages of front-ends, and answers each front-end by its socket identity."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import structlog

from model.errors import ConvMLPError
from model.types import RawOutput
from service.errors import RetryLater
from service.observability.logs import LogLimit
from service.types import StoredModel
from service.wire.addresses import open_listener
from service.wire.curve import PLAIN, WireOptions
from service.wire.messages import (
    PROTOCOL,
    Answer,
    Answers,
    Cancel,
    ControlRequest,
    Failure,
    Hello,
    MalformedMessage,
    OtherProtocol,
    Predict,
    Predicts,
    ProtocolMismatch,
    State,
    Store,
    ToFrontEnd,
    WaitEstimate,
    decode_to_worker,
    encode,
    pack_output,
)
from service.wire.transport import Frames, NotSent

log = structlog.get_logger(__name__)


class AddressUnavailable(Exception):
    """A worker cannot listen at its address."""


class Envelope(NamedTuple):
    """One message, or one job of a message; its sender's identity, and its arrays as frames."""

    sender: bytes
    message: Hello | Predict | ControlRequest | Cancel
    frames: Frames


@dataclass(slots=True)
class Replies:
    """What one front-end is answered with next, as in Answers."""

    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    frames: list[memoryview] = field(default_factory=list)


class WorkerEndpoint:
    """Use as an async context manager; binds `address` on entry, or raises AddressUnavailable. `address` then is the
    real one (for port 0)."""

    def __init__(self, address: str, options: WireOptions = PLAIN) -> None:
        self._listener = open_listener(address, options)
        self._malformed = LogLimit()
        self._outbox: defaultdict[bytes, Replies] = defaultdict(Replies)
        """By receiver."""
        self._flush_due = False

    @property
    def address(self) -> str:
        return self._listener.address

    async def __aenter__(self) -> Self:
        try:
            await self._listener.__aenter__()
        except OSError as error:
            raise AddressUnavailable(f"a worker at {self.address}: {error.strerror or error}") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        self.flush()
        await self._listener.__aexit__()

    async def run(self, on_message: Callable[[Envelope], None], on_drained: Callable[[], None]) -> None:
        """Call `on_message` with each well-formed message, or each job in it, and `on_drained` after those that arrived
        together, until cancelled. Raises what the callbacks raise.

        Malformed messages are logged and dropped. A greeting in another protocol is answered with this one.
        """

        def receive(sender: bytes, header: memoryview, frames: Frames) -> None:
            try:
                message = decode_to_worker(header)
            except MalformedMessage as error:
                if isinstance(error, OtherProtocol):
                    self._send(sender, ProtocolMismatch(PROTOCOL))
                if (repeated := self._malformed.due(str(error))) is not None:
                    log.error("malformed message from a front-end", error=str(error), repeated=repeated)
                return
            if not isinstance(message, Predicts):
                on_message(Envelope(sender, message, frames))
                return
            predicts = message.predicts
            if len(frames) != len(predicts):
                frames = []  # nobody knows whose they are, so each job is answered that its own is missing
            for number, predict in enumerate(predicts):
                on_message(Envelope(sender, predict, frames[number : number + 1]))

        await self._listener.run(receive, on_drained)

    def answer(
        self,
        receiver: bytes,
        job: int,
        output: RawOutput,
        queue_s: float,
        infer_s: float,
        batch_images: int,
        estimate: WaitEstimate | None,
        precision: str = "",
    ) -> None:
        """Answer a job at the next `flush`. `batch_images` counts the images of its batch, itself included."""
        kind, arrays, frames = pack_output(output)
        replies = self._outbox[receiver]
        replies.answers.append(Answer(job, kind, arrays, queue_s, infer_s, batch_images, estimate, precision))
        replies.frames.extend(frames)

    def fail(self, receiver: bytes, job: int, error: ConvMLPError) -> None:
        """Answer a job with an error at the next `flush`, or by itself in the next iteration of the event loop."""
        retry_after_s = error.retry_after_s if isinstance(error, RetryLater) else None
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)
        self._outbox[receiver].failures.append(Failure(job, error.code, error.detail, retry_after_s))

    def send_store(self, receiver: bytes, job: int, models: tuple[StoredModel, ...]) -> None:
        self._send(receiver, Store(job, models))

    def send_state(self, receiver: bytes, state: State) -> None:
        self._send(receiver, state)

    def flush(self) -> None:
        """Send the answers since the last call: one message to each front-end."""
        outbox, self._outbox, self._flush_due = self._outbox, defaultdict(Replies), False
        for receiver, replies in outbox.items():
            self._send(receiver, Answers(tuple(replies.answers), tuple(replies.failures)), *replies.frames)

    def _send(self, receiver: bytes, header: ToFrontEnd, *frames: memoryview) -> None:
        try:
            self._listener.send(receiver, encode(header), *frames)
        except NotSent as error:
            # The front-end has left, or reads no more: nobody is left to answer.
            log.info("message to a front-end dropped", error=str(error), message=type(header).__name__)
