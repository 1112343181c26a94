"""What all transports do alike around `Engine.predict`: errors become values, and requests are counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TypeVar

import structlog

from model.errors import ConvMLPError
from model.types import Result
from service.errors import INTERNAL_DETAIL, Internal, Unavailable
from service.frontend.engine import Engine
from service.frontend.exchange import Exchange
from service.metrics import FrontEndMetrics
from service.types import PredictRequest, Reply

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
    metrics: FrontEndMetrics, transport: str, task: str, exchange: Exchange, left: type[BaseException] | None = None
) -> AbstractContextManager[Callable[[str], None]]:
    """Count the request that is answered within; an error is its outcome.

    Call the given function with the model's name once it is known to exist: names are labels. `exchange` gets to know
    all that is counted; `left` is what the transport raises where the caller went away.
    """
    return _Counted(metrics, transport, task, exchange, left)


class _Counted:
    __slots__ = ("_exchange", "_left", "_metrics", "_model", "_task", "_transport")

    def __init__(
        self,
        metrics: FrontEndMetrics,
        transport: str,
        task: str,
        exchange: Exchange,
        left: type[BaseException] | None,
    ) -> None:
        self._metrics = metrics
        self._transport = transport
        self._task = task
        self._exchange = exchange
        self._left = left
        self._model = ""

    def __enter__(self) -> Callable[[str], None]:
        return self._count_for

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome = "ok" if error is None else self._outcome_of(error)
        exchange = self._exchange
        exchange.task, exchange.model, exchange.outcome = self._task, self._model, outcome
        seconds = time.monotonic() - exchange.started_s
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
