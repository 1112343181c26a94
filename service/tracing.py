"""Traces of requests, told by OpenTelemetry (OTLP over HTTP) where the settings ask for it.

OpenTelemetry is an optional part of the installation, and is imported only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from service.settings import Settings
from service.spans import NO_TRACING, Tracing

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
        from service.otlp import OtlpTracing
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
