"""The worker: one device and its models, serving all front-ends that connect."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from model.bundle import Bundle
from model.errors import ConvMLPError
from model.types import Task
from service.errors import Internal, Unavailable
from service.observability.event_loop import watch_event_loop
from service.observability.metrics import WorkerMetrics
from service.observability.tracing import NO_SPAN, NO_TRACING, TraceContext, Tracing
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
from service.wire.transport import Frames
from service.wire.worker_endpoint import Envelope, WorkerEndpoint
from service.worker.batching import BatchSizeLimits
from service.worker.device_thread import DeviceThread
from service.worker.disk import write_to_disk
from service.worker.dispatcher import Dispatcher
from service.worker.model_control import ModelControl
from service.worker.model_loader import ModelLoader
from service.worker.model_registry import ModelRegistry, new_model
from service.worker.queue import JobQueue
from service.worker.runner import Runner
from service.worker.start_time import UNKNOWN_RETRY_S, StartTime
from service.worker.state_folder import NOTHING_KEPT, StateFolder
from service.worker.tuning import Tuner
from service.worker.types import Job, JobResult, Shape

MAX_FRONT_ENDS = 1024
UNREADY_RETRY_S = 2.0
"""Retry-After while a model is not ready."""
QUIET_S = 5.0
"""Without a job for so long a worker is idle."""
FIRST_RECHECK_S = 0.5
"""Pause before a model that is not ready is checked again; doubles up to the interval of all checks."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _FrontEnd:
    received_s: float
    knows: frozenset[str]


