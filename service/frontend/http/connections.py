"""Bounds on the HTTP connections of one process: their number, the bytes that they make it hold, and their idle time.

At the limit of connections a new one takes the place of those that wait for a request for the longest time. If none
waits, it comes into a small reserve, where probes are answered and everything else is refused. So an orchestrator sees
a live process, and callers an answer, whatever the other connections do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Never, Protocol

from starlette.requests import ClientDisconnect

from service.errors import ConnectionEnd
from service.observability.metrics import FrontEndMetrics

RESERVED = 64
"""Connections beyond the limit. Each is closed after one answer, and the oldest gives way to a new one."""
WAITING_S = 1.0
"""A connection that has waited for a request for less time is not closed: its request may be on the way."""
CLOSED_AT_ONCE = 16
"""One in so many connections is closed when room is needed, so that the search for them is rare."""


class Connection(Protocol):
    """What is needed of a connection here."""

    def waiting_since_s(self) -> float | None:
        """When it began to wait for a request, on the event loop's clock; None while it does not wait."""

    def close_idle(self, since_s: float) -> None:
        """Close it if it waits for another request since then, on the event loop's clock, or longer."""

    def end(self, reason: ConnectionEnd) -> None:
        """Close it now."""


class Disconnect:
    """Cancels the work for a request when its connection ends: use as a context manager around that work.

    Each connection has one, because it answers one request at a time. ASGI's own message about a disconnect would
    take another task for each request.

    Raises:
        ClientDisconnect: the connection ended, before the work or during it.
    """

    __slots__ = ("_cancellations", "_task", "happened")

    def __init__(self) -> None:
        self.happened = False
        self._task: asyncio.Task[Any] | None = None

    def notify(self) -> None:
        """The connection ended."""
        self.happened = True
        if self._task is not None:
            self._task.cancel()

    def __enter__(self) -> None:
        if self.happened:
            raise ClientDisconnect
        self._task = task = asyncio.current_task()
        assert task is not None
        self._cancellations = task.cancelling()  # by others, as `asyncio.timeout` distinguishes them

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        task, self._task = self._task, None
        if not self.happened:
            return
        assert task is not None
        if kind is None:  # the work was done before the cancellation took effect
            task.uncancel()
            raise ClientDisconnect
        if isinstance(error, asyncio.CancelledError) and task.uncancel() <= self._cancellations:
            raise ClientDisconnect from None


class Connections:
    """The connections of one process. `clock` is that of the event loop, in seconds."""

    max_pipelined_bytes: ClassVar[int] = 32 * 2**20
    """Requests behind unanswered ones, as bytes that were received and not parsed, of all connections."""
    max_unread_bytes: ClassVar[int] = 256 * 2**20
    """Answers that their callers do not read, of all connections."""

    keep_alive_s: ClassVar[float] = 75.0
    """How long a connection may wait for another request: longer than the idle timeout of common load balancers, so
    that they are the ones to close it."""
    idle_look_s: ClassVar[float] = 5.0
    """Between two looks for connections that wait longer. A timer for each answer would cost 3 % of a prediction."""

    def __init__(self, limit: int, metrics: FrontEndMetrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._metrics = metrics
        self._clock = clock
        self._open: set[Connection] = set()
        self._reserve: dict[Connection, None] = {}  # the oldest first
        self._unread: dict[Connection, int] = {}  # the longest unread first
        self._unread_bytes = 0
        self._pipelined_bytes = 0
        self._none_waits_until_s = 0.0
        metrics.connections_limit(limit)

    def add(self, connection: Connection) -> bool:
        """Count a new connection. False: it is one of the reserve."""
        within = len(self._open) < self._limit or self._make_room()
        if within:
            self._open.add(connection)
        else:
            if len(self._reserve) >= RESERVED:
                oldest = next(iter(self._reserve))
                del self._reserve[oldest]
                oldest.end(ConnectionEnd.LIMIT)
            self._reserve[connection] = None
        self._metrics.connections(len(self._open) + len(self._reserve))
        return within

    def remove(self, connection: Connection) -> None:
        """The connection is closed. It may have been removed before."""
        self._open.discard(connection)
        self._reserve.pop(connection, None)
        self.read(connection)
        self._metrics.connections(len(self._open) + len(self._reserve))

    async def watch(self) -> Never:
        """Close connections that wait for another request for longer than `keep_alive_s`, until cancelled."""
        while True:
            await asyncio.sleep(self.idle_look_s)
            since_s = self._clock() - self.keep_alive_s
            for connection in tuple(self._open):
                connection.close_idle(since_s)

    def ended(self, reason: ConnectionEnd) -> None:
        """Count a connection that the service ends by itself."""
        self._metrics.connection_ended(reason)

    def unread(self, connection: Connection, nbytes: int) -> None:
        """So many bytes wait for a connection to read them. Those that wait the longest are ended at the bound."""
        self.read(connection)
        self._unread[connection] = nbytes
        self._unread_bytes += nbytes
        while self._unread_bytes > self.max_unread_bytes:
            slowest = next(iter(self._unread))
            self.read(slowest)
            slowest.end(ConnectionEnd.UNREAD)

    def read(self, connection: Connection) -> None:
        """The connection has read its answers, or is closed."""
        self._unread_bytes -= self._unread.pop(connection, 0)

    def hold(self, nbytes: int) -> bool:
        """Hold the bytes of requests that wait behind unanswered ones; False: there is no room for them."""
        if self._pipelined_bytes + nbytes > self.max_pipelined_bytes:
            return False
        self._pipelined_bytes += nbytes
        return True

    def release(self, nbytes: int) -> None:
        """The bytes are held no more."""
        self._pipelined_bytes -= nbytes

    def _make_room(self) -> bool:
        """Close some of the connections that have waited for a request the longest. False: none waits."""
        now_s = self._clock()
        if now_s < self._none_waits_until_s:
            return False
        waiting = [
            (since_s, connection)
            for connection in self._open
            if (since_s := connection.waiting_since_s()) is not None and since_s <= now_s - WAITING_S
        ]
        if not waiting:
            self._none_waits_until_s = now_s + WAITING_S
            return False
        waiting.sort(key=lambda pair: pair[0])
        for _, connection in waiting[: len(self._open) // CLOSED_AT_ONCE + 1]:
            self._open.discard(connection)
            connection.end(ConnectionEnd.LIMIT)
        return True
