"""Spans that are told: OpenTelemetry's, sent by OTLP over HTTP. Only `tracing.py` imports this, where it is asked for.

OpenTelemetry's own environment variables say the rest: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_* (the
bounded queue of spans), OTEL_EXPORTER_OTLP_{HEADERS,TIMEOUT,COMPRESSION,CERTIFICATE}, OTEL_SDK_DISABLED.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.delivery import Delivery
from service.spans import NO_SPAN, NOTHING, Attributes, Span, TraceContext, Tracing

PACKAGE = "convmlp-serving"
ERROR_TYPE = "error.type"

_propagator = TraceContextTextMapPropagator()


class OtlpTracing(Tracing):
    """Spans of one process, on their way to the collector at `endpoint`, an HTTP URL.

    `ratio`: the share of requests without a traced caller whose trace is recorded; None: this process begins none.
    """

    on = True

    def __init__(self, endpoint: str, part: str, ratio: float | None) -> None:
        self._delivery = Delivery(endpoint)
        self._provider = TracerProvider(
            # Whoever called decides, by the flag in its context.
            sampler=ParentBased(ALWAYS_ON if ratio is None else TraceIdRatioBased(ratio)),
            resource=_resource(part),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._delivery))
        self._tracer = self._provider.get_tracer(PACKAGE, version(PACKAGE))

    def request(self, name: str, context: TraceContext, attributes: Attributes = NOTHING) -> Span:
        wall_ns = _wall_ns()
        parent = _extracted(context)
        now_ns = wall_ns + time.monotonic_ns()
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=now_ns)
        return OtlpSpan(self._tracer, span, wall_ns) if span.is_recording() else NO_SPAN

    def remote(self, context: TraceContext) -> Span:
        if not context.traceparent:
            return NO_SPAN
        span = trace.get_current_span(_extracted(context))
        return OtlpSpan(self._tracer, span, _wall_ns()) if span.get_span_context().trace_flags.sampled else NO_SPAN

    def joint(
        self,
        name: str,
        requests: Sequence[Span],
        started_s: float,
        ended_s: float,
        attributes: Attributes = NOTHING,
        error: str = "",
    ) -> Span:
        links = [request.link for request in requests if isinstance(request, OtlpSpan)]
        if not links:
            return NO_SPAN
        wall_ns = _wall_ns()
        span = self._tracer.start_span(
            name, Context(), attributes=attributes, links=links, start_time=wall_ns + _ns(started_s)
        )
        _end(span, wall_ns + _ns(ended_s), error)
        return OtlpSpan(self._tracer, span, wall_ns)

    def close(self, within_s: float) -> None:
        """Deliver what is left, and wait for it for so long at the most."""
        self._delivery.finish(self._provider.shutdown, within_s)


class OtlpSpan(Span):
    """`wall_ns` is the wall clock's time at zero of `time.monotonic`, one for all spans of a request: its steps keep
    their order whatever becomes of the wall clock meanwhile."""

    __slots__ = ("_span", "_tracer", "_wall_ns")

    recording = True

    def __init__(self, tracer: trace.Tracer, span: trace.Span, wall_ns: int) -> None:
        self._tracer = tracer
        self._span = span
        self._wall_ns = wall_ns

    @property
    def ids(self) -> dict[str, str]:
        context = self._span.get_span_context()
        return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}

    @property
    def context(self) -> TraceContext:
        headers: dict[str, str] = {}
        _propagator.inject(headers, trace.set_span_in_context(self._span, Context()))
        return TraceContext(headers.get("traceparent", ""), headers.get("tracestate", ""))

    @property
    def link(self) -> Link:
        return Link(self._span.get_span_context())

    def begin(self, name: str, attributes: Attributes = NOTHING) -> Span:
        span = self._child(name, self._wall_ns + time.monotonic_ns(), attributes)
        return OtlpSpan(self._tracer, span, self._wall_ns)

    def record(
        self,
        name: str,
        started_s: float,
        ended_s: float,
        attributes: Attributes = NOTHING,
        error: str = "",
        link: Span | None = None,
    ) -> None:
        links = [link.link] if isinstance(link, OtlpSpan) else []
        span = self._child(name, self._wall_ns + _ns(started_s), attributes, links)
        _end(span, self._wall_ns + _ns(ended_s), error)

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def end(self, error: str = "") -> None:
        _end(self._span, self._wall_ns + time.monotonic_ns(), error)

    def _child(self, name: str, started_ns: int, attributes: Attributes, links: Sequence[Link] = ()) -> trace.Span:
        parent = trace.set_span_in_context(self._span, Context())
        return self._tracer.start_span(name, parent, attributes=attributes, links=links, start_time=started_ns)


def _end(span: trace.Span, ended_ns: int, error: str) -> None:
    if error:
        span.set_attribute(ERROR_TYPE, error)
        span.set_status(Status(StatusCode.ERROR, error))
    span.end(ended_ns)


def _extracted(context: TraceContext) -> Context:
    return _propagator.extract({"traceparent": context.traceparent, "tracestate": context.tracestate}, Context())


def _resource(part: str) -> Resource:
    own = {
        SERVICE_NAME: f"convmlp-{part}",
        SERVICE_VERSION: version(PACKAGE),
        SERVICE_INSTANCE_ID: f"{socket.gethostname()}:{os.getpid()}",
    }
    return Resource.create({**own, **OTELResourceDetector().detect().attributes})


def _wall_ns() -> int:
    return time.time_ns() - time.monotonic_ns()


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
