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
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

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


@dataclass(slots=True)
class RequestRecord:
    """One request, or one message of a stream. Use as a context manager around all work for it.

    `started_s` is on the clock of `time.monotonic`. `event` names the access log's line; without it there is none.
    `method` is HTTP's, or gRPC's `package.Service/Method`; `path` and its `route` are HTTP's; `status` is the
    transport's. `given_id` and `given_model` are those in a gRPC message. `predicts`: the metrics count it. `outcome`
    is `ok`, `cancelled` or a domain error's code; `failed`: the service is to blame for it. `span` is None where the
    request is not traced. `precision`: what the network computed in. `batch_images`: the batch's size, the largest
    of several. `held_bytes` is the request's part of the engine's `ByteBudget`. `durations_ms` has each stage's time
    and the `total`, once the outcome is known.
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
    durations_ms: dict[str, float] | None = None
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
            durations_ms = self.durations_ms or self.finish()
            if self.event:
                self._write(durations_ms)
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

    def finish(self) -> dict[str, float]:
        """The answer is known and about to be sent: stop the clock and count the request, once.

        Returns the milliseconds by stage, and their `total`; with several images each stage is its slowest image's.
        """
        if self.durations_ms is not None:
            return self.durations_ms
        seconds = time.monotonic() - self.started_s
        timings = self.timings
        self.durations_ms = durations_ms = (
            {}
            if timings is None
            else {
                "decode": timings.decode * 1000,
                "queue": timings.queue * 1000,
                "infer": timings.infer * 1000,
                "post": timings.post * 1000,
            }
        )
        durations_ms["total"] = seconds * 1000
        if not self.outcome:
            self.outcome = "ok"
        if self.predicts:
            count, durations = self.log.metrics.requests[self.log.transport, self.task, self.model, self.outcome]
            ids = None if self.span is None else self.span.ids
            count.inc(1, ids)
            observed = seconds, None if ids is None else exemplar_of(ids, seconds)
            for duration in durations:
                duration.add(observed)
        return durations_ms

    def server_timing(self) -> str:
        """The value of the header Server-Timing (W3C), durations in ms, and the size of the batch."""
        entries = ""
        for stage, value in self.finish().items():
            entries += f"{stage};dur={value:.2f}, "
        return f"{entries}batch;desc={self.batch_images}" if self.batch_images else entries[:-2]

    def _write(self, durations_ms: dict[str, float]) -> None:
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
        for stage, value in durations_ms.items():
            line[f"{stage}_ms"] = round(value, 2)
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
