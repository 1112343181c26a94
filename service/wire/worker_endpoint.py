"""A worker's end of the wire: receives messages of front-ends, and answers each front-end by its socket identity."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import structlog
import zmq

from model.errors import ConvMLPError
from model.types import RawOutput
from service.errors import RetryLater
from service.observability.logs import LogLimit
from service.types import StoredModel
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
from service.wire.zmq_socket import HIGH_WATER_MARK, ZmqSocket

BIND_INTERVAL_S = 1.0
"""Between two looks at the file of an `ipc://` address."""

log = structlog.get_logger(__name__)


class Envelope(NamedTuple):
    """One message, or one job of a message; its sender's identity, and its arrays as frames."""

    sender: bytes
    message: Hello | Predict | ControlRequest | Cancel
    frames: Sequence[zmq.Frame]


@dataclass(slots=True)
class Replies:
    """What one front-end is answered with next, as in Answers."""

    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    frames: list[memoryview] = field(default_factory=list)


class WorkerEndpoint:
    """Use as an async context manager; binds `address` on entry. `address` then is the real one (for port 0)."""

    def __init__(self, address: str, options: WireOptions = PLAIN) -> None:
        self.address = address
        self._options = options
        self._context = zmq.Context()
        self._authenticator = self._options.authenticator(self._context, address)
        self._malformed = LogLimit()
        self._outbox: dict[bytes, Replies] = {}
        """By receiver."""
        self._flush_due = False

    async def __aenter__(self) -> WorkerEndpoint:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 1000)  # the last answers of a drain still leave
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a send to a front-end that has left fails
        socket.set_hwm(HIGH_WATER_MARK)
        self._options.apply(socket, self.address, server=True)
        if self._authenticator is not None:
            self._authenticator.start()
        socket.bind(self.address)
        self.address = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._bind = socket.bind
        self._socket = ZmqSocket(socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.flush()
        self._socket.close()
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.term()

    async def run(self, on_message: Callable[[Envelope], None], on_drained: Callable[[], None]) -> None:
        """Call `on_message` with each well-formed message, or each job in it, and `on_drained` after those that arrived
        together, until cancelled. Raises what the callbacks raise.

        Malformed messages are logged and dropped. A greeting in another protocol is answered with this one.
        """

        def receive(parts: Sequence[zmq.Frame]) -> None:
            try:
                sender, message, frames = parts[0].bytes, decode_to_worker(parts[1].buffer), parts[2:]
            except (MalformedMessage, IndexError) as error:
                if isinstance(error, OtherProtocol):
                    self._send(parts[0].bytes, ProtocolMismatch(PROTOCOL))
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

        binding = asyncio.create_task(self._keep_bound(), name="worker-address")
        try:
            await self._socket.run(receive, on_drained)
        finally:
            binding.cancel()

    async def _keep_bound(self) -> None:
        """Bind an `ipc://` address again when something deleted its file.

        Connections live on without the file; new ones, of a restarted front-end, need it.
        """
        protocol, _, name = self.address.partition("://")
        path, lost = Path(name), False
        while protocol == "ipc" and not name.startswith("@"):  # an abstract address has no file
            await asyncio.sleep(BIND_INTERVAL_S)
            if not _is_lost(path):
                continue
            try:
                self._bind(self.address)
            except zmq.ZMQError as error:
                if not lost:
                    log.error("the worker's socket was deleted and cannot be made again", path=name, error=str(error))
                lost = True
            else:
                lost = False
                log.warning("the worker's socket was deleted; made it again", path=name)

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
        replies = self._replies(receiver)
        replies.answers.append(Answer(job, kind, arrays, queue_s, infer_s, batch_images, estimate, precision))
        replies.frames.extend(frames)

    def fail(self, receiver: bytes, job: int, error: ConvMLPError) -> None:
        """Answer a job with an error at the next `flush`, or by itself in the next iteration of the event loop."""
        retry_after_s = error.retry_after_s if isinstance(error, RetryLater) else None
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)
        self._replies(receiver).failures.append(Failure(job, error.code, error.detail, retry_after_s))

    def send_store(self, receiver: bytes, job: int, models: tuple[StoredModel, ...]) -> None:
        self._send(receiver, Store(job, models))

    def send_state(self, receiver: bytes, state: State) -> None:
        self._send(receiver, state)

    def flush(self) -> None:
        """Send the answers since the last call: one message to each front-end."""
        outbox, self._outbox, self._flush_due = self._outbox, {}, False
        for receiver, replies in outbox.items():
            self._send(receiver, Answers(tuple(replies.answers), tuple(replies.failures)), *replies.frames)

    def _replies(self, receiver: bytes) -> Replies:
        replies = self._outbox.get(receiver)
        if replies is None:
            replies = self._outbox[receiver] = Replies()
        return replies

    def _send(self, receiver: bytes, header: ToFrontEnd, *frames: memoryview) -> None:
        try:
            self._socket.send(receiver, encode(header), *frames)
        except zmq.ZMQError as error:
            # The front-end has left, or reads no more: nobody is left to answer.
            log.info("message to a front-end dropped", error=str(error), message=type(header).__name__)


def _is_lost(path: Path) -> bool:
    """Whether a socket's file was deleted and may be made again."""
    try:
        # A folder of another user, put in the place of this one, must not get the socket.
        return not path.exists() and path.parent.stat().st_uid in (0, os.geteuid())
    except OSError:  # the folder was deleted as well
        return True
