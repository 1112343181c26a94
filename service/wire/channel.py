"""A front-end's end of the wire: sends jobs to one worker, hands back its answers, and knows how it is.

The worker is taken for lost as soon as its connection breaks, or when it was silent for `timeout_s`; then all
jobs in hand fail at once. Nothing is sent twice: whether to try again is the caller's decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import structlog
import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from model.bundle import BundleConfig
from model.errors import ConvMLPError
from model.types import ModelInput, QueryParams, RawOutput
from service.errors import DeadlineExceeded, Unavailable, error_from_code
from service.types import ModelStatus, Readiness, StoredModel
from service.wire.catalogue import Catalogue
from service.wire.frames import output_from_frames
from service.wire.messages import (
    PROTOCOL,
    Answer,
    Cancel,
    Failure,
    Hello,
    ListStore,
    Load,
    MalformedMessage,
    Phase,
    Predict,
    State,
    Store,
    ToWorker,
    Unload,
    decode_to_front_end,
    encode,
)

T = TypeVar("T")

HIGH_WATER_MARK = 4096
"""Messages that may wait in a socket; above every bound on jobs in hand, so it is never met in good health."""

NO_WORKER = "there is no worker at the moment; one is being started"
NO_WORKER_RETRY_S = 2.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """One output and the seconds that its job waited and ran."""

    output: RawOutput
    queue_s: float
    infer_s: float


class WorkerChannel:
    """Use as an async context manager. `on_up` hears of every change between up and lost."""

    def __init__(
        self,
        address: str,
        heartbeat_s: float,
        timeout_s: float,
        on_up: Callable[[bool], None],
    ) -> None:
        self._address = address
        self._heartbeat_s = heartbeat_s
        self._timeout_s = timeout_s
        self._on_up = on_up
        self._context = zmq.asyncio.Context()
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[WorkerAnswer]] = {}
        self._stores: dict[int, asyncio.Future[tuple[StoredModel, ...]]] = {}
        self._state: State | None = None
        self._introduced = asyncio.Event()
        self._change = asyncio.Event()
        self._heard_s = 0.0
        self._catalogue = Catalogue()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> WorkerChannel:
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)  # without a connection a send fails instead of waiting in line
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 250)
        self._socket.set_hwm(HIGH_WATER_MARK)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._socket.connect(self._address)
        self._tasks = [
            asyncio.create_task(self._receive(), name="channel-receive"),
            asyncio.create_task(self._watch_connection(), name="channel-watch"),
            asyncio.create_task(self._beat(), name="channel-beat"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_pending("this process is shutting down")
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        self._context.term()

    async def predict(
        self, request_id: str, config: BundleConfig, model_input: ModelInput, params: QueryParams, deadline_s: float
    ) -> WorkerAnswer:
        """Have one input answered. Cancelling the call, or its deadline, withdraws the job from the worker.

        `config` is the model's, from `models`: what the input was prepared by.

        Raises:
            DeadlineExceeded: there was no answer in time.
            Unavailable: there is no worker, or it was lost meanwhile, or the model was replaced.
            ModelNotFound, Overloaded, Internal, ...: what the worker answered.
        """
        version = self._catalogue.version_of(config)
        if version is None:
            raise Unavailable(f"model {config.name!r} was replaced while this request was on its way; send it again")
        height, width, _ = model_input.pixels.shape

        def header(job: int, budget_s: float) -> Predict:
            geometry = model_input.geometry
            return Predict(job, request_id, config.name, version, height, width, geometry, params, budget_s)

        return await self._ask(self._answers, deadline_s, header, model_input.pixels.data)

    async def repository(self, deadline_s: float) -> tuple[StoredModel, ...]:
        """What the worker has on disk or serves. Raises as `load`."""
        return await self._ask(self._stores, deadline_s, ListStore)

    async def load(self, model: str, deadline_s: float) -> None:
        """Have a model served; `models` knows it when this returns. A call that is cancelled leaves no trace.

        Raises:
            DeadlineExceeded: it was not done in time.
            Unavailable: there is no worker, or it was lost meanwhile.
            ModelNotFound, Forbidden, Overloaded, Internal: what the worker answered.
        """
        await self._ask(self._stores, deadline_s, lambda job, budget_s: Load(job, budget_s, model))

    async def unload(self, model: str, deadline_s: float) -> None:
        """Have a model served no more; what has begun is done to its end. Raises as `load`."""
        await self._ask(self._stores, deadline_s, lambda job, budget_s: Unload(job, budget_s, model))

    async def introduced(self) -> None:
        """Wait until a worker has said for the first time how it is."""
        await self._introduced.wait()

    def next_change(self) -> asyncio.Event:
        """What is set as soon as `models` or `readiness` say something else than now."""
        return self._change

    def models(self) -> tuple[ModelStatus, ...] | None:
        """What the worker serves, or served before it was lost; None while that is not known."""
        return self._catalogue.models(self._state.phase if self._state else None)

    def readiness(self) -> Readiness:
        """Whether every model that the worker serves has proven itself."""
        state = self._state
        if state is None:
            return Readiness(False, NO_WORKER, NO_WORKER_RETRY_S)
        if state.phase is not Phase.READY:
            return Readiness(False, state.reason, state.retry_after_s)
        if not state.models:
            return Readiness(False, "no model is served; the last one was unloaded", state.retry_after_s)
        unproven = ", ".join(model.name for model in state.models if not model.ready)
        if unproven:
            return Readiness(False, f"not ready: {unproven}", state.retry_after_s)
        return Readiness(True, "ready", state.retry_after_s)

    def retry_after_s(self) -> float:
        """Seconds until the worker will have answered what it has in line."""
        return self._state.retry_after_s if self._state else 1.0

    async def _ask(
        self,
        waiting: dict[int, asyncio.Future[T]],
        deadline_s: float,
        header: Callable[[int, float], ToWorker],
        *frames: memoryview,
    ) -> T:
        """Send what `header` makes of a job's number and the seconds left, and wait among `waiting` for its answer."""
        budget_s = deadline_s - time.monotonic()
        if budget_s <= 0:
            raise DeadlineExceeded("the request's deadline passed before it could be sent to the worker")
        job = next(self._numbers)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        waiting[job] = future
        try:
            await self._send(header(job, budget_s), *frames)
            async with asyncio.timeout(budget_s):
                return await future
        except TimeoutError:
            await self._withdraw(job)
            raise DeadlineExceeded(
                f"there was no answer within the {budget_s:.3f} s that were left of the request's deadline"
            ) from None
        except asyncio.CancelledError:
            await self._withdraw(job)
            raise
        finally:
            waiting.pop(job, None)

    async def _send(self, header: ToWorker, *frames: memoryview) -> None:
        try:
            # Without copying: libzmq reads the array's own memory, which the frame keeps alive.
            await self._socket.send_multipart([encode(header), *frames], flags=zmq.NOBLOCK, copy=False)
        except zmq.Again:
            raise Unavailable(NO_WORKER, NO_WORKER_RETRY_S) from None

    async def _withdraw(self, job: int) -> None:
        with contextlib.suppress(Unavailable):  # a lost worker has lost the job as well
            await self._send(Cancel(job))

    async def _greet(self) -> None:
        with contextlib.suppress(Unavailable):  # there is nobody yet
            await self._send(Hello(PROTOCOL, self._catalogue.knows))

    async def _beat(self) -> None:
        while True:
            await self._greet()
            # While the worker is not ready its answer to this changes soon.
            await asyncio.sleep(self._heartbeat_s if self.readiness().ready else self._heartbeat_s / 5)
            if self._state is not None and time.monotonic() - self._heard_s > self._timeout_s:
                self._lose(f"the worker was silent for {self._timeout_s:g} s; it is being restarted")

    async def _watch_connection(self) -> None:
        while True:
            event = await recv_monitor_message(self._monitor)
            if event["event"] == zmq.EVENT_DISCONNECTED:
                self._lose("the worker was lost; another is being started")
            else:
                await self._greet()

    async def _receive(self) -> None:
        while True:
            header, *frames = await self._socket.recv_multipart(copy=False)
            try:
                self._handle(header.bytes, [frame.buffer for frame in frames])
            except MalformedMessage as error:
                log.error("malformed message from the worker", error=str(error))

    def _handle(self, header: bytes, frames: list[memoryview]) -> None:
        self._heard_s = time.monotonic()
        match decode_to_front_end(header):
            case State() as state:
                self._learn(state)
            case Answer() as answer:
                output = output_from_frames(answer, frames)
                _settle(self._answers, answer.job, WorkerAnswer(output, answer.queue_s, answer.infer_s))
            case Store() as store:
                _settle(self._stores, store.job, store.models)
            case Failure() as failure:
                self._fail(failure.job, error_from_code(failure.code, failure.detail, failure.retry_after_s))

    def _learn(self, state: State) -> None:
        if self._state is not None and self._state.instance != state.instance:
            self._lose("the worker was restarted")
        self._catalogue.learn(state)
        if self._state is None:
            self._on_up(True)
        before, self._state = self._state, state
        if before is None or state.configs or (before.phase, before.models) != (state.phase, state.models):
            self._changed()
        self._introduced.set()

    def _lose(self, reason: str) -> None:
        if self._state is not None:
            log.warning("worker lost", reason=reason, jobs=len(self._answers) + len(self._stores))
            self._on_up(False)
            self._state = None
            self._changed()
        self._fail_pending(reason)

    def _changed(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    def _fail_pending(self, reason: str) -> None:
        for job in (*self._answers, *self._stores):
            self._fail(job, Unavailable(f"{reason}; send the request again", NO_WORKER_RETRY_S))

    def _fail(self, job: int, error: ConvMLPError) -> None:
        _settle(self._answers, job, error)
        _settle(self._stores, job, error)


def _settle(waiting: dict[int, asyncio.Future[T]], job: int, answer: T | ConvMLPError) -> None:
    """Answer whoever still waits for a job."""
    future = waiting.get(job)
    if future is None or future.done():
        return
    if isinstance(answer, ConvMLPError):
        future.set_exception(answer)
    else:
        future.set_result(answer)
