"""Spans on their way to a collector, which may be dead: that costs a line in the log, and no request anything.

Spans that are told: OpenTelemetry's, sent by OTLP over HTTP. Only `tracing.py` imports this, where it is asked for.

OpenTelemetry's own environment variables say the rest: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_* (the
bounded queue of spans), OTEL_EXPORTER_OTLP_{HEADERS,TIMEOUT,COMPRESSION,CERTIFICATE}, OTEL_SDK_DISABLED.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from urllib.parse import urlsplit

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.observability.tracing import NO_SPAN, NOTHING, Attributes, Span, TraceContext, Tracing

PATH = "/v1/traces"

log = structlog.get_logger(__name__)

_queue_log = logging.getLogger("opentelemetry.sdk._shared_internal")  # says that the queue of spans is full


class _Reasons(logging.Filter):
    """Keeps to itself what the exporter logs, every failure and every retry of it."""

    first = ""
    """Of an export: what went wrong. The last only says that no more is tried."""

    def filter(self, record: logging.LogRecord) -> bool:
        self.first = self.first or record.getMessage()
        return False


_reasons = _Reasons()
logging.getLogger(OTLPSpanExporter.__module__).addFilter(_reasons)


class Delivery(SpanExporter):
    """Sends spans to `endpoint`, a collector's URL, in whatever thread calls; says once when that fails, and once when
    it works again."""

    def __init__(self, endpoint: str) -> None:
        url = endpoint.removesuffix("/").removesuffix(PATH)
        parts = urlsplit(url)
        self._where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # without credentials
        self._exporter = OTLPSpanExporter(url + PATH)
        self._failing = False
        self._closed = threading.Event()
        _queue_log.addFilter(self._worth_saying)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        _reasons.first = ""
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._failing and not self._closed.is_set():
            log.warning(
                "traces cannot be delivered; they are dropped until they can", to=self._where, reason=_reasons.first
            )
        if self._failing and not failed:
            log.info("traces are delivered again", to=self._where)
        self._failing = failed
        return result

    def shutdown(self) -> None:
        """Give up what is being sent; nothing is sent any more."""
        if not self._closed.is_set():
            self._closed.set()
            self._exporter.shutdown()  # type: ignore[no-untyped-call]
            _queue_log.removeFilter(self._worth_saying)

    def finish(self, send_rest: Callable[[], None], within_s: float) -> None:
        """Call `send_rest`, which sends what is left and then calls `shutdown`, and wait so long for it at the most."""
        sending = threading.Thread(target=send_rest, name="last-traces", daemon=True)
        sending.start()
        # A collector that is dead is not waited for.
        sending.join(0 if self._failing else within_s)
        if not self._closed.is_set():
            log.warning("the last traces were not delivered in time; they are lost", to=self._where)
            self.shutdown()

    def _worth_saying(self, _: logging.LogRecord) -> bool:
        return not self._failing


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

    def batch_span(
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
