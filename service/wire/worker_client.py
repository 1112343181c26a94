"""Questions down a line, and who waits for the answer of each.

A front-end's end of the wire to one worker: sends it jobs, hands back its answers, and knows how it is.

The worker is taken for lost as soon as its connection breaks, or when it was silent for `timeout_s`; then all
jobs in hand fail at once. Nothing is sent twice: whether to try again is for `pool.py` to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from model.errors import ConvMLPError
from model.types import ModelInput, QueryParams, RawOutput
from service.errors import DeadlineExceeded, Internal, Unavailable, error_from_code
from service.observability.tracing import current_span
from service.types import StoredModel
from service.wire.forecast import Forecast, Kind
from service.wire.messages import (
    PROTOCOL,
    Answer,
    Answers,
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
    WaitEstimate,
    decode_to_front_end,
    encode,
    output_from_frames,
)
from service.wire.worker_view import NO_WORKER, NO_WORKER_RETRY_S, Catalogue, WorkerView
from service.wire.zmq_socket import NotConnected, WorkerConnection

T = TypeVar("T")


class PendingRequests(Generic[T]):
    """Those that are answered by a `T`. `numbers` are the line's own, none of them used twice."""

    def __init__(self, line: WorkerConnection, numbers: Iterator[int]) -> None:
        self._line = line
        self._numbers = numbers
        self._waiting: dict[int, asyncio.Future[T]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, deadline_s: float, header: Callable[[int, float], ToWorker], *frames: memoryview) -> T:
        """Send what `header` makes of a job's number and the seconds left, and wait for its answer.

        Cancelling the call, or its deadline, withdraws the job.

        Raises:
            DeadlineExceeded: there was no answer in time.
            Unavailable: there is nobody to ask.
            ConvMLPError: what the job was settled with.
        """
        budget_s = deadline_s - time.monotonic()
        if budget_s <= 0:
            raise DeadlineExceeded("the request's deadline passed before it could be sent to the worker")
        job = next(self._numbers)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        self._waiting[job] = answer
        # One timer a job: `asyncio.timeout` costs several times that, and takes part in every cancellation.
        too_late = loop.call_later(budget_s, self._expire, job, budget_s)
        try:
            self._line.send(encode(header(job, budget_s)), *frames)
            return await answer
        except NotConnected:
            raise Unavailable(NO_WORKER, NO_WORKER_RETRY_S) from None
        except asyncio.CancelledError:
            self._withdraw(job)
            raise
        finally:
            too_late.cancel()
            del self._waiting[job]

    def settle(self, job: int, answer: T | ConvMLPError) -> None:
        """Answer whoever still waits for a job."""
        future = self._waiting.get(job)
        if future is None or future.done():
            return
        if isinstance(answer, ConvMLPError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def fail_all(self, error: Callable[[], ConvMLPError]) -> None:
        """Each caller gets an error of its own: one that several raise would gather the traces of all."""
        for job in self._waiting:
            self.settle(job, error())

    def _expire(self, job: int, budget_s: float) -> None:
        if self._waiting[job].done():
            return  # answered in time; its caller has not had its turn yet
        self._withdraw(job)
        late = f"there was no answer within the {budget_s:.3f} s that were left of the request's deadline"
        self.settle(job, DeadlineExceeded(late))

    def _withdraw(self, job: int) -> None:
        with contextlib.suppress(NotConnected):  # a lost worker has lost the job as well
            self._line.send(encode(Cancel(job)))


log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """One output, the seconds that its job waited and ran, how many images, itself among them, ran at once, and what
    the next one can expect."""

    output: RawOutput
    queue_s: float
    infer_s: float
    batch_images: int
    outlook: WaitEstimate


class WorkerClient:
    """Use as an async context manager. `on_change` hears of everything that changes in `view`, but for the times;
    `on_replaced` of each worker that took another one's place."""

    def __init__(
        self,
        address: str,
        heartbeat_s: float,
        timeout_s: float,
        on_change: Callable[[], None],
        on_replaced: Callable[[], None],
    ) -> None:
        self._address = address
        self._line = WorkerConnection(address)
        self._heartbeat_s = heartbeat_s
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._on_replaced = on_replaced
        numbers = itertools.count(1)
        self._answers: PendingRequests[WorkerAnswer] = PendingRequests(self._line, numbers)
        self._stores: PendingRequests[tuple[StoredModel, ...]] = PendingRequests(self._line, numbers)
        self._state: State | None = None
        self._instance = ""
        self._introduced = asyncio.Event()
        self._heard_s = 0.0
        self._pixels = 0
        self._catalogue = Catalogue()
        self._forecast = Forecast()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> WorkerClient:
        await self._line.__aenter__()
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
        await self._line.__aexit__()

    async def predict(
        self,
        request_id: str,
        model: str,
        version: str,
        model_input: ModelInput,
        params: QueryParams,
        deadline_s: float,
    ) -> WorkerAnswer:
        """Have one input answered. Cancelling the call, or its deadline, withdraws the job from the worker.

        Raises:
            DeadlineExceeded: there was no answer in time.
            Unavailable: there is no worker, or it was lost meanwhile, or the model was replaced.
            ModelNotFound, Overloaded, Internal, ...: what the worker answered.
        """
        height, width, _ = model_input.pixels.shape
        geometry = model_input.geometry
        trace = current_span().context

        def header(job: int, budget_s: float) -> Predict:
            return Predict(
                job,
                request_id,
                model,
                version,
                height,
                width,
                geometry,
                params,
                budget_s,
                trace.traceparent,
                trace.tracestate,
            )

        kind = self.kind(version, deadline_s - time.monotonic())
        self._pixels += height * width
        kind.send()
        try:
            answer = await self._answers.ask(deadline_s, header, model_input.pixels.data)
        finally:
            kind.done()
            self._pixels -= height * width
        kind.learn(answer.outlook)
        return answer

    async def repository(self, deadline_s: float) -> tuple[StoredModel, ...]:
        """What the worker has on disk or serves. Raises as `load`."""
        return await self._stores.ask(deadline_s, ListStore)

    async def load(self, model: str, deadline_s: float) -> None:
        """Have a model served; `view` has it when this returns. A call that is cancelled leaves no trace.

        Raises:
            DeadlineExceeded: it was not done in time.
            Unavailable: there is no worker, or it was lost meanwhile.
            ModelNotFound, Forbidden, Overloaded, Internal: what the worker answered.
        """
        await self._stores.ask(deadline_s, lambda job, budget_s: Load(job, budget_s, model))

    async def unload(self, model: str, deadline_s: float) -> None:
        """Have a model served no more; what has begun is done to its end. Raises as `load`."""
        await self._stores.ask(deadline_s, lambda job, budget_s: Unload(job, budget_s, model))

    async def introduced(self) -> None:
        """Wait until a worker has said for the first time how it is."""
        await self._introduced.wait()

    @property
    def phase(self) -> Phase | None:
        """None while there is no worker."""
        return self._state.phase if self._state else None

    def view(self) -> WorkerView:
        state = self._state
        if state is None:
            return WorkerView(None, NO_WORKER, NO_WORKER_RETRY_S, self._catalogue.offers(None))
        return WorkerView(state.phase, state.reason, state.retry_after_s, self._catalogue.offers(state.phase))

    def knows(self, version: str) -> bool:
        """Whether the worker serves a version, or did not long ago."""
        return version in self._catalogue

    def kind(self, version: str, left_s: float) -> Kind:
        """What is known of jobs like one for a version that is due in so many seconds."""
        return self._forecast.kind(version, left_s)

    def outstanding(self) -> tuple[int, float]:
        """What a new job would find before it: pixels of network input in hand here, then the seconds of work, whoever
        asked for it, that the worker told of last."""
        return self._pixels, self._state.retry_after_s if self._state else 0.0

    def _greet(self) -> None:
        with contextlib.suppress(NotConnected):
            self._line.send(encode(Hello(PROTOCOL, self._catalogue.knows)))

    async def _beat(self) -> None:
        while True:
            self._greet()
            # While the worker is not ready its answer to this changes soon.
            await asyncio.sleep(self._heartbeat_s if self._settled() else self._heartbeat_s / 5)
            if self._state is not None and time.monotonic() - self._heard_s > self._timeout_s:
                self._lose(f"the worker was silent for {self._timeout_s:g} s; it is being restarted")

    async def _watch_connection(self) -> None:
        while True:
            if await self._line.connected():
                self._greet()
            else:
                self._lose("the worker was lost; another is being started")

    async def _receive(self) -> None:
        while True:
            header, frames = await self._line.receive()
            try:
                self._handle(header, frames)
            except MalformedMessage as error:
                log.error("malformed message from a worker", address=self._address, error=str(error))

    def _handle(self, header: memoryview, frames: list[memoryview]) -> None:
        self._heard_s = time.monotonic()
        match decode_to_front_end(header):
            case State() as state:
                self._learn(state)
            case Answers(answers=answers):
                rest = iter(frames)
                for answer in answers:
                    self._answers.settle(answer.job, self._read(answer, rest))
            case Store() as store:
                self._stores.settle(store.job, store.models)
            case Failure() as failure:
                error = error_from_code(failure.code, failure.detail, failure.retry_after_s)
                self._answers.settle(failure.job, error)
                self._stores.settle(failure.job, error)

    def _read(self, answer: Answer, frames: Iterator[memoryview]) -> WorkerAnswer | Internal:
        try:
            output = output_from_frames(answer, frames)
        except MalformedMessage as error:  # the others of its message are none the worse for it
            log.error("malformed answer from a worker", address=self._address, error=str(error))
            return Internal("the front-end did not understand the worker")
        return WorkerAnswer(output, answer.queue_s, answer.infer_s, answer.batch_images, answer.outlook)

    def _learn(self, state: State) -> None:
        if self._state is not None and self._state.instance != state.instance:
            self._lose("the worker was restarted")
        self._catalogue.learn(state)
        if self._instance not in ("", state.instance):
            self._on_replaced()
        self._instance = state.instance
        before, self._state = self._state, state
        if before is None or state.configs or (before.phase, before.models) != (state.phase, state.models):
            self._on_change()
        self._introduced.set()

    def _settled(self) -> bool:
        state = self._state
        return state is not None and state.phase is Phase.READY and all(model.ready for model in state.models)

    def _lose(self, reason: str) -> None:
        if self._state is not None:
            jobs = len(self._answers) + len(self._stores)
            log.warning("worker lost", address=self._address, reason=reason, jobs=jobs)
            self._state = None
            self._forecast.forget()
            self._on_change()
        self._fail_pending(reason)

    def _fail_pending(self, reason: str) -> None:
        def error() -> Unavailable:
            return Unavailable(f"{reason}; send the request again", NO_WORKER_RETRY_S)

        self._answers.fail_all(error)
        self._stores.fail_all(error)
