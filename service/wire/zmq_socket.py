"""ZeroMQ on the event loop: a socket that calls back for each message, and a front-end's connection to one worker,
which sends the jobs of one iteration of the loop together.

`zmq.asyncio` spends several futures and callbacks on each message, and a thread of its own on each array that it sends
without a copy. Here a message costs libzmq's calls and one callback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import zmq

from service.wire.curve import WireOptions
from service.wire.messages import Predict, Predicts, encode

BORROWED_FROM = 1 << 19
"""Bytes of an array from which on a copy costs more than lending its memory to libzmq."""
IN_A_ROW = 64
"""Parts of messages received, or little more, before the rest of the process may run."""
JOBS_TOGETHER = 16
BYTES_TOGETHER = 1 << 20
"""Jobs, and bytes of their inputs, in one message: a worker begins with the first only when the last has arrived."""
HIGH_WATER_MARK = 4096
"""Messages that may wait in a socket. It is above every bound on jobs, so only a stuck peer reaches it."""

# Plain numbers: arithmetic on pyzmq's flags costs more than the calls that take them.
_NOW = int(zmq.NOBLOCK)
_NOW_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_READABLE = int(zmq.POLLIN)
_EVENTS = int(zmq.EVENTS)

OnMessage = Callable[[Sequence[zmq.Frame]], None]


class ZmqSocket:
    """Owns a socket of pyzmq. All calls belong to the thread of the event loop in which it was made."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._descriptor = int(socket.FD)
        self._on_message: OnMessage | None = None
        self._on_drained: Callable[[], None] | None = None
        self._ended: asyncio.Future[None] | None = None

    async def run(self, on_message: OnMessage, on_drained: Callable[[], None] | None = None) -> None:
        """Call `on_message` with the parts of each message, until the socket is closed or this call is cancelled.

        `on_drained` is called after the last message that has arrived, or after `IN_A_ROW` of them. The memory of the
        parts is libzmq's, which keeps it for as long as the parts are kept. Raises what the callbacks raise.
        """
        self._on_message, self._on_drained = on_message, on_drained
        self._ended = self._loop.create_future()
        self._loop.add_reader(self._descriptor, self._receive)
        self._loop.call_soon(self._receive)  # the descriptor does not report what arrived before
        try:
            await self._ended
        finally:
            self._stop()

    def send(self, *parts: bytes | memoryview) -> None:
        """Send one message now. Large parts are not copied: their memory is read later, and kept alive until then.

        Raises:
            zmq.ZMQError: it was not sent; zmq.Again: there is no room, or no peer is connected.
        """
        last = len(parts) - 1
        try:
            for number, part in enumerate(parts):
                lent = isinstance(part, memoryview) and part.nbytes >= BORROWED_FROM
                self._socket.send(part, _NOW if number == last else _NOW_MORE, copy=not lent)
        finally:
            # The descriptor reports an arrival once, and a send may have consumed the report.
            if self._on_message is not None and int(self._socket.get(_EVENTS)) & _READABLE:
                self._loop.call_soon(self._receive)

    def close(self, linger_ms: int | None = None) -> None:
        """Stop receiving and close. Sent messages still leave within `linger_ms`, or within the socket's own time."""
        ended = self._ended
        self._stop()
        self._socket.close(linger_ms)
        if ended is not None and not ended.done():
            ended.set_result(None)

    def _stop(self) -> None:
        if self._on_message is not None:
            self._on_message = self._ended = None
            self._loop.remove_reader(self._descriptor)

    def _receive(self) -> None:
        socket, received = self._socket, 0
        try:
            # To ask first costs less than half of an exception. It also resets the descriptor.
            while self._on_message is not None and int(socket.get(_EVENTS)) & _READABLE:
                if received >= IN_A_ROW:
                    self._loop.call_soon(self._receive)
                    break
                part = socket.recv(_NOW, copy=False)
                parts = [part]
                while part.more:
                    part = socket.recv(_NOW, copy=False)
                    parts.append(part)
                received += len(parts)
                self._on_message(parts)
            if received and self._on_drained is not None:
                self._on_drained()
        except Exception as error:  # raised by `run`
            if self._ended is None or self._ended.done():
                raise
            self._ended.set_exception(error)
            self._stop()


class WorkerConnection:
    """A front-end's connection to the worker at `address`: use as an async context manager.

    It connects again and again for as long as it is open. `messages` carries messages, one part for the header and one
    for each array; sending raises zmq.Again without a connection. `events` reports the changes of the connection, as
    libzmq's monitor does. `on_unsent` gets the number of each posted job that could not be sent.
    """

    messages: ZmqSocket
    events: ZmqSocket

    def __init__(self, address: str, options: WireOptions, on_unsent: Callable[[int], None]) -> None:
        self._address = address
        self._options = options
        self._on_unsent = on_unsent
        self._context = zmq.Context()
        self._posted: dict[int, tuple[Predict, memoryview]] = {}
        """By number: the jobs of this iteration."""

    async def __aenter__(self) -> WorkerConnection:
        self._loop = asyncio.get_running_loop()
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # without a connection a send fails and nothing is queued
        # A connection whose peer vanished without closing would stay until the kernel gives up, for minutes.
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 250)
        socket.set_hwm(HIGH_WATER_MARK)
        self._options.apply(socket, self._address, server=False)
        self._socket = socket
        self.events = ZmqSocket(socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED))
        self.messages = ZmqSocket(socket)
        socket.connect(self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._posted.clear()
        self._socket.disable_monitor()
        self.events.close(0)
        self.messages.close(0)
        self._context.term()

    def post(self, predict: Predict, pixels: memoryview) -> None:
        """Send a job and its input in the next iteration of the event loop, with all that were posted in this."""
        if not self._posted:
            self._loop.call_soon(self._send_posted)
        self._posted[predict.job] = predict, pixels

    def withdraw(self, job: int) -> bool:
        """Whether a job was posted and is not sent yet; it never is, then."""
        return self._posted.pop(job, None) is not None

    def _send_posted(self) -> None:
        posted, self._posted = list(self._posted.values()), {}
        start = 0
        while start < len(posted):
            predicts: list[Predict] = []
            inputs: list[memoryview] = []
            nbytes = 0
            for predict, pixels in posted[start : start + JOBS_TOGETHER]:
                nbytes += pixels.nbytes
                if predicts and nbytes > BYTES_TOGETHER:
                    break
                predicts.append(predict)
                inputs.append(pixels)
            start += len(predicts)
            try:
                self.messages.send(encode(Predicts(tuple(predicts))), *inputs)
            except zmq.ZMQError:  # zmq.Again: there is no connection
                for predict in predicts:
                    self._on_unsent(predict.job)
