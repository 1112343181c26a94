"""The worker: one device, its models, and everyone who asks them."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog

from model.bundle import Bundle
from model.errors import ConvMLPError
from service.errors import Internal, ModelNotFound, Overloaded, RetryLater, Unavailable
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.wire.door import Door, Letter
from service.wire.messages import (
    Cancel,
    Hello,
    MalformedMessage,
    ModelState,
    Phase,
    Predict,
    State,
    input_from_frames,
)
from service.worker.batching import BatchLimits
from service.worker.dispatcher import Dispatcher
from service.worker.queue import Done, Job, JobQueue, Shape
from service.worker.runner import Runner
from service.worker.self_check import SelfCheck

STARTING_RETRY_S = 2.0

log = structlog.get_logger(__name__)


class WorkerWedged(Exception):
    """A batch ran for far longer than any should; only a new process helps."""


class Worker:
    """Serves bundles at a door: loads, proves itself, answers, drains. `run` is its whole life."""

    def __init__(
        self,
        bundles: Sequence[Bundle],
        make_runner: Callable[[Sequence[Bundle], Settings], Runner],
        settings: Settings,
        metrics: WorkerMetrics,
    ) -> None:
        self._bundles = {bundle.config.name: bundle for bundle in bundles}
        self._make_runner = make_runner
        self._settings = settings
        self._metrics = metrics
        self._instance = uuid.uuid4().hex
        self._phase = Phase.STARTING
        self._reason = "the worker is loading its models"
        self._objections: dict[str, str] = dict.fromkeys(self._bundles, "not proven yet")
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._runner: Runner | None = None
        self._dispatcher: Dispatcher | None = None
        self._letters: set[asyncio.Task[None]] = set()

    async def run(self, door: Door, stop: asyncio.Event) -> None:
        """Serve until `stop`, then finish what is in hand.

        Raises:
            BundleInvalid: a bundle's weights do not fit.
            WorkerWedged: see there.
        """
        self._door = door
        async with asyncio.TaskGroup() as parts:
            receiving = parts.create_task(self._receive(), name="receive")
            loop = asyncio.get_running_loop()
            started_s = time.monotonic()
            self._runner = await loop.run_in_executor(
                self._device_thread, self._make_runner, list(self._bundles.values()), self._settings
            )
            self._dispatcher = self._make_dispatcher(self._runner)
            check = SelfCheck(list(self._bundles.values()), self._dispatcher.submit)
            serving = [
                receiving,
                parts.create_task(self._dispatcher.run(), name="dispatch"),
                parts.create_task(self._watch_device(), name="watch-device"),
                parts.create_task(self._keep_checking(check), name="self-check"),
            ]
            await stop.wait()
            log.info("draining", seconds=round(time.monotonic() - started_s))
            await self._drain()
            for task in serving:
                task.cancel()
        # The thread is left to end by itself: a batch that still runs is nobody's any more.
        self._device_thread.shutdown(wait=False)

    def _make_dispatcher(self, runner: Runner) -> Dispatcher:
        settings = self._settings
        return Dispatcher(
            runner,
            self._device_thread,
            JobQueue(settings.max_queue_images, settings.max_queue_mpx * 10**6),
            BatchLimits(settings.max_batch_images, settings.max_batch_mpx * 10**6),
            self._metrics,
        )

    async def _receive(self) -> None:
        while True:
            letter = await self._door.receive()
            match letter.message:
                case Hello(knows=knows):
                    self._post(self._door.tell(letter.sender, self._state(with_catalogue=knows != self._instance)))
                case Cancel(job=job):
                    if self._dispatcher is not None:
                        self._dispatcher.cancel((letter.sender, job))
                case Predict() as message:
                    self._take_in(letter, message)

    def _take_in(self, letter: Letter, message: Predict) -> None:
        now_s = time.monotonic()

        def reply(done: Done) -> None:
            self._post(self._answer(letter.sender, message.job, done))

        try:
            dispatcher = self._dispatcher_for(message.model)
            model_input = input_from_frames(message, letter.frames)
        except ConvMLPError as error:
            reply(Done(error, 0.0, 0.0))
            return
        except MalformedMessage as error:
            log.error("malformed message from a front-end", error=str(error))
            reply(Done(Internal("the worker did not understand the front-end"), 0.0, 0.0))
            return
        dispatcher.submit(
            Job(
                key=(letter.sender, message.job),
                shape=Shape(message.model, message.height, message.width),
                input=model_input,
                params=message.params,
                enqueued_s=now_s,
                deadline_s=now_s + message.budget_s,
                reply=reply,
            )
        )

    def _dispatcher_for(self, model: str) -> Dispatcher:
        if model not in self._bundles:
            raise ModelNotFound(f"there is no model {model!r} here")
        if self._phase is Phase.STARTING or self._dispatcher is None:
            raise Unavailable(self._reason, STARTING_RETRY_S)
        if model in self._objections:
            raise Unavailable(f"model {model!r} is not ready: {self._objections[model]}", STARTING_RETRY_S)
        return self._dispatcher

    async def _answer(self, receiver: bytes, job: int, done: Done) -> None:
        match done.result:
            case ConvMLPError() as error:
                retry_after_s = error.retry_after_s if isinstance(error, RetryLater) else None
                await self._door.fail(receiver, job, error.code, error.detail, retry_after_s)
            case output:
                await self._door.answer(receiver, job, output, done.queue_s, done.infer_s)

    def _state(self, *, with_catalogue: bool) -> State:
        backlog_s = self._dispatcher.backlog_s() if self._dispatcher else STARTING_RETRY_S
        configs = (bundle.config.model_dump_json() for bundle in self._bundles.values())
        device, precision = (self._runner.device, self._runner.precision) if self._runner else ("", "")
        return State(
            instance=self._instance,
            phase=self._phase,
            reason=self._reason,
            retry_after_s=backlog_s if self._phase is Phase.READY else STARTING_RETRY_S,
            models=tuple(ModelState(name, name not in self._objections, device, precision) for name in self._bundles),
            catalogue=tuple(configs) if with_catalogue else None,
        )

    async def _keep_checking(self, check: SelfCheck) -> None:
        while True:
            for model in self._bundles:
                try:
                    objection = await check.objection(model)
                except Overloaded as busy:
                    log.warning("self-check put off", model=model, reason=busy.detail)
                    continue
                if objection is None:
                    self._objections.pop(model, None)
                else:
                    self._objections[model] = objection
                    log.error("self-check failed", model=model, objection=objection)
                self._metrics.model_ready(model, ready=objection is None)
            if self._phase is Phase.STARTING and not self._objections:
                self._phase, self._reason = Phase.READY, "ready"
                log.info("ready", models=list(self._bundles))
            await asyncio.sleep(self._settings.self_check_interval_ms / 1000)

    async def _watch_device(self) -> None:
        limit_s = self._settings.batch_timeout_ms / 1000
        while True:
            await asyncio.sleep(min(1.0, limit_s / 4))
            busy_s = self._dispatcher.busy_s() if self._dispatcher else 0.0
            if busy_s > limit_s:
                raise WorkerWedged(f"a batch has been running for {busy_s:.0f} s")

    async def _drain(self) -> None:
        """Front-ends hear of it with their next heartbeat; what they sent before that is still answered."""
        self._phase, self._reason = Phase.DRAINING, "the worker is shutting down"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_ms / 1000):
                await asyncio.sleep(2 * self._settings.heartbeat_interval_ms / 1000)
                if self._dispatcher is not None:
                    await self._dispatcher.finished()
                while self._letters:
                    await asyncio.wait(self._letters)

    def _post(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send without waiting; as many at once as there are jobs in hand, which the queue bounds."""
        task = asyncio.create_task(sending)
        self._letters.add(task)
        task.add_done_callback(self._letters.discard)
