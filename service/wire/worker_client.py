"""A front-end's client of one worker: sends it jobs, returns its answers, and holds its last state.

The worker counts as lost as soon as its connection breaks, or after `timeout_s` of silence; then all its pending jobs
fail. Its silence counts only while this front-end runs: after a stop of the front-end, or of both, what the worker has
sent is read first. Nothing is sent twice: `pool.py` decides whether to try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import structlog

from model.errors import ConvMLPError
from model.types import ModelInput, QueryParams
from service.errors import DeadlineExceeded, Internal, Unavailable, error_from_code
from service.observability.logs import LogLimit
from service.observability.tracing import NO_CONTEXT, current_span
from service.traffic_split import TrafficSplit
from service.types import StoredModel
from service.wire.addresses import open_link
from service.wire.curve import PLAIN, WireOptions
from service.wire.deadlines import Deadlines
from service.wire.messages import (
    PROTOCOL,
    UPDATE_BOTH,
    Answer,
    Answers,
    Cancel,
    ControlRequest,
    Failure,
    Hello,
    ListStore,
    MalformedMessage,
    Phase,
    Predict,
    ProtocolMismatch,
    State,
    WaitEstimate,
    decode_to_front_end,
    encode,
    gather_jobs,
    unpack_output,
)
from service.wire.transport import Frames, LinkEvents, NotSent
from service.wire.worker_view import NO_WORKER, ModelConfigs, Recovery, WorkerAnswer, WorkerView

MAX_FORECASTS = 256
"""Model versions of which a client keeps the forecast."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class WaitForecast:
    """When one worker would answer another request for one model version, as far as one front-end can see.

    Each answer brings the worker's own estimate. Until the next answer time passes, and every request that this
    front-end sends or prepares adds its share; requests of other front-ends are only in the next estimate.

    It only has to find most requests that the worker would refuse; the worker judges every request that it receives.
    Two kinds of requests are therefore left to it. A request that is due more than twice as soon as the answered one:
    the worker serves urgent requests first, so it may wait much less. And a request while no other is prepared or sent:
    an estimate that refused everything would never be corrected.
    """

    __slots__ = ("_answered_at_s", "_budget_s", "_clock", "_image_s", "_preparing", "_sent")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._preparing = 0
        self._sent = 0
        self._image_s = 0.0
        self._answered_at_s = 0.0
        """On the clock: when another request would be answered, without those that are being prepared."""
        self._budget_s = math.inf
        """What the answered request had left when it was sent."""

    def expected_s(self, left_s: float, images: int = 1) -> float:
        """Expected seconds until another request, of so many images, due in `left_s`, is answered; 0: not known."""
        if 2 * left_s < self._budget_s or not (self._preparing or self._sent):
            return 0.0
        return max(0.0, self._answered_at_s - self._clock()) + (self._preparing + images - 1) * self._image_s

    def reserve(self, images: int = 1) -> None:
        """Another request is being prepared, for which so many images are sent."""
        self._preparing += images

    def prepared(self, images: int = 1) -> None:
        """It is ready to be sent, or failed."""
        self._preparing -= images

    def sent(self) -> None:
        """Another request was sent."""
        self._sent += 1
        self._answered_at_s = max(self._answered_at_s, self._clock()) + self._image_s

    def ended(self, budget_s: float, estimate: WaitEstimate | None) -> None:
        """A request that was sent with `budget_s` left was answered with the worker's estimate, or failed without."""
        self._sent -= 1
        if estimate is not None:
            self._image_s = estimate.image_s
            self._answered_at_s = self._clock() + estimate.answered_s
            self._budget_s = budget_s


