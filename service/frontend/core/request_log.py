"""One request and its answer, over any transport: its id, its clock, where its time went, and what became of it.

What is told of each request, whatever brought it: a span where it is traced, and a line in the log.

What all transports do alike around `Engine.predict`: errors become values, and requests are counted.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from contextvars import Token
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

import structlog

from model.errors import ConvMLPError
from model.types import Result
from service.errors import INTERNAL_DETAIL, Internal, Unavailable
from service.frontend.core.engine import Engine
from service.observability.logs import request_id
from service.observability.metrics import FrontEndMetrics
from service.observability.tracing import (
    NO_SPAN,
    Attributes,
    Span,
    TraceContext,
    Tracing,
    code_of,
    current_span,
    within,
)
from service.types import PredictRequest, Reply, Timings

SANE_ID = re.compile(r"[\x20-\x7e]{1,128}")
"""A caller's id that may stand in logs and headers."""
STAGES = ("decode", "queue", "infer", "post")

_ids = random.Random()  # an id has to be another one, not a secret: the system's random numbers cost a call to it


def slowest(timings: Iterable[Timings]) -> Timings:
    """Each stage's longest; 0 where there is none."""
    every = tuple(timings)
    return Timings(*(max((getattr(one, stage) for one in every), default=0.0) for stage in STAGES))


@dataclass(slots=True)
class RequestRecord:
    """`started_s` is on the clock of `time.monotonic`. All else is filled in by whoever comes to know it.

    `method` is HTTP's, or gRPC's `package.Service/Method`; `path` and the `route` that it goes are HTTP's; `status` is
    what the transport says;
    `outcome` is `ok`, `cancelled` or a domain error's code; `failed`: it is the service that is to blame.
    """

    request_id: str
    started_s: float
    timings: Timings | None = None
    method: str = ""
    path: str = ""
    route: str = ""
    caller: str = ""
    task: str = ""
    model: str = ""
    outcome: str = ""
    status: int | str | None = None
    failed: bool = False
    request_bytes: int = 0
    reply_bytes: int = 0

    @classmethod
    def begin(cls, given_id: str) -> Self:
        """A request that came now, by its caller's id if that is sane, else by a new one."""
        sane = given_id and SANE_ID.fullmatch(given_id)
        return cls(given_id if sane else f"{_ids.getrandbits(128):032x}", time.monotonic())

    def durations_ms(self) -> dict[str, float]:
        """By stage, in ms, and their `total` until now; with several images each stage is its slowest image's."""
        durations = {} if self.timings is None else {stage: getattr(self.timings, stage) * 1000 for stage in STAGES}
        durations["total"] = (time.monotonic() - self.started_s) * 1000
        return durations

    def server_timing(self) -> str:
        """The value of the header Server-Timing (W3C), durations in ms."""
        return ", ".join([f"{stage};dur={value:.2f}" for stage, value in self.durations_ms().items()])


access_logger = structlog.get_logger("access")


class RequestLog:
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
        record: RequestRecord,
        name: str,
        caller_context: Callable[[], TraceContext],
        attributes: Attributes,
        *,
        probe: bool = False,
    ) -> AbstractContextManager[Span]:
        """Whatever is done for a request is done within. Nothing is told of a probe."""
        span = self._tracing.request(name, caller_context(), attributes) if self.traces and not probe else NO_SPAN
        return _RequestSpan(record, span, self._transport, "request" if self._access_log and not probe else "")

    def message(self, record: RequestRecord) -> AbstractContextManager[Span]:
        """The same for one message of a stream, within its call's request."""
        return _RequestSpan(
            record, current_span().begin("message"), self._transport, "message" if self._access_log else ""
        )


