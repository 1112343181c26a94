"""What is told of each request, whatever brought it: a span where it is traced, and a line in the log."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Token
from types import TracebackType

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

    @property
    def traces(self) -> bool:
        """Whether requests are traced at all."""
        return self._tracing.on

    def request(
        self,
        exchange: Exchange,
        name: str,
        caller_context: Callable[[], TraceContext],
        attributes: Attributes,
        *,
        probe: bool = False,
    ) -> AbstractContextManager[Span]:
        """Whatever is done for a request is done within. Nothing is told of a probe."""
        span = self._tracing.request(name, caller_context(), attributes) if self.traces and not probe else NO_SPAN
        return _Told(exchange, span, self._transport, "request" if self._access_log and not probe else "")

    def message(self, exchange: Exchange) -> AbstractContextManager[Span]:
        """The same for one message of a stream, within its call's request."""
        return _Told(exchange, current_span().begin("message"), self._transport, "message" if self._access_log else "")


class _Told:
    """Within it a request is done; `event` is the log line's, empty where there is none.

    No generator, which costs as much as all else here for a request that is neither traced nor logged.
    """

    __slots__ = ("_before", "_event", "_exchange", "_span", "_transport", "_within")

    def __init__(self, exchange: Exchange, span: Span, transport: str, event: str) -> None:
        self._exchange = exchange
        self._span = span
        self._transport = transport
        self._event = event
        self._before: Token[str] | None = None
        self._within: AbstractContextManager[None] | None = None

    def __enter__(self) -> Span:
        self._before = request_id.set(self._exchange.request_id)
        # A span of none is set as well: what else the context may have is an earlier request's of the same connection.
        if current_span() is not self._span:
            self._within = within(self._span)
            self._within.__enter__()
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        exchange = self._exchange
        try:
            if not exchange.outcome:
                exchange.outcome = "ok" if error is None else code_of(error)
            if self._span.recording:
                _finish(self._span, exchange)
            if self._event:
                log.info(self._event, **_line(self._transport, exchange))
        finally:
            if self._before is not None:
                request_id.reset(self._before)
            if self._within is not None:
                self._within.__exit__(kind, error, trace)


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
