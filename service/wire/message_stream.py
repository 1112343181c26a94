"""Messages over a stream socket that the event loop itself reads and writes.

libzmq has a thread of its own for this in each process. To wake it, and to be woken by it, costs more than to read and
to write.

Each end begins with `GREETING`. A message is the bytes of its header (uint32), the number of its frames (uint32), the
bytes of each frame (uint64), all little-endian; then the header; then the frames.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain, islice
from operator import attrgetter

import numpy as np

from service.wire.transport import HANDSHAKE_S, HEADER_BYTES, Frames, NotSent

GREETING = b"convmlp\x01"
"""The last byte is the version of this format."""
FOREIGN = "it does not speak this version's format of ipc:// sockets; update both ends to the same version"
SILENT = f"it has accepted no connection, or sent no greeting, for {HANDSHAKE_S:g} s"
"""Its process is stopped, or has not come so far: the kernel accepts connections for it."""

MAX_FRAMES = 1 << 16
"""Of one message."""
MAX_UNSENT_BYTES = 256 << 20
"""That may wait for a peer to read. It is above what jobs in progress hold, so only a stuck peer reaches it."""
SEND_BUFFER_BYTES = 1 << 20
"""The kernel's, for one direction: all jobs of one message. Linux grants at most `net.core.wmem_max`."""
BUFFER_BYTES = 8192
"""Read in one system call besides the frames of a message that has begun. It holds the heads of most messages."""
IN_A_ROW = 4
"""System calls that receive from one peer before the rest of the process may run."""
PARTS_TOGETHER = 512
"""Sent or received in one system call; Linux takes 1024."""

_PREFIX = struct.Struct("<II")
_nbytes = attrgetter("nbytes")


class StreamRefused(Exception):
    """The peer sent what is no message, or one that is too large."""


