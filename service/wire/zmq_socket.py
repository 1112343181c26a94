"""ZeroMQ on the event loop: a socket that calls back for each message; a front-end's link and a worker's listener.

`zmq.asyncio` spends several futures and callbacks on each message, and a thread of its own on each array that it sends
without a copy. Here a message costs libzmq's calls and one callback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Self

import zmq
from zmq.utils.monitor import parse_monitor_message

from service.wire.curve import WireOptions
from service.wire.transport import LINGER_S, MAX_RECONNECT_S, RECONNECT_S, Frames, LinkEvents, NotSent, Send

BORROWED_FROM = 1 << 19
"""Bytes of an array from which on a copy costs more than lending its memory to libzmq."""
IN_A_ROW = 64
"""Parts of messages received, or little more, before the rest of the process may run."""
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
            NotSent: there is no room, or no peer is connected.
        """
        last = len(parts) - 1
        try:
            for number, part in enumerate(parts):
                lent = isinstance(part, memoryview) and part.nbytes >= BORROWED_FROM
                self._socket.send(part, _NOW if number == last else _NOW_MORE, copy=not lent)
        except zmq.ZMQError as error:
            raise NotSent(str(error)) from error
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


class ZmqLink:
    """A `Link` over ZeroMQ."""

    def __init__(self, address: str, options: WireOptions, events: LinkEvents) -> None:
        self._address = address
        self._options = options
        self._events = events
        self._context = zmq.Context()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # without a connection a send fails and nothing is queued
        # A connection whose peer vanished without closing would stay until the kernel gives up, for minutes.
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        socket.setsockopt(zmq.RECONNECT_IVL, round(RECONNECT_S * 1000))
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, round(MAX_RECONNECT_S * 1000))
        socket.set_hwm(HIGH_WATER_MARK)
        self._options.apply(socket, self._address, server=False)
        self._socket = socket
        self._monitor = ZmqSocket(socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED))
        self._messages = ZmqSocket(socket)
        socket.connect(self._address)
        self._tasks = [
            asyncio.create_task(self._messages.run(self._on_message), name="worker-messages"),
            asyncio.create_task(self._monitor.run(self._on_event), name="worker-connection"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._messages.close(0)
        self._context.term()

    @property
    def send(self) -> Send:
        """See `Link`."""
        return self._messages.send

    def _on_message(self, parts: Sequence[zmq.Frame]) -> None:
        header, *frames = [part.buffer for part in parts]
        self._events.on_message(header, frames)

    def _on_event(self, parts: Sequence[zmq.Frame]) -> None:
        if parse_monitor_message([part.bytes for part in parts])["event"] == zmq.EVENT_DISCONNECTED:
            self._events.on_lost("")
        else:
            self._events.on_connected()


class ZmqListener:
    """A `Listener` over ZeroMQ."""

    def __init__(self, address: str, options: WireOptions) -> None:
        self.address = address
        self._options = options
        self._context = zmq.Context()
        self._authenticator = options.authenticator(self._context, address)

    async def __aenter__(self) -> Self:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, round(LINGER_S * 1000))
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a send to a front-end that has left fails
        socket.set_hwm(HIGH_WATER_MARK)
        self._options.apply(socket, self.address, server=True)
        if self._authenticator is not None:
            self._authenticator.start()
        try:
            socket.bind(self.address)
        except zmq.ZMQError as error:
            socket.close(0)
            self._end()
            raise OSError(error.errno, zmq.strerror(error.errno or 0)) from error
        self.address = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._socket = ZmqSocket(socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()
        self._end()

    def _end(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.term()

    async def run(
        self, on_message: Callable[[bytes, memoryview, Frames], None], on_drained: Callable[[], None]
    ) -> None:
        """See `Listener`."""

        def receive(parts: Sequence[zmq.Frame]) -> None:
            sender, *others = [part.buffer for part in parts]
            header = others[0] if others else memoryview(b"")  # which is no message
            on_message(bytes(sender), header, others[1:])

        await self._socket.run(receive, on_drained)

    def send(self, receiver: bytes, header: bytes, *frames: memoryview) -> None:
        """See `Listener`."""
        self._socket.send(receiver, header, *frames)
