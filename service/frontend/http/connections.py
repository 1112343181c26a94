"""Bounds on the HTTP connections of one process: their number, and the bytes that they make it hold.

At the limit of connections a new one takes the place of those that wait for a request for the longest time. If none
waits, it comes into a small reserve, where probes are answered and everything else is refused. So an orchestrator sees
a live process, and callers an answer, whatever the other connections do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar, Protocol

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

    def end(self, reason: ConnectionEnd) -> None:
        """Close it now."""


class Connections:
    """The connections of one process. `clock` is that of the event loop, in seconds."""

    max_pipelined_bytes: ClassVar[int] = 32 * 2**20
    """Requests behind unanswered ones, as bytes that were received and not parsed, of all connections."""
    max_unread_bytes: ClassVar[int] = 256 * 2**20
    """Answers that their callers do not read, of all connections."""

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
