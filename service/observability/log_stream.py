"""Standard output and standard error that neither block a process nor end it.

A reader can stop reading, close its end, or be a disk that is full. What cannot be written at once is dropped and
counted, from any writer: the log, a traceback of the interpreter, or a C library.
"""

from __future__ import annotations

import fcntl
import io
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Callable

PIPE_BYTES = 1 << 20
"""Capacity of a pipe that is asked for: a reader may pause for as long as the service takes to fill it."""
REPORT_INTERVAL_S = 10.0
"""The least time between two reports of dropped lines."""


class LogStream(io.TextIOBase):
    """A text stream onto a descriptor; each call of `write` is one system call. It never raises and never waits.

    `dropped` counts the writes that were lost, in whole or in part. `on_recovery` is called with the number of those
    since its last call when writing works again, at most every `REPORT_INTERVAL_S`.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._descriptor = descriptor
        is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
        self._socket = socket.socket(fileno=os.dup(descriptor)) if is_socket else None
        self._send = _socket_writer(self._socket) if self._socket else _writer(descriptor)
        self._is_terminal = os.isatty(descriptor)
        self._clock = clock
        self._in_line = False
        """The last write was cut off: its rest is lost, and the next one has to begin a line."""
        self._reported = 0
        self._reported_s = -REPORT_INTERVAL_S
        self.dropped = 0
        self.on_recovery: Callable[[int], None] | None = None

    def write(self, text: str, /) -> int:
        data = text.encode(self.encoding, self.errors)
        if self._in_line:
            data = b"\n" + data
        try:
            written = self._send(data)
        except OSError:
            written = 0
        if written == len(data):
            self._in_line = False
            if self.dropped != self._reported:
                self._report()
        else:
            self._in_line = self._in_line or written > 0
            self.dropped += 1
        return len(text)

    def _report(self) -> None:
        now_s = self._clock()
        if self.on_recovery is not None and now_s - self._reported_s >= REPORT_INTERVAL_S:
            lines, self._reported, self._reported_s = self.dropped - self._reported, self.dropped, now_s
            self.on_recovery(lines)

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def close(self) -> None:
        """Close what was opened here. The descriptor stays open."""
        if self._socket is not None:
            self._socket.close()
        super().close()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._is_terminal

    def fileno(self) -> int:
        return self._descriptor


def open_log_stream() -> LogStream:
    """Put a LogStream in the place of `sys.stdout` and of `sys.stderr`, and return the latter. Call it once, early.

    The two descriptors themselves become non-blocking as well, for C libraries and for child processes, but not for
    other processes that share them, such as the shell.
    """
    for descriptor in (0, 1, 2):
        _ensure_open(descriptor)
    for descriptor in (1, 2):
        _stop_blocking(descriptor)
    stream = LogStream(2)
    sys.stdout, sys.stderr = LogStream(1), stream
    return stream


def _ensure_open(descriptor: int) -> None:
    """Open a standard descriptor that the process was started without, or a socket would get its number."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != descriptor:
            os.dup2(opened, descriptor)
            os.close(opened)


def _stop_blocking(descriptor: int) -> None:
    """Open the pipe or terminal once more, because O_NONBLOCK applies to all processes that share an open file.

    It is left as it is where that is not permitted. A socket cannot be opened twice, and a file does not block.
    """
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        return
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_APPEND)
    except OSError:
        return
    os.dup2(own, descriptor)
    os.close(own)


def _socket_writer(connection: socket.socket) -> Callable[[bytes], int]:
    return lambda data: connection.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def _writer(descriptor: int) -> Callable[[bytes], int]:
    """A function that writes without waiting, and returns the number of bytes written."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(mode):
        _enlarge(descriptor)
    if stat.S_ISREG(mode) or not os.get_blocking(descriptor):
        return lambda data: os.write(descriptor, data)
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)

    def write(data: bytes) -> int:
        # A pipe that is ready has room for PIPE_BUF bytes, unless another process takes it in this moment.
        written = 0
        while written < len(data) and poller.poll(0):
            written += os.write(descriptor, data[written : written + select.PIPE_BUF])
        return written

    return write


def _enlarge(descriptor: int) -> None:
    try:
        if fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ) < PIPE_BYTES:
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:  # more than the system allows; it stays as it is
        pass
