"""What all transports do alike around `Engine.predict`: errors become values, and requests are counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def counted(
    metrics: FrontEndMetrics, transport: str, task: str, exchange: Exchange, left: type[BaseException] | None = None
) -> Iterator[Callable[[str], None]]:
    """Count the request that is answered within; an error is its outcome.

    Call the given function with the model's name once it is known to exist: names are labels. `exchange` gets to know
    all that is counted; `left` is what the transport raises where the caller went away.
    """
    model, outcome = "", "ok"

    def count_for(name: str) -> None:
        nonlocal model
        model = name

    try:
        yield count_for
    except ConvMLPError as error:
        outcome = error.code
        metrics.told(error)
        raise
    except asyncio.CancelledError:
        # Where callers leave by `left` only a server cancels, whose time to drain is over; its edge says so.
        outcome = "cancelled" if left is None else Unavailable.code
        raise
    except BaseException as error:
        outcome = "cancelled" if left is not None and isinstance(error, left) else Internal.code
        raise
    finally:
        exchange.task, exchange.model, exchange.outcome = task, model, outcome
        metrics.request(transport, task, model, outcome, time.monotonic() - exchange.started_s)
