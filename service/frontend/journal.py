"""What is told of each request, whatever brought it: a span where it is traced, and a line in the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from service.frontend.exchange import Exchange
from service.logs import request_id
from service.spans import NO_SPAN, Attributes, Span, TraceContext, Tracing, code_of, current_span, within

log = structlog.get_logger("access")


class Journal:
    """One for each transport of a front-end process. `access_log`: requests are told in the log at all."""

    def __init__(self, transport: str, tracing: Tracing, *, access_log: bool) -> None:
        self._transport = transport
        self._tracing = tracing
        self._access_log = access_log

    @contextmanager
    def request(
        self,
        exchange: Exchange,
        name: str,
        caller_context: Callable[[], TraceContext],
        attributes: Attributes,
        *,
        probe: bool = False,
    ) -> Iterator[Span]:
        """Whatever is done for a request is done within. Nothing is told of a probe."""
        span = self._tracing.request(name, caller_context(), attributes) if self._tracing.on and not probe else NO_SPAN
        with self._told(exchange, span, "" if probe else "request"):
            yield span

    @contextmanager
    def message(self, exchange: Exchange) -> Iterator[None]:
        """The same for one message of a stream, within its call's request."""
        with self._told(exchange, current_span().begin("message"), "message"):
            yield

    @contextmanager
    def _told(self, exchange: Exchange, span: Span, event: str) -> Iterator[None]:
        # A span of none is set as well: what else the context has is an earlier request's of the same connection.
        before = request_id.set(exchange.request_id)
        with within(span):
            try:
                yield
            except BaseException as error:
                exchange.outcome = exchange.outcome or code_of(error)
                raise
            finally:
                exchange.outcome = exchange.outcome or "ok"
                if span.recording:
                    _finish(span, exchange)
                if event and self._access_log:
                    log.info(event, **_line(self._transport, exchange))
                request_id.reset(before)


def _finish(span: Span, exchange: Exchange) -> None:
    about = {
        "convmlp.request_id": exchange.request_id,
        "convmlp.task": exchange.task,
        "convmlp.model": exchange.model,
        "convmlp.outcome": exchange.outcome,
        "error.type": "" if exchange.outcome == "ok" else exchange.outcome,
    }
    span.set({name: value for name, value in about.items() if value})
    # What the caller did wrong is no failure of the service.
    span.end(exchange.outcome if exchange.failed else "")


def _line(transport: str, exchange: Exchange) -> dict[str, object]:
    durations = {f"{stage}_ms": round(value, 2) for stage, value in exchange.durations_ms().items()}
    line = {
        "transport": transport,
        "method": exchange.method,
        "path": exchange.path,
        "caller": exchange.caller,
        "task": exchange.task,
        "model": exchange.model,
        "outcome": exchange.outcome,
        "status": exchange.status,
        "request_bytes": exchange.request_bytes,
        "reply_bytes": exchange.reply_bytes,
    }
    return {**{name: value for name, value in line.items() if value not in ("", None)}, **durations}
