"""What is asked of all workers alike: which models there are, to serve one, to serve it no more.

Each worker does such a thing wholly or not at all; here is what becomes of it where some do and some do not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import structlog

from model.errors import ConvMLPError
from service.errors import ModelNotFound, RetryLater, Unavailable, error_from_code
from service.types import StoredModel
from service.wire.messages import Phase
from service.wire.worker_client import WorkerClient
from service.wire.worker_view import merge_stores

LET_GO_TIMEOUT_S = 30.0
"""What letting go of a model may take where it comes after the caller's own time."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


async def broadcast_list(channels: Sequence[WorkerClient], deadline_s: float) -> tuple[StoredModel, ...]:
    """What the workers that are there have on disk or serve. Raises as `broadcast_load` where none of them answers."""
    there = [channel for channel in channels if channel.phase is not None] or channels
    stores, failed = await _each(there, lambda channel: channel.repository(deadline_s))
    if not stores:
        raise next(iter(failed.values()))
    return merge_stores(stores.values())


async def broadcast_load(channels: Sequence[WorkerClient], model: str, deadline_s: float) -> None:
    """Have a model served by every worker. Where one of them cannot, or the caller leaves, those that did not have it
    before let it go again; those that had another version keep the new one.

    Raises:
        DeadlineExceeded: it was not done in time.
        Unavailable: a worker is not there, or was lost meanwhile.
        ModelNotFound, Forbidden, Overloaded, Internal: what a worker answered.
    """
    _check_all_at_work(channels)
    without = [channel for channel in channels if not _serves(channel, model)]
    try:
        done, failed = await _each(channels, lambda channel: channel.load(model, deadline_s))
    except asyncio.CancelledError:
        if len(channels) > 1:  # one alone has done it or not; of several some may have
            await _let_go(without, model)
        raise
    if not failed:
        return
    if not done:
        raise next(iter(failed.values()))
    await _let_go(without, model)
    kept = [channel for channel in done if channel not in without]
    outcome = f"{len(kept)} of the others serve it" if kept else "the others let it go again"
    raise _of_some(failed, channels, outcome)


async def broadcast_unload(channels: Sequence[WorkerClient], model: str, deadline_s: float) -> None:
    """Have a model served by no worker any more. Raises as `broadcast_load`; ModelNotFound: none served it."""
    _check_all_at_work(channels)
    try:
        done, failed = await _each(channels, lambda channel: channel.unload(model, deadline_s))
    except asyncio.CancelledError:
        if len(channels) > 1:  # some may have begun, and what has begun is done to its end
            await _let_go(channels, model)
        raise
    remain = {channel: error for channel, error in failed.items() if not isinstance(error, ModelNotFound)}
    if not done and failed:
        raise next(iter((remain or failed).values()))
    if remain:
        raise _of_some(remain, channels, "the others let it go; unload it again")


def _check_all_at_work(channels: Sequence[WorkerClient]) -> None:
    """Raises Unavailable: of several a worker that is not there would come back with other models than the rest."""
    missing = [view for view in (channel.view() for channel in channels) if view.phase is not Phase.READY]
    if missing and len(channels) > 1:  # one alone says itself how it is
        raise Unavailable(
            f"models are loaded and unloaded when all workers are there; {len(missing)} of {len(channels)} are not: "
            f"{missing[0].reason}",
            missing[0].retry_after_s,
        )


def _serves(channel: WorkerClient, model: str) -> bool:
    return any(offer.config.name == model for offer in channel.view().offers or ())


async def _let_go(channels: Sequence[WorkerClient], model: str) -> None:
    deadline_s = time.monotonic() + LET_GO_TIMEOUT_S
    _, failed = await _each(channels, lambda channel: channel.unload(model, deadline_s))
    for error in failed.values():
        if not isinstance(error, ModelNotFound):
            log.error("a model is left on some workers only", model=model, error=error.detail)


async def _each(
    channels: Sequence[WorkerClient], ask: Callable[[WorkerClient], Awaitable[T]]
) -> tuple[dict[WorkerClient, T], dict[WorkerClient, ConvMLPError]]:
    """Ask all of them at once, and wait for all: the answers, and the errors."""
    results = await asyncio.gather(*map(ask, channels), return_exceptions=True)
    answers: dict[WorkerClient, T] = {}
    failed: dict[WorkerClient, ConvMLPError] = {}
    for channel, result in zip(channels, results, strict=True):
        if isinstance(result, ConvMLPError):
            failed[channel] = result
        elif isinstance(result, BaseException):
            raise result
        else:
            answers[channel] = result
    return answers, failed


def _of_some(
    failed: Mapping[WorkerClient, ConvMLPError], channels: Sequence[WorkerClient], outcome: str
) -> ConvMLPError:
    """The first of the errors, with what became of the rest."""
    error = next(iter(failed.values()))
    detail = f"{error.detail} (on {len(failed)} of {len(channels)} workers; {outcome})"
    return error_from_code(error.code, detail, error.retry_after_s if isinstance(error, RetryLater) else None)
