"""A front-end's workers as if they were one: each job goes to the one with the least to do."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Protocol

from model.types import ModelInput, QueryParams
from service.errors import RetryLater, Unavailable, too_late
from service.types import ModelStatus, Readiness, StoredModel
from service.wire.broadcast import broadcast_list, broadcast_load, broadcast_unload
from service.wire.forecast import Kind
from service.wire.worker_client import WorkerAnswer, WorkerClient
from service.wire.worker_view import merge_models, merge_readiness


class Listener(Protocol):
    """Who is told what becomes of the workers."""

    def workers_up(self, up: int, of: int) -> None:
        """So many workers answer now, of so many that there should be."""

    def worker_replaced(self) -> None:
        """A worker took another one's place."""

    def resent(self, reason: str) -> None:
        """A job goes to a second worker, for what happened at the first: the code of its error."""


class WorkerPool:
    """Use as an async context manager. Talks to the workers at `addresses`, which should serve the same models."""

    def __init__(self, addresses: Sequence[str], heartbeat_s: float, timeout_s: float, listener: Listener) -> None:
        self._channels = tuple(
            WorkerClient(one, heartbeat_s, timeout_s, self._changed, listener.worker_replaced) for one in addresses
        )
        self._listener = listener
        self._change = asyncio.Event()
        self._models: tuple[ModelStatus, ...] | None = None
        self._able: dict[str, tuple[WorkerClient, ...]] = {}
        self._open = contextlib.AsyncExitStack()
        self._closing = False

    async def __aenter__(self) -> WorkerPool:
        async with contextlib.AsyncExitStack() as stack:
            for channel in self._channels:
                await stack.enter_async_context(channel)
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        await self._open.aclose()

    def prepare(self, model: ModelStatus, deadline_s: float) -> Kind:
        """A job is being prepared from now on, until `prepared` of what this gives.

        Raises:
            Overloaded: by what is known here no worker would answer it before its deadline: there is no use in
                preparing it.
        """
        left_s = deadline_s - time.monotonic()
        able = self._able_to(model.version) if left_s > 0 else ()
        if not able:  # `predict` says what is wrong
            kind = Kind(time.monotonic)
        else:
            kind = min([channel.kind(model.version, left_s) for channel in able], key=Kind.expected_s)
            expected_s = kind.expected_s()
            if expected_s > left_s:
                raise too_late(expected_s, expected_s)
        kind.prepare()
        return kind

    async def predict(
        self, request_id: str, model: ModelStatus, model_input: ModelInput, params: QueryParams, deadline_s: float
    ) -> WorkerAnswer:
        """Have one input answered. Cancelling the call, or its deadline, withdraws the job from its worker.

        `model` is one of `models`: what the input was prepared for. A worker that is lost with the job, or refuses it
        for the time being, costs nothing where another one is ready: it gets the job, once.

        Raises:
            DeadlineExceeded: there was no answer in time.
            Unavailable: there is no worker, or it was lost meanwhile, or the model was replaced.
            Overloaded: two workers refused the job, or the only one; with the shorter time to come back.
            ModelNotFound, Internal, ...: what the worker answered.
        """
        name, version = model.config.name, model.version
        # Where no worker is ready for it, one that knows the model says why.
        able = self._able_to(version) or [channel for channel in self._channels if channel.knows(version)]
        if not able:
            raise Unavailable(f"model {name!r} was replaced while this request was on its way; send it again")
        job = (request_id, name, version, model_input, params, deadline_s)
        first = _least_busy(able)
        try:
            return await first.predict(*job)
        except RetryLater as refusal:
            others = [channel for channel in self._able_to(version) if channel is not first]
            if not others or self._closing:
                raise
            self._listener.resent(refusal.code)
            try:
                return await _least_busy(others).predict(*job)
            except RetryLater as again:
                raise min(refusal, again, key=lambda error: error.retry_after_s) from None

    async def repository(self, deadline_s: float) -> tuple[StoredModel, ...]:
        """What the workers have on disk or serve. Raises as `load`."""
        return await broadcast_list(self._channels, deadline_s)

    async def load(self, model: str, deadline_s: float) -> None:
        """Have a model served by every worker; `models` knows it when this returns.

        Where one of them cannot, those that did not have it before let it go again.

        Raises:
            DeadlineExceeded: it was not done in time.
            Unavailable: a worker is not there, or was lost meanwhile.
            ModelNotFound, Forbidden, Overloaded, Internal: what a worker answered.
        """
        await broadcast_load(self._channels, model, deadline_s)

    async def unload(self, model: str, deadline_s: float) -> None:
        """Have a model served by no worker any more; what has begun is done to its end. Raises as `load`."""
        await broadcast_unload(self._channels, model, deadline_s)

    async def introduced(self) -> None:
        """Wait until every worker has said for the first time how it is."""
        await asyncio.gather(*(channel.introduced() for channel in self._channels))

    def next_change(self) -> asyncio.Event:
        """What is set as soon as `models` or `readiness` say something else than now."""
        return self._change

    def models(self) -> tuple[ModelStatus, ...] | None:
        """What the workers serve, or served before they were lost; None while that is not known."""
        return self._models

    def readiness(self) -> Readiness:
        """Whether every model that the workers serve has proven itself on one of them."""
        return merge_readiness([channel.view() for channel in self._channels])

    def retry_after_s(self) -> float:
        """Seconds until the first of the workers will have answered what it has in line."""
        times = [view.retry_after_s for channel in self._channels if (view := channel.view()).phase is not None]
        return min(times, default=1.0)

    def _changed(self) -> None:
        views = [channel.view() for channel in self._channels]
        self._models = merge_models(views)
        self._able.clear()
        self._listener.workers_up(sum(view.phase is not None for view in views), len(views))
        self._change.set()
        self._change = asyncio.Event()

    def _able_to(self, version: str) -> tuple[WorkerClient, ...]:
        """Those that are ready to answer for a version; kept until something changes."""
        able = self._able.get(version)
        if able is None:
            able = tuple(channel for channel in self._channels if channel.view().has_ready(version))
            self._able[version] = able
        return able


def _least_busy(channels: Sequence[WorkerClient]) -> WorkerClient:
    """The one with the least outstanding work.

    What this front-end has in hand counts first: it is known to the moment, and a busy worker, whoever keeps it busy,
    is slow to give it back. What the workers told of last is old by up to a heartbeat; added to the rest it makes
    front-ends chase each other, so that it only decides between equals, and chance between what is equal still.
    """
    if len(channels) == 1:
        return channels[0]
    return min(channels, key=lambda channel: (*channel.outstanding(), random.random()))
