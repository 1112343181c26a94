"""A front-end's workers as one: each job goes to the worker with the least outstanding work among those with its model.

Workers may serve different models, and may come and go.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog

from model.model_name import base_name
from model.types import ModelInput, QueryParams, Task
from service.errors import RetryLater, Unavailable, too_late
from service.traffic_split import TrafficSplit
from service.types import ModelStatus, Readiness, StoredModel
from service.wire.broadcast import broadcast_list, broadcast_load, broadcast_split, broadcast_unload
from service.wire.curve import PLAIN, WireOptions
from service.wire.messages import Phase
from service.wire.version_routes import Route
from service.wire.worker_client import WaitForecast, WorkerClient
from service.wire.worker_view import FIRST_RETRY_S, NO_MEMBER, WorkerAnswer, merge_models, merge_readiness, merge_routes

MAX_WORKERS = 1024
"""Of one pool. As many front-ends fit at a worker."""
DRAIN_INTERVAL_S = 0.05
"""Between two looks whether a removed worker still has jobs."""

log = structlog.get_logger(__name__)


class Listener(Protocol):
    """Called back for events of the workers."""

    def workers_up(self, up: int, total: int) -> None:
        """`up` of the `total` workers answer now."""

    def worker_replaced(self) -> None:
        """Another worker process took the place of one."""

    def resent(self, reason: str) -> None:
        """A job is sent to a second worker. `reason`: the error code of the first."""


class WorkerPool:
    """Use as an async context manager. Talks to the workers at `addresses`, and to those that are added later.

    `max_workers` bounds those that are added.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        heartbeat_s: float,
        timeout_s: float,
        listener: Listener,
        options: WireOptions = PLAIN,
        max_workers: int = MAX_WORKERS,
    ) -> None:
        self._max_workers = max_workers
        self._heartbeat_s = heartbeat_s
        self._timeout_s = timeout_s
        self._options = options
        self._listener = listener
        self._members = {address: self._make_client(address) for address in addresses}
        self._clients = tuple(self._members.values())
        self._drains: set[asyncio.Task[None]] = set()
        """Of removed workers."""
        self._change = asyncio.Event()
        self.models: tuple[ModelStatus, ...] | None = None
        """The models that the workers serve, or served before they were lost; None while that is not known."""
        self.routes: Mapping[str, Route] = {}
        """By what requests may name: a model's name, or one of its versions."""
        self.default_routes: Mapping[Task, Route] = {}
        """Those of requests that name no model."""
        self._ready: dict[str, tuple[WorkerClient, ...]] = {}
        self._closing = False

    async def __aenter__(self) -> WorkerPool:
        async with contextlib.AsyncExitStack() as stack:
            for client in self._clients:
                await stack.enter_async_context(client)
            stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True  # drains end at their next look
        closing = [client.__aexit__() for client in self._clients]
        for result in await asyncio.gather(*closing, *self._drains, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    @property
    def addresses(self) -> frozenset[str]:
        """Of the workers that may get jobs."""
        return frozenset(self._members)

    @property
    def ready_addresses(self) -> frozenset[str]:
        """Of the workers that get jobs now."""
        return frozenset(address for address, client in self._members.items() if client.phase is Phase.READY)

    async def add(self, address: str) -> None:
        """Take in the worker at an address; it gets jobs once it has reported a model that is ready.

        Raises:
            ValueError: the pool has as many as it may have, those that drain included.
        """
        if address in self._members or self._closing:
            return
        if len(self._members) + len(self._drains) >= self._max_workers:
            raise ValueError(f"a front-end talks to at most {self._max_workers} workers; {address} is one more")
        client = self._members[address] = self._make_client(address)
        await client.__aenter__()
        self._clients = (*self._clients, client)
        self._changed()

    def remove(self, address: str, drain_s: float) -> None:
        """Send a worker no more jobs. Those that it has may take `drain_s` seconds; the rest then goes to others."""
        client = self._members.pop(address, None)
        if client is None or self._closing:
            return
        self._clients = tuple(other for other in self._clients if other is not client)
        drain = asyncio.create_task(self._drain(client, drain_s), name="worker-drain")
        self._drains.add(drain)
        drain.add_done_callback(self._drains.discard)
        self._changed()

    def reserve(
        self, model: ModelStatus, deadline_s: float, ready_s: float = 0.0, encoding_s: float = 0.0, images: int = 1
    ) -> WaitForecast:
        """Reserve slots for a request whose picture is being prepared; call `.prepared(images)` when decoding ends.

        `ready_s`: the expected seconds until a worker that has nothing else to do has answered; 0 if not known.
        `encoding_s`: those that encoding the answer takes then. `images`: so many are sent for it.

        Raises:
            Overloaded: the answer is expected after the deadline on every worker, so decoding would be wasted.
        """
        left_s = deadline_s - time.monotonic()
        workers = self._ready.get(model.version) or self._ready_for(model.version)
        if not workers or left_s <= 0:  # `predict` raises the right error
            reservation = WaitForecast()
        else:
            reservation = workers[0].forecast(model.version)
            expected_s = reservation.expected_s(left_s, images)
            for worker in workers[1:]:
                other = worker.forecast(model.version)
                if (other_s := other.expected_s(left_s, images)) < expected_s:
                    reservation, expected_s = other, other_s
            # A worker goes on with what it has while the picture is decoded.
            expected_s = max(expected_s, ready_s)
            if expected_s > max(left_s - encoding_s, 0.0):
                expected_s += encoding_s
                raise too_late(expected_s, expected_s)
        reservation.reserve(images)
        return reservation

    async def predict(
        self, request_id: str, model: ModelStatus, model_input: ModelInput, params: QueryParams, deadline_s: float
    ) -> WorkerAnswer:
        """Run one input on a worker. Cancelling the call, or its deadline, cancels the job at its worker.

        `model` is one of `models`: the input was prepared for it. A job whose worker is lost, or refuses it for now, is
        sent once more where another worker is ready.

        Raises:
            DeadlineExceeded: no answer came in time.
            Unavailable: there is no worker, or it was lost meanwhile, or the model was replaced.
            Overloaded: two workers refused the job, or the only one; with the shorter Retry-After.
            ModelNotFound, Internal, ...: what the worker answered.
        """
        name, version = model.config.name, model.version
        # Where no worker is ready for the version, one that knows it answers with the reason.
        workers = (
            self._ready.get(version)
            or self._ready_for(version)
            or [client for client in self._clients if client.knows(version)]
        )
        if not workers:
            raise Unavailable(f"model {name!r} was replaced during this request; send it again")
        job = (request_id, name, version, model_input, params, deadline_s)
        first = workers[0] if len(workers) == 1 else _least_busy(workers)
        try:
            return await first.predict(*job)
        except RetryLater as refusal:
            others = [client for client in self._ready_for(version) if client is not first]
            if not others or self._closing:
                raise
            self._listener.resent(refusal.code)
            try:
                return await _least_busy(others).predict(*job)
            except RetryLater as again:
                raise min(refusal, again, key=lambda error: error.retry_after_s) from None

    async def repository(self, deadline_s: float) -> tuple[StoredModel, ...]:
        """The models that the workers have on disk or serve. Raises as `load`."""
        return await broadcast_list(self._some_clients(), deadline_s)

    async def load(self, model: str, deadline_s: float) -> None:
        """Load a model on every worker; `models` includes it when this returns.

        Where one of them cannot, those that did not serve it before unload it again.

        Raises:
            DeadlineExceeded: it was not done in time.
            Unavailable: a worker is missing, or was lost meanwhile.
            ModelNotFound, Forbidden, Overloaded, Internal: what a worker answered.
        """
        await broadcast_load(self._some_clients(), model, deadline_s)

    async def unload(self, model: str, deadline_s: float) -> None:
        """Unload a model on every worker; an unload that has started is completed. Raises as `load`."""
        await broadcast_unload(self._some_clients(), model, deadline_s)

    async def set_split(self, model: str, split: TrafficSplit, deadline_s: float) -> None:
        """Replace a name's split on every worker, or on none; `routes` has it when this returns. Raises as `load`."""
        await broadcast_split(self._some_clients(), model, split, deadline_s)

    async def wait_for_state(self) -> None:
        """Wait until every worker has sent its first State."""
        await asyncio.gather(*(client.wait_for_state() for client in self._clients))

    def next_change(self) -> asyncio.Event:
        """An event that is set at the next change of `models` or `readiness`."""
        return self._change

    def readiness(self) -> Readiness:
        """Whether every served model is ready on at least one worker."""
        return merge_readiness([client.view() for client in self._clients])

    def retry_after_s(self) -> float:
        """Seconds until the first of the workers has finished everything that it runs or queues, as reported last."""
        times = [view.retry_after_s for client in self._clients if (view := client.view()).phase is not None]
        return min(times, default=1.0)

    def _make_client(self, address: str) -> WorkerClient:
        return WorkerClient(
            address, self._heartbeat_s, self._timeout_s, self._changed, self._listener.worker_replaced, self._options
        )

    async def _drain(self, client: WorkerClient, drain_s: float) -> None:
        """Close a client once its jobs are answered, or after so many seconds: callers then send the rest to others."""
        for _ in range(math.ceil(drain_s / DRAIN_INTERVAL_S)):
            if self._closing or not client.outstanding()[0]:
                break
            await asyncio.sleep(DRAIN_INTERVAL_S)
        await client.__aexit__()

    def _some_clients(self) -> Sequence[WorkerClient]:
        """All clients. Raises Unavailable: there is none."""
        if not self._clients:
            raise Unavailable(NO_MEMBER, FIRST_RETRY_S)
        return self._clients

    def _changed(self) -> None:
        views = [client.view() for client in self._clients]
        self.models = merge_models(views)
        self._set_routes(merge_routes(views))
        self._ready.clear()
        self._listener.workers_up(sum(view.phase is not None for view in views), len(views))
        self._change.set()
        self._change = asyncio.Event()

    def _set_routes(self, routes: Mapping[str, Route]) -> None:
        defaults: dict[Task, Route] = {}
        for model in self.models or ():
            defaults.setdefault(model.config.task, routes[base_name(model.config.name)])
        before, self.routes, self.default_routes = self.routes, routes, defaults
        for name, route in routes.items():
            was_unready = before[name].unready if name in before else ()
            if route.unready and route.ready and route.unready != was_unready:
                log.warning(
                    "versions are not ready; their share goes to the others", model=name, versions=route.unready
                )
            elif was_unready and not route.unready:
                log.info("all versions are ready and have their shares", model=name)

    def _ready_for(self, version: str) -> tuple[WorkerClient, ...]:
        """The workers that are ready to answer for a version; cached until something changes."""
        ready = self._ready.get(version)
        if ready is None:
            ready = tuple(client for client in self._clients if client.view().has_ready(version))
            self._ready[version] = ready
        return ready


def _least_busy(clients: Sequence[WorkerClient]) -> WorkerClient:
    """The worker with the least outstanding work.

    What this front-end sent and has no answer for counts first: it is known exactly, and a worker that is busy for any
    reason answers late. The worker's own backlog is up to a heartbeat old. Added to the rest it makes all front-ends
    move from worker to worker together, so it decides only between equals, and chance between equals of that.
    """
    if len(clients) == 1:
        return clients[0]
    return min(clients, key=lambda client: (*client.outstanding(), random.random()))