class MessageStream:
    """One connection. It owns its socket. All calls belong to the thread of the event loop.

    `on_open` is called once the peer has greeted, `on_message` with the header and frames of each message, `on_drained`
    soon after those that arrived together. `on_end` is called once: with None where the peer closed the connection,
    else with the error that ended it: OSError, StreamRefused, or what a callback raised. After `abort` nothing is
    called.
    """

    def __init__(
        self,
        connected: socket.socket,
        max_frame_bytes: int,
        on_open: Callable[[], None],
        on_message: Callable[[memoryview, Frames], None],
        on_end: Callable[[Exception | None], None],
        on_drained: Callable[[], None] | None = None,
    ) -> None:
        self._socket = connected
        self._max_frame_bytes = max_frame_bytes
        self._on_open = on_open
        self.on_message = on_message
        self._on_end = on_end
        self._on_drained = on_drained
        self._loop = asyncio.get_running_loop()
        self.is_open = False
        """Whether the peer has greeted, and the connection lives."""
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        """Begins with what has arrived of the next message's head: its prefix, sizes and header."""
        self._buffered = 0
        self._head_bytes = 0
        """Of that head; 0 where it is not known yet."""
        self._message: tuple[memoryview, Frames] | None = None
        """A message whose head is complete."""
        self._unfilled: deque[memoryview] = deque()
        """What is missing of its frames."""
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._finishing = False
        connected.setblocking(False)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        with contextlib.suppress(OSError):  # the peer has closed already, as reading shows
            connected.send(GREETING)
        self._loop.add_reader(connected, self._receive)
        self._handshake = self._loop.call_later(HANDSHAKE_S, self._end, StreamRefused(SILENT))

    def send(self, header: bytes, *frames: memoryview) -> None:
        """See `Send`."""
        if not self.is_open:
            raise NotSent("there is no connection")
        sizes = list(map(_nbytes, frames))
        head = struct.pack(f"<II{len(sizes)}Q", len(header), len(sizes), *sizes) + header
        parts: Sequence[bytes | memoryview] = (head, *frames)
        sent = 0
        if not self._unsent:
            try:
                sent = self._socket.sendmsg(parts[:PARTS_TOGETHER])
            except BlockingIOError:
                pass
            except OSError as error:  # what arrived before is still read, and then the end
                raise NotSent(str(error)) from error
        elif self._unsent_bytes > MAX_UNSENT_BYTES:
            raise NotSent(f"the peer leaves {self._unsent_bytes} bytes unread")
        if sent < len(head) + sum(sizes):
            self._keep(parts, sent)

    def finish(self) -> None:
        """Send what is unsent, then the end of the stream. The peer closes the connection when it has read it."""
        self._finishing = True
        if not self._unsent:
            self._send_end()

    def abort(self) -> None:
        """Close the connection now."""
        if self._socket.fileno() < 0:
            return
        self.is_open = False
        self._handshake.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._unsent.clear()

    def _receive(self) -> None:
        """Receive what has arrived. Each system call reads the rest of a message, and what follows it."""
        received, unfilled = False, self._unfilled
        try:
            for _ in range(IN_A_ROW):
                room = self._buffer[self._buffered :]
                try:
                    if unfilled:
                        count = self._socket.recvmsg_into([*islice(chain(unfilled, (room,)), PARTS_TOGETHER)])[0]
                    else:
                        count = self._socket.recv_into(room)
                except BlockingIOError:  # the kernel has no more
                    break
                if not count:
                    self._end(None)
                    return
                while unfilled and count >= len(unfilled[0]):
                    count -= len(unfilled.popleft())
                if unfilled:
                    unfilled[0] = unfilled[0][count:]
                    break
                rest = self._buffer[: self._buffered + count]
                while not unfilled:
                    if self._message is not None:
                        (header, frames), self._message = self._message, None
                        received = True
                        self.on_message(header, frames)
                        if not self.is_open:
                            return
                    if len(rest) < _PREFIX.size or not (taken := self._take_head(rest)):
                        break
                    rest = rest[taken:]
                self._buffered = len(rest)
                if self._buffered or len(self._buffer) > BUFFER_BYTES:
                    self._keep_head(rest)
                if count < len(room):
                    break
        except Exception as error:  # `on_end` gets it
            self._end(error)
            return
        if received and self._on_drained is not None:
            self._loop.call_soon(self._on_drained)

    def _take_head(self, rest: memoryview) -> int:
        """Begin the next message with what is received of it: how many bytes that took; 0 where its head is incomplete.

        Raises:
            StreamRefused: it is no message, or too large.
        """
        if not self.is_open:
            self._open(rest[: len(GREETING)])
            return len(GREETING)
        size, count = _PREFIX.unpack_from(rest)
        if not 0 < size <= HEADER_BYTES or count > MAX_FRAMES:
            raise StreamRefused(f"it announces a header of {size} bytes and {count} frames")
        header_start = _PREFIX.size + 8 * count
        taken: int = header_start + size
        self._head_bytes = taken
        if len(rest) < taken:
            return 0
        frames: list[memoryview] = []
        for frame_bytes in struct.unpack_from(f"<{count}Q", rest, _PREFIX.size):
            if frame_bytes > self._max_frame_bytes:
                raise StreamRefused(f"it announces a frame of {frame_bytes} bytes of {self._max_frame_bytes}")
            try:
                frame = np.empty(frame_bytes, np.uint8).data
            except MemoryError:
                raise StreamRefused(f"there is no memory for its frame of {frame_bytes} bytes") from None
            frames.append(frame)
            there = rest[taken : taken + frame_bytes]
            frame[: len(there)] = there
            taken += len(there)
            if len(there) < frame_bytes:
                self._unfilled.append(frame[len(there) :])
        header = rest[header_start : self._head_bytes]
        # The buffer takes other bytes before all frames are complete.
        self._message = memoryview(bytes(header)) if self._unfilled else header, frames
        self._head_bytes = 0
        return taken

    def _keep_head(self, rest: memoryview) -> None:
        """Move an incomplete head to the beginning of the buffer, which is as large as that head needs."""
        if len(self._buffer) != (size := max(BUFFER_BYTES, self._head_bytes)):
            self._buffer = memoryview(bytearray(size))
        self._buffer[: len(rest)] = rest

    def _open(self, greeting: memoryview) -> None:
        if greeting != GREETING:
            raise StreamRefused(FOREIGN)
        self._handshake.cancel()
        self.is_open = True
        self._on_open()

    def _keep(self, parts: Sequence[bytes | memoryview], sent: int) -> None:
        """Keep for later what follows the first `sent` bytes."""
        if not self._unsent:
            self._loop.add_writer(self._socket, self._send_unsent)
        for part in parts:
            view = memoryview(part)
            if sent < view.nbytes:
                self._unsent.append(view.cast("B")[sent:])
                self._unsent_bytes += view.nbytes - sent
            sent = max(sent - view.nbytes, 0)

    def _send_unsent(self) -> None:
        try:
            sent = self._socket.sendmsg(list(islice(self._unsent, PARTS_TOGETHER)))
        except BlockingIOError:
            return
        except OSError:  # as in `send`
            sent = self._unsent_bytes
        self._unsent_bytes -= sent
        while sent:
            part = self._unsent.popleft()
            if sent < len(part):
                self._unsent.appendleft(part[sent:])
            sent = max(sent - len(part), 0)
        if not self._unsent:
            self._loop.remove_writer(self._socket)
            if self._finishing:
                self._send_end()

    def _send_end(self) -> None:
        with contextlib.suppress(OSError):  # the peer has closed as well
            self._socket.shutdown(socket.SHUT_WR)

    def _end(self, error: Exception | None) -> None:
        if self._socket.fileno() >= 0:  # else a callback has closed it
            self.abort()
            self._on_end(error)


class Streams(dict[bytes, MessageStream]):
    """The connections of a worker by the identities of their front-ends."""

    def send(self, receiver: bytes, header: bytes, *frames: memoryview) -> None:
        """See `Listener.send`."""
        stream = self.get(receiver)
        if stream is None:
            raise NotSent("the front-end has left")
        stream.send(header, *frames)
