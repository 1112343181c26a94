"""Writes log lines as a process of the service would: `python -m tests.service.observability.log_lines STYLE LEVEL`."""

from __future__ import annotations

import io
import logging
import sys
import warnings

import PIL.Image
import structlog
from prometheus_client import CollectorRegistry

from service.frontend.core.request_log import RequestLog
from service.observability.logs import configure_logs
from service.observability.metrics import FrontEndMetrics
from service.observability.tracing import TraceContext, open_tracing, step
from service.settings import Settings

MARKER = "MaRkEr"
LIE = "sad\r\n2026-01-01T00:00:00Z [info] all is well \x1b[2K\x9b2K\u2028\u202e\x00"
"""Characters that break a line, or that a terminal obeys."""


def main(style: str, level: str) -> None:
    configure_logs(level, style, "a-role")
    log = structlog.get_logger()
    log.debug("the service's own, at debug")
    log.info(f"event {LIE}", value=LIE, values=[LIE], number=1)
    try:
        raise ValueError(LIE)
    except ValueError:
        log.exception("failed", request_id="r-1")
    for library in ("uvicorn.error", "grpc._cython", "asyncio"):
        logging.getLogger(library).warning("library reports %s", LIE)
        logging.getLogger(library).debug(MARKER)
    logging.getLogger("uvicorn.access").info("127.0.0.1 GET /")
    warnings.warn(f"beware {LIE}", stacklevel=1)
    _decode_picture_with_a_secret()
    _answer_a_request()


def _answer_a_request() -> None:
    """Log during a request, by the service and by a library; the request's own line follows at its end."""
    settings = Settings(otlp_endpoint="http://127.0.0.1:9", drain_timeout_ms=1)
    with open_tracing(settings, "rest") as tracing:
        request_log = RequestLog("rest", FrontEndMetrics(CollectorRegistry()), tracing, access_log=True)
        record = request_log.request("r-2", "POST")
        record.span = span = tracing.request("POST /classify", TraceContext())
        with record, step("predict") as child:
            structlog.get_logger().info("on the way", request=span.ids["span_id"], step=child.ids["span_id"])
            logging.getLogger("library").info("on the way")
    structlog.get_logger().info("after it")


def _decode_picture_with_a_secret() -> None:
    """Decode a picture with a tag that Pillow logs at level debug."""
    exif = PIL.Image.Exif()
    exif[0x010F] = MARKER
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(file, "TIFF", exif=exif)
    with PIL.Image.open(file) as image:
        image.load()
        assert image.getexif()[0x010F] == MARKER


if __name__ == "__main__":
    main(*sys.argv[1:])