class Subscribers:
    """The front-ends that sent something within `forget_after_s`, by their identity, and which versions' configs each
    has."""

    def __init__(self, forget_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._forget_after_s = forget_after_s
        self._clock = clock
        self._front_ends: dict[bytes, _FrontEnd] = {}

    def received(self, front_end: bytes, knows: Iterable[str] | None = None) -> None:
        """A front-end sent a message. `knows`: the versions whose configs it has; None leaves them as they were."""
        before = self._front_ends.pop(front_end, None)
        if knows is None:
            knows = before.knows if before is not None else ()
        self._front_ends[front_end] = _FrontEnd(self._clock(), frozenset(knows))
        if len(self._front_ends) > MAX_FRONT_ENDS:
            del self._front_ends[next(iter(self._front_ends))]  # the one that was silent for longest

    def sent(self, front_end: bytes, versions: Iterable[str]) -> None:
        """A front-end was sent the configs of these versions."""
        known = self._front_ends.get(front_end)
        if known is not None:
            self._front_ends[front_end] = _FrontEnd(known.received_s, known.knows.union(versions))

    def knows(self, front_end: bytes) -> frozenset[str]:
        """The versions whose configs a front-end has."""
        known = self._front_ends.get(front_end)
        return known.knows if known is not None else frozenset()

    def present(self) -> tuple[bytes, ...]:
        """The front-ends that are not forgotten."""
        oldest_s = self._clock() - self._forget_after_s
        self._front_ends = {key: known for key, known in self._front_ends.items() if known.received_s >= oldest_s}
        return tuple(self._front_ends)


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """What a process that runs a worker can see of it.

    `silent_s`: seconds since the device last answered. `outstanding_images`: those that wait or run. `unready`: the
    models that failed their last self-check, or had none yet.
    """

    phase: Phase
    reason: str
    silent_s: float
    outstanding_images: int
    unready: tuple[str, ...]


class WorkerWedged(Exception):
    """A batch runs for far longer than any should; only a new process helps."""


class Worker:
    """Serves bundles at an endpoint: loads, checks itself, answers, drains. `run` is its whole life."""

    def __init__(
        self,
        bundles: Sequence[Bundle],
        make_runner: Callable[[Settings], Runner],
        settings: Settings,
        metrics: WorkerMetrics,
        tracing: Tracing = NO_TRACING,
        state: StateFolder = NOTHING_KEPT,
    ) -> None:
        self._registry = ModelRegistry(map(new_model, bundles))
        self._make_runner = make_runner
        self._settings = settings
        self._metrics = metrics
        self._tracing = tracing
        self._instance = uuid.uuid4().hex
        self._started_s = time.monotonic()
        self._state_folder = state
        self._start_time = StartTime((*settings.models, settings.device, *settings.precision), state)
        self._phase = Phase.STARTING
        self._reason = "the worker is loading its models"
        self._subscribers = Subscribers(settings.worker_timeout_ms / 1000)
        self._device_thread = DeviceThread("device")
        self._runner: Runner | None = None
        self._dispatcher: Dispatcher | None = None
        self._control: ModelControl | None = None
        self._requested_s = self._started_s
        """When the last job came."""
        self._check_due = asyncio.Event()
        """Set when a self-check should not wait for its interval."""

    async def run(self, endpoint: WorkerEndpoint, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then finish the jobs that wait or run.

        Raises:
            BundleInvalid: the weights of a configured bundle do not fit.
            WorkerWedged, DeviceLost: the device does not work any more.
        """
        self._endpoint = endpoint
        async with asyncio.TaskGroup() as tasks:
            receiving = tasks.create_task(endpoint.run(self._on_message, self._on_drained), name="receive")
            watching = tasks.create_task(watch_event_loop(self._metrics.event_loop_lag), name="event-loop")
            loop = asyncio.get_running_loop()
            self._runner = await loop.run_in_executor(self._device_thread, self._make_runner, self._settings)
            limits = BatchSizeLimits(self._settings.max_batch_images, self._settings.max_batch_mpx * 10**6)
            self._dispatcher = self._make_dispatcher(self._runner, limits)
            on_cpu = self._runner.device == "cpu"
            tuner = Tuner(
                self._dispatcher,
                limits,
                self._state_folder,
                self._runner.identity,
                lanes=self._runner.lanes,
                max_lanes=self._runner.max_lanes_per_batch,
                machine_load=lambda: os.getloadavg()[0] / (os.cpu_count() or 1) if on_cpu else 0.0,
            )
            loader = ModelLoader(
                self._registry,
                self._runner,
                self._device_thread,
                self._dispatcher,
                tuner,
                self._settings,
                self._metrics,
                self._announce,
            )
            await loader.start()
            allowed, spawn = self._settings.model_control, tasks.create_task
            self._control = ModelControl(endpoint, loader, allowed=allowed, spawn=spawn)
            serving = [
                receiving,
                watching,
                tasks.create_task(self._dispatcher.run(), name="dispatch"),
                tasks.create_task(self._watch_device(), name="watch-device"),
                tasks.create_task(self._keep_checking(loader, tuner), name="self-check"),
            ]
            await stop.wait()
            log.info("draining")
            drain_started_s = time.monotonic()
            await self._drain()
            log.info("drained", seconds=round(time.monotonic() - drain_started_s, 1))
            self._control.abandon()
            for task in serving:
                task.cancel()
        # The threads end by themselves: nobody waits for a batch that still runs.
        loader.close()
        self._dispatcher.close()
        self._device_thread.shutdown(wait=False)

    def health(self) -> WorkerHealth:
        """May be called from any thread."""
        unready = tuple(model.name for model in self._registry.served if model.unready_reason is not None)
        images = self._dispatcher.admission.outstanding_images if self._dispatcher is not None else 0
        return WorkerHealth(self._phase, self._reason, self._silent_s(), images, unready)

    def _make_dispatcher(self, runner: Runner, limits: BatchSizeLimits) -> Dispatcher:
        settings = self._settings
        self._metrics.queue_limits(settings.max_queue_images, settings.max_queue_mpx * 10**6)
        return Dispatcher(
            runner,
            self._device_thread,
            JobQueue(settings.max_queue_images, settings.max_queue_mpx * 10**6, settings.weights),
            limits,
            self._metrics,
            tracing=self._tracing,
            on_replies=self._endpoint.flush,
            on_not_finite=self._check_due.set,
        )

    def _on_message(self, envelope: Envelope) -> None:
        sender, message, frames = envelope
        if isinstance(message, Predict):
            self._predict(sender, message, frames)
        elif isinstance(message, Hello):
            self._subscribers.received(sender, message.knows)
            self._send_state(sender)
        elif isinstance(message, Cancel):
            if self._dispatcher is not None:
                self._dispatcher.cancel((sender, message.job))
            if self._control is not None:
                self._control.cancel((sender, message.job))
        else:
            self._control_models(sender, message)

    def _on_drained(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.step()

    def _predict(self, sender: bytes, message: Predict, frames: Frames) -> None:
        """Make a message a job, or answer it with its error."""
        now_s = self._requested_s = time.monotonic()
        model, dispatcher = self._registry.by_version.get(message.version), self._dispatcher
        try:
            if model is None:
                raise self._registry.missing(message.model)
            if self._phase is Phase.STARTING or dispatcher is None:
                raise Unavailable(self._reason, self._start_time.left_s())
            if model.unready_reason is not None:
                raise Unavailable(f"model {message.model!r} is not ready: {model.unready_reason}", UNREADY_RETRY_S)
            model_input = input_from_frames(message, frames)
        except ConvMLPError as error:
            self._endpoint.fail(sender, message.job, error)
            return
        except MalformedMessage as error:
            log.error("malformed message from a front-end", error=str(error), request_id=message.request_id)
            self._endpoint.fail(sender, message.job, Internal("the worker did not understand the front-end"))
            return
        traced = self._tracing.on and message.traceparent
        output_pixels = 0
        if model.bundle.config.task is Task.SEGMENT:
            original = message.geometry.original
            # A window's logits stay as they are, but its batch may have jobs with label maps: not 0.
            output_pixels = 1 if message.params.logits else original.height * original.width
        dispatcher.admit(
            Job(
                (sender, message.job),
                Shape(message.model, model.slot, message.height, message.width),
                model_input,
                message.params,
                now_s,
                now_s + message.budget_s,
                self._reply,
                message.request_id,
                self._tracing.remote(TraceContext(message.traceparent, message.tracestate)) if traced else NO_SPAN,
                output_pixels,
            )
        )

    def _reply(self, job: Job, result: JobResult) -> None:
        sender, number = job.key
        if isinstance(result.result, ConvMLPError):
            self._endpoint.fail(sender, number, result.result)
            return
        assert self._dispatcher is not None
        assert self._runner is not None
        # A front-end uses the last one that it receives.
        estimate = (
            self._dispatcher.admission.wait_estimate(job.shape, job.deadline_s - job.enqueued_s, job.output_pixels)
            if result.is_last
            else None
        )
        self._endpoint.answer(
            sender,
            number,
            result.result,
            result.queue_s,
            result.infer_s,
            result.batch_images,
            estimate,
            self._runner.precision(job.shape.slot),
        )

    def _control_models(self, sender: bytes, request: ControlRequest) -> None:
        self._subscribers.received(sender)  # the sender gets the State that follows from its request
        try:
            if self._phase is not Phase.READY or self._control is None:
                raise Unavailable(self._reason, self._retry_after_s())
            self._control.start(sender, request)
        except ConvMLPError as error:
            self._endpoint.fail(sender, request.job, error)

    def _announce(self) -> None:
        """Send every front-end the state that has changed, before it asks."""
        for front_end in self._subscribers.present():
            self._send_state(front_end)

    def _send_state(self, front_end: bytes) -> None:
        served = self._registry.served
        knows = self._subscribers.knows(front_end)
        device = self._runner.device if self._runner else ""
        state = State(
            instance=self._instance,
            phase=self._phase,
            reason=self._reason,
            retry_after_s=self._retry_after_s(),
            models=tuple(
                ModelState(
                    model.name,
                    model.version,
                    model.unready_reason is None,
                    device,
                    model.precision,
                    model.deployment.form,
                    model.deployment.largest_difference,
                    "" if model.config.accuracy is None else model.config.accuracy.model_dump_json(),
                )
                for model in served
            ),
            configs={model.version: model.config.model_dump_json() for model in served if model.version not in knows},
            silent_s=self._silent_s(),
            start_s=self._start_time.seconds,
            splits={name: dict(split) for name, split in self._registry.splits.items()},
        )
        self._subscribers.sent(front_end, state.configs)
        self._endpoint.send_state(front_end, state)

    def _retry_after_s(self) -> float:
        """See State."""
        if self._phase is Phase.READY and self._dispatcher is not None:
            return self._dispatcher.admission.drain_s()
        if self._phase is Phase.DRAINING:  # another worker takes its place
            return self._start_time.seconds or UNKNOWN_RETRY_S
        return self._start_time.left_s()

    def _silent_s(self) -> float:
        """See State. At its start a worker opens a device that may hang, and that has answered nothing yet."""
        if self._phase is Phase.STARTING or self._dispatcher is None:
            return time.monotonic() - self._started_s
        return self._dispatcher.executor.silent_s()

    async def _keep_checking(self, loader: ModelLoader, tuner: Tuner) -> None:
        interval_s = self._settings.self_check_interval_ms / 1000
        pause_s = FIRST_RECHECK_S
        while True:
            self._check_due.clear()
            ready = await loader.check()
            if self._phase is Phase.STARTING:
                self._phase, self._reason = Phase.READY, "ready"
                served = self._registry.served
                assert self._runner is not None
                await write_to_disk(self._start_time.ended, self._runner.measuring_s + tuner.measuring_s)
                models = [model.name for model in served if model.unready_reason is None]
                log.info("ready", models=models, start_s=round(self._start_time.seconds, 1))
                self._announce()
            await loader.refine(self._is_idle)
            wait_s = interval_s if ready else min(pause_s, interval_s)
            # Never more often: each request may set the event.
            await asyncio.sleep(min(FIRST_RECHECK_S, wait_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s - FIRST_RECHECK_S):
                    await self._check_due.wait()
            pause_s = FIRST_RECHECK_S if ready else min(2 * pause_s, interval_s)

    def _is_idle(self) -> bool:
        """Whether no front-end has sent a job for a while."""
        return self._phase is Phase.READY and time.monotonic() - self._requested_s > QUIET_S

    async def _watch_device(self) -> None:
        limit_s = self._settings.batch_timeout_ms / 1000
        while True:
            await asyncio.sleep(min(1.0, limit_s / 4))
            busy_s = self._dispatcher.executor.busy_s() if self._dispatcher else 0.0
            if busy_s > limit_s:
                raise WorkerWedged(f"a batch has been running for {busy_s:.0f} s")

    async def _drain(self) -> None:
        """Announce the end, then answer what front-ends sent before they received it."""
        self._phase, self._reason = Phase.DRAINING, "the worker is shutting down"
        self._announce()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_ms / 1000):
                if self._control is not None:
                    await self._control.close()
                await asyncio.sleep(2 * self._settings.heartbeat_interval_ms / 1000)
                if self._dispatcher is not None:
                    await self._dispatcher.wait_until_done()
