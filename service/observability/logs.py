"""Structured logs on stderr: for people (console) or for machines (JSON, one object per line, times in UTC).

Log lines of libraries take the same form. Lines in a request's context have its `request_id` and, if its trace is
recorded, `trace_id` and `span_id`. Image content and credentials are never logged. A caller cannot forge a line:
characters that are not printable are escaped.
A line that cannot be written at once is dropped and counted.

Standard output and standard error neither block a process nor end it. A reader can stop reading, close its end, or be a
disk that is full: the log, a traceback of the interpreter, and a C library all write there.
"""

from __future__ import annotations

import fcntl
import io
import logging
import math
import os
import select
import socket
import stat
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import structlog
from structlog.typing import EventDict, Processor

from service.observability.tracing import current_span

LIBRARIES_LEVEL = logging.INFO
"""The most detailed level of libraries: at DEBUG some log image content."""
CHATTY = {"httpx2": logging.WARNING, "python_multipart": logging.ERROR, "uvicorn": logging.WARNING}
"""Libraries that log every request, or every malformed one, and the level from which they may."""
LEVELS = ("debug", "info", "warning", "error", "critical")
QUOTED_CHARACTERS = frozenset(" \t=\r\n\"'")
"""A string with one of them is quoted in a console line."""

PIPE_BYTES = 1 << 20
"""Capacity of a pipe that is asked for: a reader may pause for as long as the service takes to fill it."""
REPORT_INTERVAL_S = 10.0
"""The least time between two reports of dropped lines."""


REPEAT_INTERVAL_S = 60.0
"""The least time between two lines about events of one kind."""
MAX_KINDS = 16
"""Kinds of events that a `LogLimit` distinguishes at a time; those beyond count as one."""


class LogLimit:
    """Limits the lines about events that another process causes, and may cause without end.

    `clock` returns seconds and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged: dict[str, tuple[float, int]] = {}
        """By kind: when the last line was written, and the events since."""

    def due(self, kind: str) -> int | None:
        """How many events of a kind were left out since the last line about it; None: this one is left out, too."""
        now_s = self._clock()
        if kind not in self._logged and len(self._logged) >= MAX_KINDS:
            recent = {key: value for key, value in self._logged.items() if now_s - value[0] < REPEAT_INTERVAL_S}
            self._logged, kind = recent, kind if len(recent) < MAX_KINDS else ""
        last_s, left_out = self._logged.get(kind, (-math.inf, 0))
        if now_s - last_s < REPEAT_INTERVAL_S:
            self._logged[kind] = last_s, left_out + 1
            return None
        self._logged[kind] = now_s, 0
        return left_out


class Colours(NamedTuple):
    """Of a console line: what a terminal obeys before each of its parts, and after it."""

    time: str = ""
    message: str = ""
    name: str = ""
    value: str = ""
    levels: Mapping[str, str] = {}
    end: str = ""


NO_COLOURS = Colours()
COLOURS = Colours(
    time="\x1b[2m",
    message="\x1b[1m",
    name="\x1b[36m",
    value="\x1b[35m",
    levels={
        "debug": "\x1b[32m",
        "info": "\x1b[32m",
        "warning": "\x1b[33m",
        "error": "\x1b[31m",
        "critical": "\x1b[31m",
    },
    end="\x1b[0m",
)

log = structlog.get_logger(__name__)

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request in whose context a line is logged."""


def configure_logs(level: str, style: str, role: str) -> LogStream:
    """`style` is `console` or `json`; `role` names the process in each line. Returns the stream of all lines."""
    stream = open_log_stream()

    def add_context(_: object, __: str, event: EventDict) -> EventDict:
        if known_id := request_id.get():
            event["request_id"] = known_id
        span = current_span()
        if span.recording:
            event.update(span.ids)
        event["role"] = role
        return event

    shared: list[Processor] = [
        add_context,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    last: Processor
    if style == "json":
        last = structlog.processors.JSONRenderer()  # it escapes
    else:
        last = console_renderer(COLOURS if stream.isatty() else NO_COLOURS)
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # One write per line including its end. Printing makes two if Python does not buffer, and another process's line
        # can come between.
        logger_factory=lambda *_: SimpleNamespace(**dict.fromkeys(LEVELS, partial(stream.write, end="\n"))),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=last, foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared]
        )
    )
    logging.basicConfig(level=max(LIBRARIES_LEVEL, logging.getLevelName(level.upper())), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for library, library_level in CHATTY.items():
        logging.getLogger(library).setLevel(library_level)
    stream.on_recovery = lambda lines: log.warning("log lines were dropped: they could not be written", lines=lines)
    return stream


def configure_command_logs() -> None:
    """For a command that computes in its own process: warnings and errors on stderr. stdout has its result."""
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            console_renderer(NO_COLOURS),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("warning"),
        # Each line goes to the stderr of its moment.
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
    )


def console_renderer(colours: Colours) -> Processor:
    """Renders a line as structlog's ConsoleRenderer does, in a fraction of its time, and escapes its values.

    Each value takes one line of printable characters. A traceback keeps its lines, indented.
    """
    time_, message, name_, value_, levels, end = colours

    def render(_: object, __: str, event: EventDict) -> str:
        level, text = event.pop("level"), str(event.pop("event"))
        text = text if text.isprintable() else _printable(text)
        line = f"{time_}{event.pop('timestamp')}{end} [{levels.get(level, '')}{level:<9}{end}] {message}{text}{end}"
        if (logger := event.pop("logger", None)) is not None:
            line += f" [{logger}]"
        traceback = event.pop("exception", None)
        for name in sorted(event):
            value = event[name]
            if not isinstance(value, str):
                shown = repr(value)  # it escapes
            else:
                shown = value if value.isprintable() else _printable(value)
                if not QUOTED_CHARACTERS.isdisjoint(shown):
                    shown = repr(shown)
            line += f" {name_}{name}{end}={value_}{shown}{end}"
        if traceback is not None:
            line += "".join([f"\n    {_printable(one)}" for one in str(traceback).split("\n")])
        return line

    return render


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


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

    def write(self, text: str, /, end: str = "") -> int:
        data = (text + end).encode(self.encoding, self.errors)
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
        return partial(os.write, descriptor)
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
