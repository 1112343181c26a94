"""Structured logs on stderr: for people (console) or for machines (JSON, one object a line, times in UTC).

What libraries log goes the same way. Lines of a request's context carry its `request_id` and, where its trace is
recorded, `trace_id` and `span_id`. No image content and no credentials are ever logged, and nothing that a caller
sends can make a line of its own: whatever is not printable is escaped.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar

import structlog
from structlog.typing import EventDict, Processor

from service.observability.tracing import current_span

LIBRARIES_LEVEL = logging.INFO
"""Libraries never tell more, whatever the level: at DEBUG some tell what is in a picture."""
CHATTY = ("httpx2", "uvicorn")
"""Libraries that tell of every request."""


request_id: ContextVar[str] = ContextVar("request_id", default="")
"""That of the request in whose context a line is said."""


def configure_logs(level: str, style: str, role: str) -> None:
    """`style` is `console` or `json`; `role` names the process in every line."""

    def add_context(_: object, __: str, event: EventDict) -> EventDict:
        if told := request_id.get():
            event["request_id"] = told
        event.update(current_span().ids)
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
        last = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # One write for a line and its end: printing makes two of them where Python does not buffer, and another
        # process's line can come between.
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=last, foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared]
        )
    )
    logging.basicConfig(level=max(LIBRARIES_LEVEL, logging.getLevelName(level.upper())), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)


def escape(_: object, __: str, event: EventDict) -> EventDict:
    """Make each value one line of printable characters; a traceback keeps its lines, which are set in."""
    traceback = event.pop("exception", None)
    for name, value in event.items():
        # What is no string is shown by its repr, which escapes.
        if isinstance(value, str) and not value.isprintable():
            event[name] = _printable(value)
    if traceback is not None:
        event["exception"] = "\n".join(f"    {_printable(line)}" for line in str(traceback).split("\n"))
    return event


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
