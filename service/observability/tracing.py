"""Traces of requests, on OpenTelemetry's API: W3C Trace Context between processes, no-op spans where nothing is traced.

Code that does the work uses `Span` and `step` alone. `otlp.py` sets up OpenTelemetry's SDK, which is an optional part
of the installation and is imported only where `otlp_endpoint` is set.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, NoOpTracer, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from model.errors import ConvMLPError
from service.errors import Internal
from service.settings import Settings

Attributes = Mapping[str, str | int | float | bool]

NO_ATTRIBUTES: Attributes = {}
CANCELLED = "cancelled"
"""Outcome of a request whose caller disconnected."""
ERROR_TYPE = "error.type"
FLUSH_S = 2.0
"""How long the end of a process may wait for its last spans; less than a supervisor waits beyond the drain time."""
MAX_HEADER = 512
"""Characters of a traceparent or tracestate header; a longer one does not follow the standard and is ignored."""

_propagator = TraceContextTextMapPropagator()


class TraceContext(NamedTuple):
    """The values of the headers traceparent and tracestate; empty where there is none."""

    traceparent: str = ""
    tracestate: str = ""


NO_CONTEXT = TraceContext()


def received_context(traceparents: Sequence[str], tracestates: Sequence[str]) -> TraceContext:
    """The trace context of a request, from all its headers of the two names."""
    if len(traceparents) != 1 or len(traceparents[0]) > MAX_HEADER:
        return NO_CONTEXT
    tracestate = ",".join(tracestates)
    return TraceContext(traceparents[0], tracestate if len(tracestate) <= MAX_HEADER else "")


class Span:
    """A span of OpenTelemetry with times in seconds on the clock of `time.monotonic`.

    `wall_ns` is the wall clock at zero of `time.monotonic`. All spans of a request share it, so that their order does
    not depend on corrections of the wall clock. `recording` is False for the no-op span.
    """

    __slots__ = ("_span", "_tracer", "_wall_ns", "recording")

    def __init__(self, tracer: trace.Tracer, span: trace.Span, wall_ns: int, *, recording: bool) -> None:
        self._tracer = tracer
        self._span = span
        self._wall_ns = wall_ns
        self.recording = recording

    @property
    def ids(self) -> dict[str, str]:
        """`trace_id` and `span_id` in hexadecimal, for log lines and exemplars; empty where nothing is recorded."""
        if not self.recording:
            return {}
        context = self._span.get_span_context()
        return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}

    @property
    def context(self) -> TraceContext:
        """What another process needs to add children to this span."""
        if not self.recording:
            return NO_CONTEXT
        headers: dict[str, str] = {}
        _propagator.inject(headers, trace.set_span_in_context(self._span, Context()))
        return TraceContext(headers.get("traceparent", ""), headers.get("tracestate", ""))

    def begin(self, name: str, attributes: Attributes = NO_ATTRIBUTES) -> Span:
        """Start a child now."""
        if not self.recording:
            return self
        span = self._child(name, self._wall_ns + time.monotonic_ns(), attributes)
        return Span(self._tracer, span, self._wall_ns, recording=True)

    def record(
        self,
        name: str,
        started_s: float,
        ended_s: float,
        attributes: Attributes = NO_ATTRIBUTES,
        error: str = "",
        link: Span | None = None,
    ) -> None:
        """Add a child that has ended already. `error`: the code of its failure; `link`: a span of another trace."""
        if self.recording:
            links = [link.link] if link is not None and link.recording else []
            span = self._child(name, self._wall_ns + _ns(started_s), attributes, links)
            _end(span, self._wall_ns + _ns(ended_s), error)

    @property
    def link(self) -> Link:
        return Link(self._span.get_span_context())

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def end(self, error: str = "") -> None:
        """End the span now. `error`: the code of its failure."""
        if self.recording:
            _end(self._span, self._wall_ns + time.monotonic_ns(), error)

    def _child(self, name: str, started_ns: int, attributes: Attributes, links: Sequence[Link] = ()) -> trace.Span:
        parent = trace.set_span_in_context(self._span, Context())
        return self._tracer.start_span(name, parent, attributes=attributes, links=links, start_time=started_ns)


class Tracing:
    """Starts the spans of one process. `on` is False where nothing is traced: all spans are no-ops then."""

    def __init__(self, tracer: trace.Tracer, *, on: bool) -> None:
        self._tracer = tracer
        self.on = on

    def request(self, name: str, context: TraceContext, attributes: Attributes = NO_ATTRIBUTES) -> Span:
        """Start the span of a request that arrived now with its caller's context."""
        if not self.on:
            return NO_SPAN
        wall_ns = _wall_ns()
        started_ns = wall_ns + time.monotonic_ns()
        span = self._tracer.start_span(name, _extract(context), SpanKind.SERVER, attributes, start_time=started_ns)
        return Span(self._tracer, span, wall_ns, recording=True) if span.is_recording() else NO_SPAN

    def remote(self, context: TraceContext) -> Span:
        """Another process's span, as a parent of spans here. It is not ended here."""
        if not self.on or not context.traceparent:
            return NO_SPAN
        span = trace.get_current_span(_extract(context))
        sampled = span.get_span_context().trace_flags.sampled
        return Span(self._tracer, span, _wall_ns(), recording=True) if sampled else NO_SPAN

    def batch_span(
        self,
        name: str,
        requests: Sequence[Span],
        started_s: float,
        ended_s: float,
        attributes: Attributes = NO_ATTRIBUTES,
        error: str = "",
    ) -> Span:
        """A span that has ended already and served several requests: a trace of its own, with a link to each."""
        links = [request.link for request in requests if request.recording]
        if not links:
            return NO_SPAN
        wall_ns = _wall_ns()
        started_ns = wall_ns + _ns(started_s)
        span = self._tracer.start_span(name, Context(), attributes=attributes, links=links, start_time=started_ns)
        _end(span, wall_ns + _ns(ended_s), error)
        return Span(self._tracer, span, wall_ns, recording=True)


