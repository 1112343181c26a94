"""One request over any transport: its id, its clock, its outcome, and what is recorded of it when it ends.

A request is counted in the metrics here and nowhere else, gets its line in the access log, and ends its span.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from contextvars import Token
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog

from model.errors import ConvMLPError
from service.errors import INTERNAL_DETAIL, Internal
from service.observability.histograms import exemplar_of
from service.observability.logs import request_id
from service.observability.metrics import FrontEndMetrics
from service.observability.tracing import CANCELLED, Span, Tracing, code_of, within
from service.types import Reply, Timings

SANE_ID = re.compile(r"[\x20-\x7e]{1,128}")
"""A caller's id that may stand in logs and headers."""
STAGES = ("decode", "queue", "infer", "post")
OPTIONAL_FIELDS = ("method", "path", "caller", "task", "model", "outcome", "status")
"""Of a line of the access log: those that not every request has."""

log = structlog.get_logger(__name__)
access_logger = structlog.get_logger("access")

_ids = random.Random()  # ids are unique, not secret; the system's random numbers cost a system call each


def usable_id(given_id: str) -> str:
    """The caller's id if it is printable ASCII of at most 128 characters, else a new one."""
    return given_id if given_id and SANE_ID.fullmatch(given_id) else f"{_ids.getrandbits(128):032x}"


def slowest(timings: Iterable[Timings]) -> Timings:
    """Each stage's longest; 0 where there is none."""
    all_timings = tuple(timings)
    return Timings(
        *(max((getattr(image_timings, stage) for image_timings in all_timings), default=0.0) for stage in STAGES)
    )


def precisions(replies: Iterable[Reply[Any]]) -> str:
    """Each precision that a network computed in, once: several where workers differ."""
    return ", ".join(dict.fromkeys(reply.precision for reply in replies))


def domain_error(error: BaseException, image_id: str, model: str) -> ConvMLPError:
    """The error that stands in the place of an answer: itself. An unexpected one is logged, and becomes Internal."""
    if isinstance(error, ConvMLPError):
        return error
    log.error("unexpected error", request_id=image_id, model=model, exc_info=error)
    return Internal(INTERNAL_DETAIL)


class RequestLog:
    """What is recorded of the requests of one transport (`rest` or `grpc`) in a front-end process."""

    __slots__ = ("_access_log", "metrics", "tracing", "transport")

    def __init__(self, transport: str, metrics: FrontEndMetrics, tracing: Tracing, *, access_log: bool) -> None:
        self.transport = transport
        self.metrics = metrics
        self.tracing = tracing
        self._access_log = access_log

    def request(self, given_id: str, method: str, *, probe: bool = False) -> RequestRecord:
        """The record of a request that arrives now. A probe gets no line in the access log."""
        event = "request" if self._access_log and not probe else ""
        return RequestRecord(self, usable_id(given_id), time.monotonic(), event, method=method)

    def message(self, call: RequestRecord, position: int) -> RequestRecord:
        """The record of one message, counted from 0, of the stream `call`."""
        event = "message" if self._access_log else ""
        span = None if call.span is None else call.span.begin("message")
        message_id = f"{call.request_id}-{position}"
        return RequestRecord(
            self, message_id, time.monotonic(), event, method=call.method, caller=call.caller, status="OK", span=span
        )


