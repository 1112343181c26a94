"""The front-ends that hear of every change.

The worker: one device, its models, and everyone who asks them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from model.bundle import Bundle
from model.errors import ConvMLPError
from service.errors import Internal, Unavailable
from service.observability.metrics import WorkerMetrics
from service.observability.tracing import NO_TRACING, TraceContext, Tracing
from service.settings import Settings
from service.wire.messages import (
    Cancel,
    ControlRequest,
    Hello,
    MalformedMessage,
    ModelState,
    Phase,
    Predict,
    State,
    input_from_frames,
)
from service.wire.worker_endpoint import Envelope, WorkerEndpoint
from service.worker.batching import BatchLimits, BatchSizeLimits
from service.worker.dispatcher import Dispatcher
from service.worker.model_control import ModelControl
from service.worker.model_loader import ModelLoader
from service.worker.model_registry import LoadedModel, ModelRegistry, new_model
from service.worker.queue import Done, Job, JobQueue, Shape
from service.worker.runner import Runner
from service.worker.tuning import Tuner

MAX_FRONT_ENDS = 1024


@dataclass(frozen=True, slots=True)
class _FrontEnd:
    heard_s: float
    knows: frozenset[str]


class Subscribers:
    """Front-ends that were heard of lately, by their address, and the versions whose configs each of them has."""

    def __init__(self, forget_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._forget_after_s = forget_after_s
        self._clock = clock
        self._front_ends: dict[bytes, _FrontEnd] = {}

    def heard(self, front_end: bytes, knows: Iterable[str]) -> None:
        """A front-end said what it has."""
        self._front_ends.pop(front_end, None)
        self._front_ends[front_end] = _FrontEnd(self._clock(), frozenset(knows))
        if len(self._front_ends) > MAX_FRONT_ENDS:
            del self._front_ends[next(iter(self._front_ends))]  # the one that was silent for longest

    def told(self, front_end: bytes, versions: Iterable[str]) -> None:
        """A front-end was sent these."""
        known = self._front_ends.get(front_end)
        if known is not None:
            self._front_ends[front_end] = _FrontEnd(known.heard_s, known.knows.union(versions))

    def knows(self, front_end: bytes) -> frozenset[str]:
        known = self._front_ends.get(front_end)
        return known.knows if known is not None else frozenset()

    def present(self) -> tuple[bytes, ...]:
        """Who is there still."""
        oldest_s = self._clock() - self._forget_after_s
        self._front_ends = {key: one for key, one in self._front_ends.items() if one.heard_s >= oldest_s}
        return tuple(self._front_ends)


STARTING_RETRY_S = 2.0
FIRST_RECHECK_S = 0.5
"""After this a model that is not proven is asked again; doubles up to the interval of all checks."""

log = structlog.get_logger(__name__)


class WorkerWedged(Exception):
    """A batch ran for far longer than any should; only a new process helps."""


class Worker:
    """Serves bundles at a door: loads, proves itself, answers, drains. `run` is its whole life."""

    def __init__(
        self,
        bundles: Sequence[Bundle],
        make_runner: Callable[[Settings], Runner],
        settings: Settings,
        metrics: WorkerMetrics,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._shelf = ModelRegistry(map(new_model, bundles))
        self._make_runner = make_runner
        self._settings = settings
        self._metrics = metrics
        self._tracing = tracing
        self._instance = uuid.uuid4().hex
        self._begun_s = time.monotonic()
        self._phase = Phase.STARTING
        self._reason = "the worker is loading its models"
        self._audience = Subscribers(settings.worker_timeout_ms / 1000)
        self._device_thread = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._runner: Runner | None = None
        self._dispatcher: Dispatcher | None = None
        self._control: ModelControl | None = None

    async def run(self, door: WorkerEndpoint, stop: asyncio.Event) -> None:
        """Serve until `stop`, then finish what is in hand.

        Raises:
            BundleInvalid: a configured bundle's weights do not fit.
            WorkerWedged, DeviceLost: see there.
        """
        self._door = door
        async with asyncio.TaskGroup() as parts:
            receiving = parts.create_task(self._receive(), name="receive")
            loop = asyncio.get_running_loop()
            self._runner = await loop.run_in_executor(self._device_thread, self._make_runner, self._settings)
            sizes = BatchSizeLimits(BatchLimits(self._settings.max_batch_images, self._settings.max_batch_mpx * 10**6))
            self._dispatcher = self._make_dispatcher(self._runner, sizes)
            keeper = ModelLoader(
                self._shelf,
                self._runner,
                self._device_thread,
                self._dispatcher,
                Tuner(self._dispatcher, sizes),
                self._settings,
                self._metrics,
                self._announce,
            )
            await keeper.start()
            self._control = ModelControl(door, keeper, allowed=self._settings.model_control, spawn=parts.create_task)
            serving = [
                receiving,
                parts.create_task(self._dispatcher.run(), name="dispatch"),
                parts.create_task(self._watch_device(), name="watch-device"),
                parts.create_task(self._keep_checking(keeper), name="self-check"),
            ]
            await stop.wait()
            log.info("draining", seconds=round(time.monotonic() - self._begun_s))
            await self._drain()
            self._control.abandon()
            for task in serving:
                task.cancel()
        # The threads are left to end by themselves: a batch that still runs is nobody's any more.
        keeper.close()
        self._dispatcher.close()
        self._device_thread.shutdown(wait=False)

    def _make_dispatcher(self, runner: Runner, sizes: BatchSizeLimits) -> Dispatcher:
        settings = self._settings
        self._metrics.queue_limits(settings.max_queue_images, settings.max_queue_mpx * 10**6)
        return Dispatcher(
            runner,
            self._device_thread,
            JobQueue(settings.max_queue_images, settings.max_queue_mpx * 10**6, settings.weights),
            sizes,
            self._metrics,
            tracing=self._tracing,
        )

    async def _receive(self) -> None:
        while True:
            letter = await self._door.receive()
            match letter.message:
                case Hello(knows=knows):
                    self._audience.heard(letter.sender, knows)
                    self._tell(letter.sender)
                case Cancel(job=job):
                    key = (letter.sender, job)
                    if self._dispatcher is not None:
                        self._dispatcher.cancel(key)
                    if self._control is not None:
                        self._control.withdraw(key)
                case Predict() as message:
                    self._take_in(letter, message)
                case request:
                    self._control_models(letter.sender, request)

    def _take_in(self, letter: Envelope, message: Predict) -> None:
        now_s = time.monotonic()
        try:
            model, dispatcher = self._model_for(message)
            model_input = input_from_frames(message, letter.frames)
        except ConvMLPError as error:
            self._door.fail(letter.sender, message.job, error)
            return
        except MalformedMessage as error:
            log.error("malformed message from a front-end", error=str(error), request_id=message.request_id)
            self._door.fail(letter.sender, message.job, Internal("the worker did not understand the front-end"))
            return
        shape = Shape(model.name, model.slot, message.height, message.width)

        def reply(done: Done) -> None:
            if isinstance(done.result, ConvMLPError):
                self._door.fail(letter.sender, message.job, done.result)
                return
            outlook = dispatcher.outlook(shape, message.budget_s)
            self._door.answer(
                letter.sender, message.job, done.result, done.queue_s, done.infer_s, done.batch_images, outlook
            )

        dispatcher.submit(
            Job(
                key=(letter.sender, message.job),
                shape=shape,
                input=model_input,
                params=message.params,
                enqueued_s=now_s,
                deadline_s=now_s + message.budget_s,
                reply=reply,
                request_id=message.request_id,
                span=self._tracing.remote(TraceContext(message.traceparent, message.tracestate)),
            )
        )

    def _model_for(self, message: Predict) -> tuple[LoadedModel, Dispatcher]:
        model = self._shelf.find(message.model, message.version)
        if self._phase is Phase.STARTING or self._dispatcher is None:
            raise Unavailable(self._reason, STARTING_RETRY_S)
        if model.unready_reason is not None:
            raise Unavailable(f"model {model.name!r} is not ready: {model.unready_reason}", STARTING_RETRY_S)
        return model, self._dispatcher

    def _control_models(self, sender: bytes, request: ControlRequest) -> None:
        self._audience.heard(sender, self._audience.knows(sender))  # whoever asks hears of the change as well
        try:
            if self._phase is not Phase.READY or self._control is None:
                raise Unavailable(self._reason, STARTING_RETRY_S)
            self._control.take_in(sender, request)
        except ConvMLPError as error:
            self._door.fail(sender, request.job, error)

    def _announce(self) -> None:
        """Tell every front-end what changed, before it asks."""
        for front_end in self._audience.present():
            self._tell(front_end)

    def _tell(self, front_end: bytes) -> None:
        served = self._shelf.served
        knows = self._audience.knows(front_end)
        backlog_s = self._dispatcher.backlog_s() if self._dispatcher else STARTING_RETRY_S
        device = self._runner.device if self._runner else ""
        state = State(
            instance=self._instance,
            phase=self._phase,
            reason=self._reason,
            retry_after_s=backlog_s if self._phase is Phase.READY else STARTING_RETRY_S,
            models=tuple(
                ModelState(one.name, one.version, one.unready_reason is None, device, one.precision) for one in served
            ),
            configs={one.version: one.config.model_dump_json() for one in served if one.version not in knows},
            silent_s=self._silent_s(),
        )
        self._audience.told(front_end, state.configs)
        self._door.tell(front_end, state)

    def _silent_s(self) -> float:
        """See State. At its start a worker opens a device that may hang, and has answered nothing yet."""
        if self._phase is Phase.STARTING or self._dispatcher is None:
            return time.monotonic() - self._begun_s
        return self._dispatcher.silent_s()

    async def _keep_checking(self, keeper: ModelLoader) -> None:
        interval_s = self._settings.self_check_interval_ms / 1000
        pause_s = FIRST_RECHECK_S
        while True:
            proven = await keeper.check()
            if self._phase is Phase.STARTING:
                self._phase, self._reason = Phase.READY, "ready"
                log.info("ready", models=[one.name for one in self._shelf.served if one.unready_reason is None])
                self._announce()
            await asyncio.sleep(interval_s if proven else min(pause_s, interval_s))
            pause_s = FIRST_RECHECK_S if proven else min(2 * pause_s, interval_s)

    async def _watch_device(self) -> None:
        limit_s = self._settings.batch_timeout_ms / 1000
        while True:
            await asyncio.sleep(min(1.0, limit_s / 4))
            busy_s = self._dispatcher.busy_s() if self._dispatcher else 0.0
            if busy_s > limit_s:
                raise WorkerWedged(f"a batch has been running for {busy_s:.0f} s")

    async def _drain(self) -> None:
        """Front-ends hear of it at once; what they sent before that is still answered."""
        self._phase, self._reason = Phase.DRAINING, "the worker is shutting down"
        self._announce()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_ms / 1000):
                if self._control is not None:
                    await self._control.close()
                await asyncio.sleep(2 * self._settings.heartbeat_interval_ms / 1000)
                if self._dispatcher is not None:
                    await self._dispatcher.finished()