NO_SPAN = Span(NoOpTracer(), INVALID_SPAN, 0, recording=False)
NO_TRACING = Tracing(NoOpTracer(), on=False)

_current: ContextVar[Span] = ContextVar("span", default=NO_SPAN)


current_span: Callable[[], Span] = _current.get
"""The span of the request, or of its step, in whose context this is called."""


@contextmanager
def within(span: Span) -> Iterator[None]:
    """Make a span the current one."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)


def step(name: str, attributes: Attributes = NO_ATTRIBUTES) -> AbstractContextManager[Span]:
    """A child of the current span, current inside the context. An error that leaves the context becomes its error."""
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
    """The domain code of an exception that ended a piece of work."""
    if isinstance(error, ConvMLPError):
        return error.code
    return CANCELLED if isinstance(error, asyncio.CancelledError) else Internal.code


class TracingUnavailable(Exception):
    """The settings ask for traces and OpenTelemetry's SDK is not installed."""


@contextmanager
def open_tracing(settings: Settings, part: str, *, follows: bool = False) -> Iterator[Tracing]:
    """The traces of one process. On exit its last spans are delivered within `FLUSH_S`, or dropped.

    `part` (rest, grpc, worker) is the service's name where OTEL_SERVICE_NAME gives none. A process that `follows`
    starts no traces: it adds spans to those that other processes record.

    Raises:
        TracingUnavailable: OpenTelemetry's SDK is not installed.
    """
    if not settings.otlp_endpoint:
        yield NO_TRACING
        return
    try:
        from service.observability.otlp import OtlpPipeline
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("opentelemetry"):
            raise
        raise TracingUnavailable(
            "otlp_endpoint is set, but OpenTelemetry's SDK is not installed: "
            "install convmlp-serving[tracing], or leave otlp_endpoint empty"
        ) from error
    pipeline = OtlpPipeline(settings.otlp_endpoint, part, None if follows else settings.trace_sample_ratio)
    try:
        yield Tracing(pipeline.tracer, on=True)
    finally:
        pipeline.close(min(FLUSH_S, settings.drain_timeout_ms / 1000))


def _end(span: trace.Span, ended_ns: int, error: str) -> None:
    if error:
        span.set_attribute(ERROR_TYPE, error)
        span.set_status(Status(StatusCode.ERROR, error))
    span.end(ended_ns)


def _extract(context: TraceContext) -> Context:
    return _propagator.extract({"traceparent": context.traceparent, "tracestate": context.tracestate}, Context())


def _wall_ns() -> int:
    return time.time_ns() - time.monotonic_ns()


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