class RequestRecord(msgspec.Struct, eq=False):
    """One request, or one message of a stream. Use as a context manager around all work for it.

    `started_s` is on the clock of `time.monotonic`. `event` names the access log's line; without it there is none.
    `method` is HTTP's, or gRPC's `package.Service/Method`; `path` and its `route` are HTTP's; `status` is the
    transport's. `given_id` and `given_model` are those in a gRPC message. `predicts`: the metrics count it. `outcome`
    is `ok`, `cancelled` or a domain error's code; `failed`: the service is to blame for it. `span` is None where the
    request is not traced. `precision`: what the network computed in. `batch_images`: the batch's size, the largest
    of several. `held_bytes` is the request's part of the engine's `ByteBudget`. `total_s` is known once the answer is.
    """

    log: RequestLog
    request_id: str
    started_s: float
    event: str = ""
    timings: Timings | None = None
    precision: str = ""
    batch_images: int = 0
    method: str = ""
    path: str = ""
    route: str = ""
    caller: str = ""
    task: str = ""
    model: str = ""
    given_id: str = ""
    given_model: str = ""
    predicts: bool = False
    outcome: str = ""
    status: int | str | None = None
    failed: bool = False
    request_bytes: int = 0
    reply_bytes: int = 0
    held_bytes: int = 0
    span: Span | None = None
    total_s: float | None = None
    _token: Token[str] | None = None
    _within: AbstractContextManager[None] | None = None

    def __enter__(self) -> Self:
        self._token = request_id.set(self.request_id)
        if self.span is not None:
            self._within = within(self.span)
            self._within.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self.outcome:
            self.outcome = code_of(error)
            if self.status == "OK":
                self.status = "CANCELLED" if self.outcome == CANCELLED else "UNKNOWN"
        try:
            total_s = self.finish() if self.total_s is None else self.total_s
            if self.event:
                self._write(total_s)
            if self.span is not None:
                self._end_span(self.span)
        finally:
            if self._token is not None:
                request_id.reset(self._token)
            if self._within is not None:
                self._within.__exit__(kind, error, trace)

    def answered_by(self, replies: Sequence[Reply[Any]]) -> Timings:
        """Record how the answers were computed: of several each stage's longest time, and the largest batch.

        Returns the times.
        """
        if len(replies) == 1:
            reply = replies[0]
            timings, self.precision, self.batch_images = reply.timings, reply.precision, reply.batch_images
        else:
            timings, self.precision = slowest(reply.timings for reply in replies), precisions(replies)
            self.batch_images = max((reply.batch_images for reply in replies), default=0)
        self.timings = timings
        return timings

    def fail(self, error: ConvMLPError) -> None:
        """The request ends with an error."""
        self.outcome = error.code
        if self.predicts:
            self.log.metrics.count_error(error)
        self.finish()

    def finish(self) -> float:
        """The answer is known and about to be sent: stop the clock and count the request, once. Returns its seconds."""
        if self.total_s is not None:
            return self.total_s
        self.total_s = seconds = time.monotonic() - self.started_s
        if not self.outcome:
            self.outcome = "ok"
        if self.predicts:
            count, durations = self.log.metrics.requests[self.log.transport, self.task, self.model, self.outcome]
            ids = None if self.span is None else self.span.ids
            count.inc(1, ids)
            observed = seconds, None if ids is None else exemplar_of(ids, seconds)
            for duration in durations:
                duration.add(observed)
        return seconds

    def server_timing(self) -> str:
        """The value of the header Server-Timing (W3C), durations in ms, and the size of the batch."""
        text, timings = f"total;dur={self.finish() * 1000:.2f}", self.timings
        if timings is not None:
            text = (
                f"decode;dur={timings.decode * 1000:.2f}, queue;dur={timings.queue * 1000:.2f}, "
                f"infer;dur={timings.infer * 1000:.2f}, post;dur={timings.post * 1000:.2f}, {text}"
            )
        return f"{text}, batch;desc={self.batch_images}" if self.batch_images else text

    def _write(self, total_s: float) -> None:
        line: dict[str, object] = {
            "transport": self.log.transport,
            "method": self.method,
            "path": self.path,
            "caller": self.caller,
            "task": self.task,
            "model": self.model,
            "outcome": self.outcome,
            "status": self.status,
            "request_bytes": self.request_bytes,
            "reply_bytes": self.reply_bytes,
        }
        for name in OPTIONAL_FIELDS:
            if line[name] in ("", None):
                del line[name]
        if (timings := self.timings) is not None:
            for stage in STAGES:
                line[f"{stage}_ms"] = round(getattr(timings, stage) * 1000, 2)
        line["total_ms"] = round(total_s * 1000, 2)
        access_logger.info(self.event, **line)

    def _end_span(self, span: Span) -> None:
        attributes = {
            "convmlp.request_id": self.request_id,
            "convmlp.task": self.task,
            "convmlp.model": self.model,
            "convmlp.outcome": self.outcome,
            "error.type": "" if self.outcome == "ok" else self.outcome,
        }
        span.set({name: value for name, value in attributes.items() if value})
        if isinstance(self.status, int):
            span.set({"http.response.status_code": self.status})
        elif self.status is not None:
            span.set({"rpc.response.status_code": self.status})
        if self.route:
            span.rename(f"{self.method if self.method != '_OTHER' else 'HTTP'} {self.route}")
            span.set({"http.route": self.route})
        # A caller's mistake is no failure of the service.
        span.end(self.outcome if self.failed else "")
