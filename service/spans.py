"""What a trace is told of: spans, and how their context travels (W3C Trace Context).

Everything here says nothing to nobody, and costs next to nothing. `otlp.py` has the spans that are told; code that
does the work needs to know of neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar

from model.errors import ConvMLPError
from service.errors import Internal

Attributes = Mapping[str, str | int | float | bool]

NOTHING: Attributes = {}
CANCELLED = "cancelled"
"""The outcome where the caller left."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The values of the two headers; empty where there is none."""

    traceparent: str = ""
    tracestate: str = ""


NO_CONTEXT = TraceContext()
MAX_HEADER = 512
"""Characters of either header; a longer one is nobody's that follows the standard."""


def received_context(traceparents: Sequence[str], tracestates: Sequence[str]) -> TraceContext:
    """The context that came in a request, by all its headers of the two names."""
    if len(traceparents) != 1 or len(traceparents[0]) > MAX_HEADER:
        return NO_CONTEXT
    tracestate = ",".join(tracestates)
    return TraceContext(traceparents[0], tracestate if len(tracestate) <= MAX_HEADER else "")


class Span:
    """A span of a trace that nobody asked for. Times are on the clock of `time.monotonic`."""

    __slots__ = ()

    recording: ClassVar[bool] = False

    @property
    def ids(self) -> Mapping[str, str]:
        """`trace_id` and `span_id` in hexadecimal, for log lines; empty where nothing is recorded."""
        return {}

    @property
    def context(self) -> TraceContext:
        """What makes another process's spans its children."""
        return NO_CONTEXT

    def begin(self, name: str, attributes: Attributes = NOTHING) -> Span:  # noqa: ARG002
        """A child that begins now."""
        return self

    def record(
        self,
        name: str,
        started_s: float,
        ended_s: float,
        attributes: Attributes = NOTHING,
        error: str = "",
        link: Span | None = None,
    ) -> None:
        """A child that is over already, and what it belongs to besides. `error`: the code of what it failed with."""

    def set(self, attributes: Attributes) -> None:
        """More attributes."""

    def rename(self, name: str) -> None:
        """A better name."""

    def end(self, error: str = "") -> None:
        """It is over. `error`: the code of what it failed with."""


NO_SPAN = Span()


class Tracing:
    """Where spans begin. This one begins none."""

    on: ClassVar[bool] = False

    def request(self, name: str, context: TraceContext, attributes: Attributes = NOTHING) -> Span:  # noqa: ARG002
        """The span of a request that came now with its caller's context."""
        return NO_SPAN

    def remote(self, context: TraceContext) -> Span:  # noqa: ARG002
        """Another process's span, to have children here. It is not ended here."""
        return NO_SPAN

    def joint(
        self,
        name: str,  # noqa: ARG002
        requests: Sequence[Span],  # noqa: ARG002
        started_s: float,  # noqa: ARG002
        ended_s: float,  # noqa: ARG002
        attributes: Attributes = NOTHING,  # noqa: ARG002
        error: str = "",  # noqa: ARG002
    ) -> Span:
        """What was done, and is over, for several requests at once: a trace of its own, linked to theirs."""
        return NO_SPAN


NO_TRACING = Tracing()

_current: ContextVar[Span] = ContextVar("span", default=NO_SPAN)


def current_span() -> Span:
    """That of the request, or of its step, in whose context this is called."""
    return _current.get()


@contextmanager
def within(span: Span) -> Iterator[None]:
    """Make a span the current one."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)


def step(name: str, attributes: Attributes = NOTHING) -> AbstractContextManager[Span]:
    """A child of the current span, current itself within; it ends with the code of the error that leaves, if one."""
    parent = _current.get()
    return _step(parent.begin(name, attributes)) if parent.recording else nullcontext(parent)


@contextmanager
def _step(span: Span) -> Iterator[Span]:
    with within(span):
        try:
            yield span
        except BaseException as error:
            span.end(code_of(error))
            raise
        span.end()


def code_of(error: BaseException) -> str:
    """The domain code of whatever ended a piece of work."""
    if isinstance(error, ConvMLPError):
        return error.code
    return CANCELLED if isinstance(error, asyncio.CancelledError) else Internal.code
