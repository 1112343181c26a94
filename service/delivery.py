"""Spans on their way to a collector, which may be dead: that costs a line in the log, and no request anything."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

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
