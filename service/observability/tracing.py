"""What a trace is told of: spans, and how their context travels (W3C Trace Context).

Everything here says nothing to nobody, and costs next to nothing. `otlp.py` has the spans that are told; code that
does the work needs to know of neither.

Traces of requests, told by OpenTelemetry (OTLP over HTTP) where the settings ask for it.

OpenTelemetry is an optional part of the installation, and is imported only when it is asked for.
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
from service.settings import Settings

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

    def batch_span(
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


FLUSH_S = 2.0
"""What the end of a process may take to deliver its last spans; less than a supervisor waits beyond the drain time."""


class TracingUnavailable(Exception):
    """Traces are asked for and cannot be made."""


@contextmanager
def open_tracing(settings: Settings, part: str, *, follows: bool = False) -> Iterator[Tracing]:
    """Traces for one process; its last spans are delivered on the way out, or given up.

    `part` (rest, grpc, worker) names the service, where OTEL_SERVICE_NAME does not. A process that `follows` begins
    no requests' traces of its own: it tells of whatever is recorded elsewhere.

    Raises:
        TracingUnavailable: OpenTelemetry is not installed.
    """
    if not settings.otlp_endpoint:
        yield NO_TRACING
        return
    try:
        from service.observability.otlp import OtlpTracing
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("opentelemetry"):
            raise
        raise TracingUnavailable(
            "otlp_endpoint asks for traces, and OpenTelemetry is not installed: "
            "install convmlp-serving[tracing], or leave otlp_endpoint empty"
        ) from error
    tracing = OtlpTracing(settings.otlp_endpoint, part, None if follows else settings.trace_sample_ratio)
    try:
        yield tracing
    finally:
        tracing.close(min(FLUSH_S, settings.drain_timeout_ms / 1000))