class WorkerClient:
    """Use as an async context manager. `on_change` is called when `view` changes in anything but times;
    `on_replaced` when another worker process took the place of the last one."""

    def __init__(
        self,
        address: str,
        heartbeat_s: float,
        timeout_s: float,
        on_change: Callable[[], None],
        on_replaced: Callable[[], None],
        options: WireOptions = PLAIN,
    ) -> None:
        self._address = address
        self._link = open_link(address, options, LinkEvents(self._on_message, self._on_connected, self._on_unlinked))
        self._heartbeat_s = heartbeat_s
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._on_replaced = on_replaced
        self._job_numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[WorkerAnswer]] = {}
        """By job: the future of its Answer."""
        self._posted: dict[int, tuple[Predict, memoryview]] = {}
        """By job: what is sent in the next iteration of the event loop, all together."""
        self._stores: dict[int, asyncio.Future[tuple[StoredModel, ...]]] = {}
        """By job: the future of its Store."""
        self._connected = False
        self._state: State | None = None
        self._splits: Mapping[str, TrafficSplit] = {}
        """Of the last State."""
        self._mismatch = ""
        """Why the worker that is there cannot be used, such as that it speaks another protocol."""
        self._malformed = LogLimit()
        self._instance = ""
        self._state_received = asyncio.Event()
        self._recovery = Recovery()
        self._silent_s = 0.0
        self._pixels = 0
        self._configs = ModelConfigs()
        self._forecasts: dict[str, WaitForecast] = {}
        self._deadlines = Deadlines(self._expire)
        """Of jobs."""

    async def __aenter__(self) -> WorkerClient:
        await self._link.__aenter__()
        self._heartbeat = asyncio.create_task(self._keep_heartbeat(), name="worker-heartbeat")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._heartbeat.cancel()
        await asyncio.wait([self._heartbeat])
        self._deadlines.close()
        self._fail_pending("the connection to the worker was closed")
        await self._link.__aexit__()

    async def predict(
        self,
        request_id: str,
        model: str,
        version: str,
        model_input: ModelInput,
        params: QueryParams,
        deadline_s: float,
    ) -> WorkerAnswer:
        """Run one input on the worker. Cancelling the call, or its deadline, cancels the job at the worker.

        Raises:
            DeadlineExceeded: no answer came in time.
            Unavailable: there is no worker, or it was lost meanwhile, or the model was replaced.
            ModelNotFound, Overloaded, Internal, ...: what the worker answered.
        """
        height, width, _ = model_input.pixels.shape
        pixels, geometry = height * width, model_input.geometry
        span = current_span()
        trace = span.context if span.recording else NO_CONTEXT
        job, budget_s = next(self._job_numbers), deadline_s - time.monotonic()
        predict = Predict(job, request_id, model, version, height, width, geometry, params, budget_s, *trace)
        forecast = self._forecasts.get(version) or self.forecast(version)
        future = self._expect(self._answers, job, budget_s)
        if not self._posted:
            asyncio.get_running_loop().call_soon(self._send_posted)
        self._posted[job] = predict, model_input.pixels.data
        forecast.sent()
        self._pixels += pixels
        estimate: WaitEstimate | None = None
        try:
            answer = await future
            estimate = answer.estimate
            return answer
        except asyncio.CancelledError:
            self._cancel(job)
            raise
        finally:
            self._pixels -= pixels
            forecast.ended(budget_s, estimate)
            del self._answers[job]
            self._deadlines.pending.pop(job, None)

    async def repository(self, deadline_s: float) -> tuple[StoredModel, ...]:
        """The models that the worker has on disk or serves. Raises as `change`."""
        return await self.change(ListStore, deadline_s)

    async def change(
        self, request: Callable[[int, float], ControlRequest], deadline_s: float
    ) -> tuple[StoredModel, ...]:
        """Make a request about models; `view` has the change when this returns. Returns the models as `repository`.

        `request` makes the message from a job's number and its seconds. A cancelled load changes nothing; an unload
        that has begun is completed.

        Raises:
            DeadlineExceeded: it was not done in time.
            Unavailable: there is no worker, or it was lost meanwhile.
            ModelNotFound, ModelInvalid, BadParameter, Forbidden, Overloaded, Internal: what the worker answered.
        """
        job, budget_s = next(self._job_numbers), deadline_s - time.monotonic()
        future = self._expect(self._stores, job, budget_s)
        try:
            self._link.send(encode(request(job, budget_s)))
            return await future
        except NotSent:
            raise Unavailable(NO_WORKER, self._recovery.left_s()) from None
        except asyncio.CancelledError:
            self._cancel(job)
            raise
        finally:
            del self._stores[job]
            self._deadlines.pending.pop(job, None)

    async def wait_for_state(self) -> None:
        """Wait until a worker has sent its first State."""
        await self._state_received.wait()

    @property
    def phase(self) -> Phase | None:
        """None while there is no worker."""
        return self._state.phase if self._state else None

    def view(self) -> WorkerView:
        state = self._state
        if state is None:
            return WorkerView(
                None, self._mismatch or NO_WORKER, self._recovery.left_s(), self._configs.models(None), self._splits
            )
        models = self._configs.models(state.phase)
        return WorkerView(state.phase, state.reason, state.retry_after_s, models, state.splits)

    def knows(self, version: str) -> bool:
        """Whether the worker serves a version, or did lately."""
        return version in self._configs

    def forecast(self, version: str) -> WaitForecast:
        """The forecast for a model version."""
        known = self._forecasts.get(version)
        if known is None:
            known = self._forecasts[version] = WaitForecast()
            if len(self._forecasts) > MAX_FORECASTS:
                del self._forecasts[next(iter(self._forecasts))]
        return known

    def outstanding(self) -> tuple[int, float]:
        """The work ahead of a new job: pixels of network input sent from here and not answered, then the worker's last
        estimate of its own backlog in seconds, from all front-ends."""
        return self._pixels, self._state.retry_after_s if self._state else 0.0

    def _expect(self, pending: dict[int, asyncio.Future[T]], job: int, budget_s: float) -> asyncio.Future[T]:
        """The future of a job that is about to be sent, until it is removed from `pending`.

        Raises:
            DeadlineExceeded: there is no time for it.
            Unavailable: there is no worker, or it speaks another protocol.
        """
        if budget_s <= 0:
            raise DeadlineExceeded("timed out before the request was sent to the worker")
        if self._state is None:  # a lost connection takes messages for a moment still, and drops them
            raise Unavailable(self._mismatch or NO_WORKER, self._recovery.left_s())
        future = pending[job] = asyncio.get_running_loop().create_future()
        deadline_s = time.monotonic() + budget_s
        self._deadlines.pending[job] = deadline_s
        if deadline_s < self._deadlines.next_s:
            self._deadlines.wake_at(deadline_s)
        return future

    def _send_posted(self) -> None:
        posted, self._posted = list(self._posted.values()), {}
        for message, inputs in gather_jobs(posted):
            try:
                self._link.send(encode(message), *inputs)
            except NotSent:
                for predict in message.predicts:
                    _settle(self._answers.get(predict.job), Unavailable(NO_WORKER, self._recovery.left_s()))

    def _expire(self, job: int) -> None:
        future = self._answers.get(job) or self._stores.get(job)
        if future is not None and not future.done():  # else it was answered in time, and its caller has not run yet
            self._cancel(job)
            future.set_exception(DeadlineExceeded("timed out: the worker did not answer in time"))

    def _cancel(self, job: int) -> None:
        if self._posted.pop(job, None) is None:
            with contextlib.suppress(NotSent):  # a lost worker has lost the job as well
                self._link.send(encode(Cancel(job)))

    def _send_hello(self) -> None:
        with contextlib.suppress(NotSent):
            self._link.send(encode(Hello(PROTOCOL, self._configs.versions)))

    async def _keep_heartbeat(self) -> None:
        while True:
            self._send_hello()
            # A worker that is not ready soon changes its state.
            interval_s = self._heartbeat_s if self._is_ready() or self._mismatch else self._heartbeat_s / 5
            slept_s = time.monotonic()
            await asyncio.sleep(interval_s)
            # Timers run before what arrived meanwhile is read.
            self._silent_s += min(time.monotonic() - slept_s, 2 * interval_s)
            if self._state is not None and self._silent_s > self._timeout_s:
                self._on_lost(f"the worker was silent for {self._timeout_s:g} s; it is being restarted")

    def _on_connected(self) -> None:
        self._connected = True
        self._send_hello()

    def _on_unlinked(self, reason: str) -> None:
        self._connected = False
        if reason:
            self._on_mismatch(f"the worker cannot be used: {reason}")
        else:
            self._mismatch = ""
            self._on_lost("the worker was lost; another is being started")

    def _on_message(self, header: memoryview, frames: Frames) -> None:
        if not self._connected:  # it is from before the loss; its State would make the lost worker ready again
            return
        self._silent_s = 0.0
        try:
            message = decode_to_front_end(header)
            if isinstance(message, Answers):
                left = iter(frames)
                for answer in message.answers:
                    self._settle_answer(answer, left)
                for failure in message.failures:
                    self._settle_failure(failure)
            elif isinstance(message, State):
                self._on_state(message)
            elif isinstance(message, ProtocolMismatch):
                self._on_mismatch(
                    f"the worker speaks protocol {message.protocol}, this front-end {PROTOCOL}; {UPDATE_BOTH}"
                )
            else:
                _settle(self._stores.get(message.job), message.models)
        except MalformedMessage as error:
            if (repeated := self._malformed.due(str(error))) is not None:
                log.error("malformed message from a worker", address=self._address, error=str(error), repeated=repeated)

    def _settle_answer(self, answer: Answer, frames: Iterator[memoryview]) -> None:
        try:
            output = unpack_output(answer, frames)
        except MalformedMessage as error:  # the other answers of its message are still good
            log.error("malformed answer from a worker", address=self._address, error=str(error))
            _settle(self._answers.get(answer.job), Internal("the front-end did not understand the worker"))
            return
        future = self._answers.get(answer.job)
        if future is not None and not future.done():
            future.set_result(
                WorkerAnswer(
                    output, answer.queue_s, answer.infer_s, answer.batch_images, answer.estimate, answer.precision
                )
            )

    def _settle_failure(self, failure: Failure) -> None:
        error = error_from_code(failure.code, failure.detail, failure.retry_after_s)
        _settle(self._answers.get(failure.job), error)
        _settle(self._stores.get(failure.job), error)

    def _on_state(self, state: State) -> None:
        if self._state is not None and self._state.instance != state.instance:
            self._on_lost("the worker was restarted")
        self._mismatch = ""
        self._configs.learn(state)
        if self._instance not in ("", state.instance):
            self._on_replaced()
        self._instance = state.instance
        before, self._state, self._splits = self._state, state, state.splits
        self._recovery.learn(state.start_s)
        if self._is_ready():
            self._recovery.ready()
        elif state.phase is not Phase.READY:
            self._recovery.lost()
        if before is None or state.configs or before.shown != state.shown:
            self._on_change()
        self._state_received.set()

    def _on_mismatch(self, reason: str) -> None:
        if reason != self._mismatch:  # it answers each greeting so
            self._mismatch = reason
            log.error("a worker cannot be used", address=self._address, reason=reason)
            self._on_lost(reason)

    def _is_ready(self) -> bool:
        state = self._state
        return state is not None and state.phase is Phase.READY and all(model.ready for model in state.models)

    def _on_lost(self, reason: str) -> None:
        if self._state is not None:
            jobs = len(self._answers) + len(self._stores)
            log.warning("worker lost", address=self._address, reason=reason, jobs=jobs)
            self._state = None
            self._recovery.lost()
            self._forecasts.clear()
            self._on_change()
        self._fail_pending(reason)

    def _fail_pending(self, reason: str) -> None:
        for job in self._answers:  # else the next worker would get what its caller sends again
            self._posted.pop(job, None)
        # An error for each caller: one error raised by several would collect the tracebacks of all.
        futures: list[asyncio.Future[Any]] = [*self._answers.values(), *self._stores.values()]
        retry_after_s = self._recovery.left_s()
        for future in futures:
            _settle(future, Unavailable(f"{reason}; send the request again", retry_after_s))


def _settle(future: asyncio.Future[T] | None, result: T | ConvMLPError) -> None:
    """Settle a job, unless nobody waits for it any more."""
    if future is None or future.done():
        return
    if isinstance(result, ConvMLPError):
        future.set_exception(result)
    else:
        future.set_result(result)
