"""The messages of calls, received within the memory that the process may use.

gRPC buffers a message whole before this service sees any of it, and does not report its length. Before a message is
read it takes no more than HTTP/2's window of a call (64 KiB; `server.py` keeps it from growing). So the time to bound
is that of the read. A message begins to be read once there is room for it beside the memory in use and what other
messages that have just begun may bring: twice the largest of late on their connections, or twice the largest image.
Others wait, and so do their senders, by flow control.

A connection whose messages were small may send large ones, and a message may stop half-way. Therefore the memory in use
is watched as well: beyond its limit the caller with the most messages has its latest ones refused.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import grpc

from model.errors import ConvMLPError
from service.errors import BadRequest, DeadlineExceeded, Overloaded, Refusal
from service.frontend.grpc.status import Context
from service.process import resident_memory, trim_memory, used_memory
from service.settings import Settings
from service.wire.deadlines import Deadlines

ARRIVING_BYTES = 64 << 20
"""Of memory for messages that arrive, beside what `max_in_flight_bytes` leaves."""
HARD_BYTES = 64 << 20
"""The same, at which messages that have begun to arrive are refused."""
MIN_ARRIVING = 2
"""So many messages may arrive whatever the memory."""
FRESH_S = 5.0
"""A message that arrives for longer is slow: the memory in use has what it brought. On a connection of large messages
it is expected for as long as a request may take."""
GROWTH = 2
"""A message may be so many times as long as the largest of late on its connection."""
DECAY = 0.9
"""Of what is expected of a connection, with each message."""
MAX_KNOWN = 4096
"""Connections of which the largest message is known."""
SAMPLE_S = 0.02
"""The memory in use is measured no more often. A measurement takes some 25 µs."""
WATCH_S = 0.05
"""And this often while more than `MIN_ARRIVING` messages arrive, or any wait."""
FREED_BYTES = 192 << 20
"""Memory that the process occupies beside that in use, most of it gaps that gRPC's pieces of messages have left: from
here on it is given back at once."""
LARGE_BYTES = 1 << 20
"""Of a message that leaves such gaps."""


@dataclass(slots=True)
class Arrival:
    """A message that is read, or waits for that. `nbytes` are expected of it, for `fresh_s` from `began_s`, which is on
    the clock of `time.monotonic`."""

    host: str
    nbytes: int
    fresh_s: float
    began_s: float = 0.0


class Receiver:
    """Reads the messages of all calls of a server.

    `decoding_bytes` are those of the memory in use that the front-end's threads account for. `retry_after_s` estimates
    the seconds until the front-end has done what it has in progress. `used_bytes` measures the memory in use.
    """

    def __init__(
        self,
        settings: Settings,
        decoding_bytes: Callable[[], int],
        retry_after_s: Callable[[], float],
        used_bytes: Callable[[], int] = used_memory,
    ) -> None:
        self._timeout_s = settings.request_timeout_ms / 1000
        self._decoding_bytes = decoding_bytes
        self._retry_after_s = retry_after_s
        self._used_bytes = used_bytes
        self._used = used_bytes()
        self._used_s = 0.0
        self._limit_bytes = self._used + settings.max_in_flight_bytes + ARRIVING_BYTES
        self._hard_bytes = self._used + settings.max_in_flight_bytes + settings.decoded_bytes + HARD_BYTES
        # gRPC joins the pieces of a message: for a moment there are two of it.
        self._unknown_bytes = 2 * settings.max_image_bytes
        self._largest: dict[str, float] = {}
        """The bytes of the largest message of late by connection; the one that was longest without any is the first."""
        self._arriving: dict[asyncio.Task[Any], Arrival] = {}
        """By the task that reads; the oldest first."""
        self._of_host: Counter[str] = Counter()
        """Messages that arrive."""
        self._waiting: dict[str, deque[tuple[asyncio.Future[None], asyncio.Task[Any], Arrival]]] = {}
        """Messages that have not begun to arrive, by host; the first host is the next."""
        self._errors: dict[asyncio.Task[Any], ConvMLPError] = {}
        """Why the read of a task is being cancelled."""
        self._deadlines: Deadlines[asyncio.Task[Any]] = Deadlines(self._expire)
        self._watch: asyncio.TimerHandle | None = None
        self._trimming: asyncio.Future[None] | None = None

    async def read(self, context: Context, *, waits_for_client: bool = False) -> Any:  # noqa: ANN401
        """The next message of a call, or `grpc.aio.EOF`.

        Unless `waits_for_client`, the message has the time of a request to arrive. No more than one such call runs in
        a task at a time.

        Raises:
            Overloaded: too much memory is in use, by messages that arrive too.
            DeadlineExceeded: the message did not arrive in time.
        """
        task, peer = asyncio.current_task(), context.peer()
        assert task is not None
        if not waits_for_client:
            self._deadlines.pending[task] = deadline_s = time.monotonic() + self._timeout_s
            if deadline_s < self._deadlines.next_s:
                self._deadlines.wake_at(deadline_s)
        known = self._largest.get(peer)
        arrival = Arrival(
            host_of(peer),
            self._unknown_bytes if known is None else int(GROWTH * known),
            FRESH_S if known is None or known < LARGE_BYTES else self._timeout_s,
        )
        try:
            if len(self._arriving) >= MIN_ARRIVING and (arrival.host in self._waiting or not self._has_room(arrival)):
                await self._wait(task, arrival)
            else:
                self._begin(task, arrival)
            try:
                message = await context.read()
            finally:
                self._end(task)
        except asyncio.CancelledError:
            if task not in self._errors or task.uncancel():
                raise
            raise self._errors[task] from None
        finally:
            self._errors.pop(task, None)
            if not waits_for_client:
                self._deadlines.pending.pop(task, None)
        if isinstance(message, bytes):
            if len(message) > LARGE_BYTES:
                self._watch_soon()
            known = DECAY * self._largest.pop(peer, 0.0)
            self._largest[peer] = max(len(message), known)
            if len(self._largest) > MAX_KNOWN:
                del self._largest[next(iter(self._largest))]
        return message

    def _begin(self, task: asyncio.Task[Any], arrival: Arrival) -> None:
        arrival.began_s = time.monotonic()
        self._arriving[task] = arrival
        self._of_host[arrival.host] += 1

    def _end(self, task: asyncio.Task[Any]) -> None:
        host = self._arriving.pop(task).host
        self._of_host[host] -= 1
        if not self._of_host[host]:
            del self._of_host[host]
        if self._waiting:
            self._wake()

    def _has_room(self, arrival: Arrival) -> bool:
        """Whether one more message may begin to arrive."""
        self._watch_soon()
        if self._measure() > self._hard_bytes:
            return False
        if arrival.host not in self._of_host:  # a share for each caller
            return True
        now_s = self._used_s
        expected = sum(other.nbytes for other in self._arriving.values() if now_s < other.began_s + other.fresh_s)
        return self._used - self._decoding_bytes() + expected + arrival.nbytes <= self._limit_bytes

    def _measure(self) -> int:
        """Bytes of memory in use, `SAMPLE_S` ago or later."""
        now_s = time.monotonic()
        if now_s >= self._used_s + SAMPLE_S:
            self._used, self._used_s = self._used_bytes(), now_s
        return self._used

    async def _wait(self, task: asyncio.Task[Any], arrival: Arrival) -> None:
        """Returns once the message has begun to arrive."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (turn, task, arrival)
        self._waiting.setdefault(arrival.host, deque()).append(waiting)
        self._watch_soon()
        try:
            await turn
        except asyncio.CancelledError:
            queue = self._waiting.get(arrival.host, deque())
            if not turn.cancelled():
                self._end(task)
            elif waiting in queue:
                queue.remove(waiting)
                if not queue:
                    del self._waiting[arrival.host]
            raise

    def _wake(self) -> None:
        """Let waiting messages begin as far as there is room, each host's in its turn."""
        while self._waiting:
            few = len(self._arriving) < MIN_ARRIVING
            ready = (host for host, queue in self._waiting.items() if few or self._has_room(queue[0][2]))
            host = next(ready, None)
            if host is None:
                return
            queue = self._waiting.pop(host)
            turn, task, arrival = queue.popleft()
            if queue:
                self._waiting[host] = queue
            if not turn.cancelled():
                self._begin(task, arrival)
                turn.set_result(None)

    def _watch_soon(self) -> None:
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(WATCH_S, self._on_watch)

    def _on_watch(self) -> None:
        self._watch = None
        if self._measure() > self._hard_bytes and len(self._arriving) > MIN_ARRIVING:
            self._refuse()
        self._wake()
        freed_bytes = resident_memory() - self._used
        if freed_bytes > FREED_BYTES and (self._trimming is None or self._trimming.done()):
            self._trimming = asyncio.get_running_loop().run_in_executor(None, trim_memory)
        if self._waiting or len(self._arriving) > MIN_ARRIVING:
            self._watch_soon()

    def _refuse(self) -> None:
        """End the later half of the reads of the host that has the most."""
        (host, count), *_ = self._of_host.most_common(1)
        latest = [task for task, arrival in reversed(self._arriving.items()) if arrival.host == host]
        for task in latest[: max(count // 2, 1)]:
            detail = "the messages that arrive take too much memory; try again later"
            self._cancel(task, Overloaded(detail, self._retry_after_s(), Refusal.BODIES))

    def _expire(self, task: asyncio.Task[Any]) -> None:
        self._cancel(task, DeadlineExceeded("timed out before the message had arrived"))

    def _cancel(self, task: asyncio.Task[Any], error: ConvMLPError) -> None:
        if task not in self._errors:
            self._errors[task] = error
            task.cancel()


class Messages:
    """A call's messages. Iterating ends with them, or when the drain begins."""

    def __init__(self, receiver: Receiver, context: Context, drain: asyncio.Event) -> None:
        self._receiver = receiver
        self._context = context
        self._drain = drain
        self._draining: asyncio.Task[Any] | None = None
        self._reading: asyncio.Task[Any] | None = None
        self._ended = False

    async def only(self) -> Any:  # noqa: ANN401
        """The message of a call that has one.

        Raises:
            BadRequest: it has none.
            DeadlineExceeded, Overloaded: as `Receiver.read`.
        """
        message = await self._receiver.read(self._context)
        if message is grpc.aio.EOF:
            raise BadRequest("the call has no message; send one")
        return message

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401
        """Raises Overloaded as `Receiver.read`."""
        if self._ended:
            raise StopAsyncIteration
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain.wait())
        reading = self._read()
        await asyncio.wait({reading, self._draining}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise StopAsyncIteration
        self._reading = None
        message = reading.result()
        if message is grpc.aio.EOF:
            self._ended = True
            raise StopAsyncIteration
        return message

    async def cut_short(self, seconds: float) -> bool:
        """Whether the client had more to send when the drain began, or may have. Waits so long for the end."""
        if self._ended or not self._drain.is_set():
            return False
        reading = self._read()
        await asyncio.wait({reading}, timeout=seconds)
        return not (reading.done() and reading.exception() is None and reading.result() is grpc.aio.EOF)

    def close(self) -> None:
        for task in (self._draining, self._reading):
            if task is not None:
                task.cancel()

    def _read(self) -> asyncio.Task[Any]:
        if self._reading is None:  # else the read that the drain interrupted goes on
            self._reading = asyncio.create_task(self._receiver.read(self._context, waits_for_client=True))
        return self._reading


def host_of(peer: str) -> str:
    """The host of a gRPC peer: `ipv4:127.0.0.1:5000`, `ipv6:%5B::1%5D:5000`, `unix:...`."""
    kind, _, address = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    return unquote(address).rpartition(":")[0].strip("[]")
