"""Messages over a stream that the event loop itself reads and writes.

libzmq has a thread of its own for this in each process. To wake it, and to be woken by it, costs more than to read and
to write. uvloop's transports keep the interpreter's lock as they do; Python's sockets release it in each call, and a
thread that decodes then takes it.

Each end begins with `GREETING`. A message is the bytes of its header (uint32), the number of its frames (uint32), the
bytes of each frame (uint64), all little-endian; then the header; then the frames.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from operator import attrgetter
from typing import cast

import numpy as np

from service.wire.transport import HANDSHAKE_S, HEADER_BYTES, Frames, NotSent

GREETING = b"convmlp\x01"
"""The last byte is the version of this format."""
FOREIGN = "it does not speak this version's format of ipc:// sockets; update both ends to the same version"

MAX_FRAMES = 1 << 16
"""Of one message."""
MAX_UNSENT_BYTES = 256 << 20
"""That may wait for a peer to read. It is above what jobs in progress hold, so only a stuck peer reaches it."""
SEND_BUFFER_BYTES = 1 << 20
"""The kernel's, for one direction: all jobs of one message. Linux grants at most `net.core.wmem_max`."""

_PREFIX = struct.Struct("<II")
_nbytes = attrgetter("nbytes")


class StreamRefused(Exception):
    """The peer sent what is no message, or one that is too large."""


class MessageStream(asyncio.Protocol):
    """One connection. All calls belong to the thread of the event loop.

    `on_open` is called once the peer has greeted, `on_message` with the header and frames of each message, `on_drained`
    soon after those that arrived together. `on_end` is called once: with None where the peer closed the connection,
    else with the error that ended it: OSError, StreamRefused, or what a callback raised. After `abort` nothing is
    called.
    """

    def __init__(
        self,
        max_frame_bytes: int,
        on_open: Callable[[MessageStream], None],
        on_message: Callable[[memoryview, Frames], None],
        on_end: Callable[[Exception | None], None],
        on_drained: Callable[[], None] | None = None,
    ) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._on_open = on_open
        self.on_message = on_message
        self._on_end = on_end
        self._on_drained = on_drained
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._handshake = self._loop.call_later(HANDSHAKE_S, self._end, StreamRefused(FOREIGN))
        self.is_open = False
        """Whether the peer has greeted, and the connection lives."""
        self._has_ended = False
        self._is_full = False
        self._kept: list[bytes] = []
        """What arrived of a prefix, or of the sizes and header, that are incomplete."""
        self._needed = len(GREETING)
        """Bytes with which they, or the greeting, are complete."""
        self._header = memoryview(b"")
        self._frames: list[memoryview] = []
        self._sizes: list[int] | None = None
        """Those of the frames that are incomplete, the next one last, once a header is complete."""
        self._partial: memoryview | None = None
        """The frame that is incomplete, where a part of it arrived."""
        self._filled = 0
        """Bytes of it that have arrived."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's have no common class
        if self._has_ended:
            self._transport.abort()
            return
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self._transport.set_write_buffer_limits(MAX_UNSENT_BYTES)
        self._transport.write(GREETING)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def send(self, header: bytes, *frames: memoryview) -> None:
        """See `Send`."""
        if self._transport is None or not self.is_open or self._is_full:
            raise NotSent("the peer does not read" if self._is_full else "there is no connection")
        sizes = list(map(_nbytes, frames))
        head = struct.pack(f"<II{len(sizes)}Q", len(header), len(sizes), *sizes) + header
        parts: list[bytes | memoryview] = [head]
        for frame in frames:
            if frame.nbytes:
                parts.append(frame.cast("B"))
        self._transport.writelines(parts)

    def finish(self) -> None:
        """Send what is unsent, then the end of the stream. The peer closes the connection when it has read it."""
        if self._transport is not None:
            self._transport.write_eof()

    def abort(self) -> None:
        """Close the connection now."""
        self._has_ended = True
        self.is_open = False
        self._handshake.cancel()
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """All of it is in this one function: calls would cost more than their few lines."""
        if self._kept:
            self._kept.append(data)
            if sum(map(len, self._kept)) < self._needed:
                return
            data, self._kept = b"".join(self._kept), []
        chunk, at, end, received = memoryview(data), 0, len(data), False
        try:
            if not self.is_open:
                at = self._greeted(data)
            while self.is_open and at < end:
                if self._sizes is None:
                    self._needed = _PREFIX.size
                    if end - at < self._needed:
                        break
                    size, count = _PREFIX.unpack_from(data, at)
                    if not 0 < size <= HEADER_BYTES or count > MAX_FRAMES:
                        raise StreamRefused(f"it announces a header of {size} bytes and {count} frames")
                    self._needed += 8 * count + size
                    if end - at < self._needed:
                        break
                    self._sizes = list(struct.unpack_from(f"<{count}Q", data, at + _PREFIX.size))[::-1]
                    at += self._needed
                    self._header = chunk[at - size : at]
                while self._sizes:
                    size = self._sizes[-1]
                    if self._partial is None and size <= end - at:
                        self._frames.append(chunk[at : at + size])
                        at += size
                    else:
                        at += self._fill(size, chunk[at:])
                        if self._partial is not None:
                            break
                    self._sizes.pop()
                else:
                    header, frames = self._header, self._frames
                    self._sizes, self._frames = None, []
                    received = True
                    self.on_message(header, frames)
            if at < end:
                self._kept.append(data[at:])
        except Exception as error:  # `on_end` gets it
            self._end(error)
            return
        if received and self._on_drained is not None:
            self._loop.call_soon(self._on_drained)

    def _greeted(self, data: bytes) -> int:
        """Bytes of the greeting, once it is complete."""
        if not GREETING.startswith(data[: len(GREETING)]):
            raise StreamRefused(FOREIGN)
        if len(data) < len(GREETING):
            return 0
        self._handshake.cancel()
        self.is_open = True
        self._on_open(self)
        return len(GREETING)

    def _fill(self, size: int, chunk: memoryview) -> int:
        """Copy what has arrived of a frame that is in several pieces; so many bytes."""
        if self._partial is None:
            if size > self._max_frame_bytes:
                raise StreamRefused(f"it announces a frame of {size} bytes; the largest has {self._max_frame_bytes}")
            try:
                self._partial, self._filled = np.empty(size, np.uint8).data, 0
            except MemoryError:
                raise StreamRefused(f"there is no memory for its frame of {size} bytes") from None
        part = chunk[: size - self._filled]
        self._partial[self._filled : self._filled + len(part)] = part
        self._filled += len(part)
        if self._filled == size:
            self._frames.append(self._partial)
            self._partial = None
        return len(part)

    def _end(self, error: Exception | None) -> None:
        if not self._has_ended:
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
