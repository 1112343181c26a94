"""Structured logs on stderr: for people (console) or for machines (JSON, one object per line, times in UTC).

Log lines of libraries take the same form. Lines in a request's context have its `request_id` and, if its trace is
recorded, `trace_id` and `span_id`. Image content and credentials are never logged. A caller cannot forge a line:
characters that are not printable are escaped. A line that cannot be written at once is dropped and counted.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar

import structlog
from structlog.typing import EventDict, Processor

from service.observability.log_stream import LogStream, open_log_stream
from service.observability.tracing import current_span

LIBRARIES_LEVEL = logging.INFO
"""The most detailed level of libraries: at DEBUG some log image content."""
CHATTY = ("httpx2", "uvicorn")
"""Libraries that log every request."""
QUOTED_CHARACTERS = frozenset(" \t=\r\n\"'")
"""A string with one of them is quoted in a console line."""

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
        shared.append(escape)
        last = coloured_console() if stream.isatty() else render_console
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # One write per line including its end. Printing makes two if Python does not buffer, and another process's line
        # can come between.
        logger_factory=structlog.WriteLoggerFactory(file=stream),  # type: ignore[arg-type]  # it only writes and flushes
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
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    stream.on_recovery = lambda lines: log.warning("log lines were dropped: they could not be written", lines=lines)
    return stream


def coloured_console() -> Processor:
    """Renders a line for a terminal."""
    return structlog.dev.ConsoleRenderer(colors=True, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback)


def render_console(_: object, __: str, event: EventDict) -> str:
    """Render a line as structlog's ConsoleRenderer does without colours, in a tenth of the time."""
    line = f"{event.pop('timestamp')} [{event.pop('level'):<9}] {event.pop('event')}"
    if (logger := event.pop("logger", None)) is not None:
        line += f" [{logger}]"
    exception = event.pop("exception", None)
    for name in sorted(event):
        value = event[name]
        plain = isinstance(value, str) and QUOTED_CHARACTERS.isdisjoint(value)
        line += f" {name}={value}" if plain else f" {name}={value!r}"
    return line if exception is None else f"{line}\n{exception}"


def escape(_: object, __: str, event: EventDict) -> EventDict:
    """Escape each value to one line of printable characters. A traceback keeps its lines, indented."""
    traceback = event.pop("exception", None)
    for name, value in event.items():
        # Other values are shown by their repr, which escapes.
        if isinstance(value, str) and not value.isprintable():
            event[name] = _printable(value)
    if traceback is not None:
        event["exception"] = "\n".join(f"    {_printable(line)}" for line in str(traceback).split("\n"))
    return event


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