class _RequestSpan:
    """Within it a request is done; `event` is the log line's, empty where there is none.

    No generator, which costs as much as all else here for a request that is neither traced nor logged.
    """

    __slots__ = ("_before", "_event", "_exchange", "_span", "_transport", "_within")

    def __init__(self, record: RequestRecord, span: Span, transport: str, event: str) -> None:
        self._exchange = record
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
        record = self._exchange
        try:
            if not record.outcome:
                record.outcome = "ok" if error is None else code_of(error)
            if self._span.recording:
                _finish(self._span, record)
            if self._event:
                access_logger.info(self._event, **_line(self._transport, record))
        finally:
            if self._before is not None:
                request_id.reset(self._before)
            if self._within is not None:
                self._within.__exit__(kind, error, trace)


def _finish(span: Span, record: RequestRecord) -> None:
    about = {
        "convmlp.request_id": record.request_id,
        "convmlp.task": record.task,
        "convmlp.model": record.model,
        "convmlp.outcome": record.outcome,
        "error.type": "" if record.outcome == "ok" else record.outcome,
    }
    span.set({name: value for name, value in about.items() if value})
    # What the caller did wrong is no failure of the service.
    span.end(record.outcome if record.failed else "")


def _line(transport: str, record: RequestRecord) -> dict[str, object]:
    durations = {f"{stage}_ms": round(value, 2) for stage, value in record.durations_ms().items()}
    line = {
        "transport": transport,
        "method": record.method,
        "path": record.path,
        "caller": record.caller,
        "task": record.task,
        "model": record.model,
        "outcome": record.outcome,
        "status": record.status,
        "request_bytes": record.request_bytes,
        "reply_bytes": record.reply_bytes,
    }
    return {**{name: value for name, value in line.items() if value not in ("", None)}, **durations}


T = TypeVar("T")

log = structlog.get_logger(__name__)


async def value_or_error(work: Awaitable[T], **about: str | None) -> T | ConvMLPError:
    """What `work` comes to, or its error. One that nobody expected is logged, with `about`, and becomes Internal."""
    try:
        return await work
    except ConvMLPError as error:
        return error
    except Exception:
        log.exception("unexpected error", **about)
        return Internal(INTERNAL_DETAIL)


async def reply_or_error(
    engine: Engine, request: PredictRequest, encode: Callable[[Result], T], *, draws: bool = False
) -> Reply[T] | ConvMLPError:
    """One image's answer; its errors are returned, so that they cost its neighbours nothing."""
    return await value_or_error(
        engine.predict(request, encode, draws=draws), request_id=request.id, model=request.model
    )


def counted(
    metrics: FrontEndMetrics, transport: str, task: str, record: RequestRecord, left: type[BaseException] | None = None
) -> AbstractContextManager[Callable[[str], None]]:
    """Count the request that is answered within; an error is its outcome.

    Call the given function with the model's name once it is known to exist: names are labels. `record` gets to know
    all that is counted; `left` is what the transport raises where the caller went away.
    """
    return _Counted(metrics, transport, task, record, left)


class _Counted:
    __slots__ = ("_exchange", "_left", "_metrics", "_model", "_task", "_transport")

    def __init__(
        self,
        metrics: FrontEndMetrics,
        transport: str,
        task: str,
        record: RequestRecord,
        left: type[BaseException] | None,
    ) -> None:
        self._metrics = metrics
        self._transport = transport
        self._task = task
        self._exchange = record
        self._left = left
        self._model = ""

    def __enter__(self) -> Callable[[str], None]:
        return self._count_for

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome = "ok" if error is None else self._outcome_of(error)
        record = self._exchange
        record.task, record.model, record.outcome = self._task, self._model, outcome
        seconds = time.monotonic() - record.started_s
        self._metrics.request(self._transport, self._task, self._model, outcome, seconds)

    def _count_for(self, name: str) -> None:
        self._model = name

    def _outcome_of(self, error: BaseException) -> str:
        match error:
            case ConvMLPError():
                self._metrics.told(error)
                return error.code
            case asyncio.CancelledError():
                # Where callers leave by `left` only a server cancels, whose time to drain is over; its edge says so.
                return "cancelled" if self._left is None else Unavailable.code
            case _:
                return "cancelled" if self._left is not None and isinstance(error, self._left) else Internal.code
