"""Delivery of spans to a collector, by OTLP over HTTP. A dead collector costs one line in the log and no request.

OpenTelemetry's own environment variables set the rest: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_* (the
bounded queue of spans), OTEL_EXPORTER_OTLP_{HEADERS,TIMEOUT,COMPRESSION,CERTIFICATE}, OTEL_SDK_DISABLED.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from urllib.parse import urlsplit

import structlog
from opentelemetry import trace
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

PACKAGE = "convmlp-serving"

PATH = "/v1/traces"

log = structlog.get_logger(__name__)

_queue_log = logging.getLogger("opentelemetry.sdk._shared_internal")  # logs that the queue of spans is full


class _Reasons(logging.Filter):
    """Suppresses the exporter's own log lines, one for each failure and each retry."""

    first = ""
    """The first line of an export, which has the cause. The last one only reports the end of the retries."""

    def filter(self, record: logging.LogRecord) -> bool:
        self.first = self.first or record.getMessage()
        return False


_reasons = _Reasons()
logging.getLogger(OTLPSpanExporter.__module__).addFilter(_reasons)


class OtlpPipeline:
    """OpenTelemetry's SDK for one process: `tracer` starts spans, a bounded queue sends them to the URL `endpoint`.

    `ratio`: the share of requests without a traced caller that are recorded; None: this process starts no traces.
    """

    def __init__(self, endpoint: str, part: str, ratio: float | None) -> None:
        self._exporter = CollectorExporter(endpoint)
        self._provider = TracerProvider(
            # The caller decides, by the sampled flag in its context.
            sampler=ParentBased(ALWAYS_ON if ratio is None else TraceIdRatioBased(ratio)),
            resource=_resource(part),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self.tracer: trace.Tracer = self._provider.get_tracer(PACKAGE, version(PACKAGE))

    def close(self, within_s: float) -> None:
        """Deliver the last spans, and wait at most `within_s` seconds for that."""
        self._exporter.finish(self._provider.shutdown, within_s)


class CollectorExporter(SpanExporter):
    """Sends spans to `endpoint`, a collector's URL, in the calling thread. Logs the first failure and the recovery."""

    def __init__(self, endpoint: str) -> None:
        url = endpoint.removesuffix("/").removesuffix(PATH)
        parts = urlsplit(url)
        self._collector = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"  # without credentials
        self._exporter = OTLPSpanExporter(url + PATH)
        self._failing = False
        self._closed = threading.Event()
        _queue_log.addFilter(self._log_filter)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        _reasons.first = ""
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._failing and not self._closed.is_set():
            log.warning(
                "traces cannot be delivered and are dropped until the collector answers",
                collector=self._collector,
                reason=_reasons.first,
            )
        if self._failing and not failed:
            log.info("traces are delivered again", collector=self._collector)
        self._failing = failed
        return result

    def shutdown(self) -> None:
        """Abandon what is being sent. Nothing is sent afterwards."""
        if not self._closed.is_set():
            self._closed.set()
            self._exporter.shutdown()  # type: ignore[no-untyped-call]
            _queue_log.removeFilter(self._log_filter)

    def finish(self, send_rest: Callable[[], None], within_s: float) -> None:
        """Call `send_rest`, which sends the last spans and then calls `shutdown`; wait at most `within_s` seconds."""
        sending = threading.Thread(target=send_rest, name="last-traces", daemon=True)
        sending.start()
        # There is no wait for a dead collector.
        sending.join(0 if self._failing else within_s)
        if not self._closed.is_set():
            log.warning("the last traces were not delivered in time and are lost", collector=self._collector)
            self.shutdown()

    def _log_filter(self, _: logging.LogRecord) -> bool:
        return not self._failing


def _resource(part: str) -> Resource:
    attributes = {
        SERVICE_NAME: f"convmlp-{part}",
        SERVICE_VERSION: version(PACKAGE),
        SERVICE_INSTANCE_ID: f"{socket.gethostname()}:{os.getpid()}",
    }
    return Resource.create({**attributes, **OTELResourceDetector().detect().attributes})
