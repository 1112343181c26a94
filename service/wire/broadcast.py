"""Requests about models that go to all workers: list, load, unload, split.

Each worker completes such a request or changes nothing. These functions handle the case that some workers complete it
and others do not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import structlog

from model.errors import ConvMLPError
from service.errors import ModelNotFound, RetryLater, Unavailable, error_from_code
from service.traffic_split import TrafficSplit
from service.types import StoredModel
from service.wire.messages import Load, Phase, SetSplit, Unload
from service.wire.worker_client import WorkerClient
from service.wire.worker_view import merge_stores

ROLLBACK_TIMEOUT_S = 30.0
"""How long unloading a model may take after the caller's deadline."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


async def broadcast_list(clients: Sequence[WorkerClient], deadline_s: float) -> tuple[StoredModel, ...]:
    """The models that the present workers have on disk or serve. Raises as `broadcast_load` where none answers."""
    present = [client for client in clients if client.phase is not None] or clients
    stores, failed = await _call_all(present, lambda client: client.repository(deadline_s))
    if not stores:
        raise next(iter(failed.values()))
    return merge_stores(stores.values())


async def broadcast_load(clients: Sequence[WorkerClient], model: str, deadline_s: float) -> None:
    """Load a model on every worker.

    Where a worker cannot, or the call is cancelled, the workers that did not serve the model before unload it again.
    Those that served another version keep the new one.

    Raises:
        DeadlineExceeded: it was not done in time.
        Unavailable: a worker is missing, or was lost meanwhile.
        ModelNotFound, ModelInvalid, Forbidden, Overloaded, Internal: what a worker answered.
    """
    _check_all_up(clients)
    without = [client for client in clients if not _serves(client, model)]
    try:
        done, failed = await _call_all(clients, lambda client: client.change(partial(Load, model=model), deadline_s))
    except asyncio.CancelledError:
        if len(clients) > 1:  # a single worker changed everything or nothing
            await _unload_all(without, model)
        raise
    if not failed:
        return
    if not done:
        raise next(iter(failed.values()))
    await _unload_all(without, model)
    kept = [client for client in done if client not in without]
    outcome = f"{len(kept)} of the others serve it" if kept else "the others unloaded it again"
    raise _partial_failure(failed, clients, outcome)


async def broadcast_unload(clients: Sequence[WorkerClient], model: str, deadline_s: float) -> None:
    """Unload a model on every worker. Raises as `broadcast_load`; ModelNotFound: no worker served it."""
    _check_all_up(clients)
    try:
        done, failed = await _call_all(clients, lambda client: client.change(partial(Unload, model=model), deadline_s))
    except asyncio.CancelledError:
        if len(clients) > 1:  # some workers may have started, and an unload that has started is completed
            await _unload_all(clients, model)
        raise
    remain = {client: error for client, error in failed.items() if not isinstance(error, ModelNotFound)}
    if not done and failed:
        raise next(iter((remain or failed).values()))
    if remain:
        raise _partial_failure(remain, clients, "the others unloaded it; unload it again")


async def broadcast_split(clients: Sequence[WorkerClient], model: str, split: TrafficSplit, deadline_s: float) -> None:
    """Replace a name's split on every worker. Raises as `broadcast_load`, and BadParameter.

    Where a worker cannot, or the call is cancelled, the others get the split back that they had.
    """
    _check_all_up(clients)
    before = {client: client.view().splits.get(model, {}) for client in clients}
    try:
        done, failed = await _call_all(
            clients, lambda client: client.change(partial(SetSplit, model=model, split=dict(split)), deadline_s)
        )
    except asyncio.CancelledError:
        if len(clients) > 1:
            await _restore_splits(before, model)
        raise
    if not failed:
        return
    if not done:
        raise next(iter(failed.values()))
    await _restore_splits({client: before[client] for client in done}, model)
    raise _partial_failure(failed, clients, "the others have the split that they had")


async def _restore_splits(before: Mapping[WorkerClient, TrafficSplit], model: str) -> None:
    deadline_s = time.monotonic() + ROLLBACK_TIMEOUT_S
    _, failed = await _call_all(
        list(before),
        lambda client: client.change(partial(SetSplit, model=model, split=dict(before[client])), deadline_s),
    )
    for error in failed.values():
        log.error("a split is left on some of the workers", model=model, error=error.detail)


def _check_all_up(clients: Sequence[WorkerClient]) -> None:
    """Raises Unavailable: a missing worker would come back with other models than the others."""
    missing = [view for view in (client.view() for client in clients) if view.phase is not Phase.READY]
    if missing and len(clients) > 1:  # a single worker gives its own reason
        raise Unavailable(
            f"models are changed only while all workers are up; {len(missing)} of {len(clients)} are not: "
            f"{missing[0].reason}",
            missing[0].retry_after_s,
        )


def _serves(client: WorkerClient, model: str) -> bool:
    return any(served.config.name == model for served in client.view().models or ())


async def _unload_all(clients: Sequence[WorkerClient], model: str) -> None:
    deadline_s = time.monotonic() + ROLLBACK_TIMEOUT_S
    _, failed = await _call_all(clients, lambda client: client.change(partial(Unload, model=model), deadline_s))
    for error in failed.values():
        if not isinstance(error, ModelNotFound):
            log.error("a model is left on some of the workers", model=model, error=error.detail)


async def _call_all(
    clients: Sequence[WorkerClient], call: Callable[[WorkerClient], Awaitable[T]]
) -> tuple[dict[WorkerClient, T], dict[WorkerClient, ConvMLPError]]:
    """Call all workers at once and wait for all of them: the answers, and the errors."""
    results = await asyncio.gather(*map(call, clients), return_exceptions=True)
    answers: dict[WorkerClient, T] = {}
    failed: dict[WorkerClient, ConvMLPError] = {}
    for client, result in zip(clients, results, strict=True):
        if isinstance(result, ConvMLPError):
            failed[client] = result
        elif isinstance(result, BaseException):
            raise result
        else:
            answers[client] = result
    return answers, failed


def _partial_failure(
    failed: Mapping[WorkerClient, ConvMLPError], clients: Sequence[WorkerClient], outcome: str
) -> ConvMLPError:
    """The first of the errors, with the outcome on the other workers."""
    error = next(iter(failed.values()))
    detail = f"{error.detail} (on {len(failed)} of {len(clients)} workers; {outcome})"
    return error_from_code(error.code, detail, error.retry_after_s if isinstance(error, RetryLater) else None)
