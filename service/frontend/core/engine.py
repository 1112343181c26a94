"""Room for requests' bodies: how many bytes all of them together may hold.

Engine.predict: admit → prepare → worker → postprocess. One engine a front-end process, for every transport.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from model.postprocess.results import postprocess
from model.types import ClassifyOutput, DetectOutput, RawOutput, Result, Task
from service.errors import BadParameter, Forbidden, ModelNotFound, Overloaded, Refusal, Unavailable
from service.frontend.core.executor import PreparePool
from service.observability.metrics import FrontEndMetrics
from service.observability.tracing import step
from service.settings import Settings
from service.types import ModelStatus, PredictRequest, Readiness, Reply, StoredModel, Timings
from service.wire.messages import MODEL_CONTROL_OFF
from service.wire.pool import WorkerPool


class ByteBudget:
    """`limit` bytes. `retry_after_s` tells in how many seconds there may be room again."""

    def __init__(self, limit: int, retry_after_s: Callable[[], float]) -> None:
        self._limit = limit
        self._retry_after_s = retry_after_s
        self._held = 0

    def take(self, count: int) -> None:
        """Raises Overloaded: there is no room for so many more."""
        if self._held + count > self._limit:
            raise Overloaded(
                f"the requests in hand hold {self._held} bytes, {self._limit} is the most; try again later",
                self._retry_after_s(),
                Refusal.BODIES,
            )
        self._held += count

    def give_back(self, count: int) -> None:
        self._held -= count


class Share:
    """What one request has of a budget, given back at its end: use as a context manager."""

    __slots__ = ("_budget", "_held")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._held = 0

    def __enter__(self) -> Callable[[int], None]:
        return self.take

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self._held)

    def take(self, count: int) -> None:
        """Raises Overloaded: there is no room for so many more."""
        self._budget.take(count)
        self._held += count


T = TypeVar("T")


SHORT = 20
"""Rows of an answer that are written faster than a thread is reached."""


class Engine:
    """Answers requests with the help of the workers. Front-ends see nothing below it."""

    def __init__(
        self, workers: WorkerPool, workshop: PreparePool, settings: Settings, metrics: FrontEndMetrics
    ) -> None:
        self._workers = workers
        self._workshop = workshop
        self._settings = settings
        self._metrics = metrics
        self._images = 0
        self._bodies = ByteBudget(settings.max_in_flight_bytes, workers.retry_after_s)

    async def predict(self, request: PredictRequest, encode: Callable[[Result], T], *, draws: bool = False) -> Reply[T]:
        """Answer for one image. `encode` turns the result into what the transport sends, in a thread, or here where
        it has only a few names and numbers to write; `draws`: it does more than to write.

        Raises:
            ConvMLPError: the domain errors; see `model.errors` and `service.errors`.
        """
        model = self.resolve(request.task, request.model)
        config, task, deadline_s = model.config, request.task, request.deadline_s
        self._admit(model)
        try:
            with step("predict", {"convmlp.request_id": request.id, "convmlp.model": config.name}) as span:
                reservation = self._workers.reserve(model, deadline_s)
                try:
                    model_input = await self._workshop.prepare(request.image, config.preprocessing, deadline_s)
                finally:
                    reservation.prepared()
                self._metrics.stage("decode", task, model_input.seconds)
                span.record("decode", model_input.started_s, model_input.ended_s)
                answer = await self._workers.predict(request.id, model, model_input.value, request.params, deadline_s)
                size = model_input.value.geometry.original
                output = answer.output

                def encoded() -> T:
                    return encode(postprocess(output, config, size))

                if _is_short(output) and not draws:
                    payload = self._workshop.run_here(encoded)
                else:
                    payload = await self._workshop.run(encoded, deadline_s)
                self._metrics.stage("post", task, payload.seconds)
                span.record("post", payload.started_s, payload.ended_s)
        finally:
            self._leave()
        return Reply(
            id=request.id,
            model=config.name,
            weights_sha256=config.weights_sha256,
            size=size,
            payload=payload.value,
            timings=Timings(model_input.seconds, answer.queue_s, answer.infer_s, payload.seconds),
            batch_images=answer.batch_images,
        )

    def resolve(self, task: Task, name: str | None) -> ModelStatus:
        """The model that a request means: the named one, or the first of its task.

        Raises:
            ModelNotFound: no such model, or none of this task.
            BadParameter: the model does another task.
            Unavailable: it is not known yet what the worker serves.
        """
        if name is None:
            for model in self.models():
                if model.config.task == task:
                    return model
            raise ModelNotFound(f"this service has no model for the task {task.value!r}; see /models")
        model = self.model(name)
        if model.config.task != task:
            raise BadParameter(
                f"model {name!r} is for {model.config.task.value!r}, not for {task.value!r}; "
                f"leave `model` out or name one for {task.value!r} (see /models)",
                "model",
            )
        return model

    def model(self, name: str) -> ModelStatus:
        """One served model.

        Raises:
            ModelNotFound, Unavailable: as `resolve`.
        """
        for status in self.models():
            if status.config.name == name:
                return status
        known = ", ".join(status.config.name for status in self.models())
        raise ModelNotFound(f"there is no model {name!r} here; served: {known}")

    def models(self) -> tuple[ModelStatus, ...]:
        """What the worker serves, in its order; still known while a lost worker is being restarted.

        Raises:
            Unavailable: no worker has said yet what it serves.
        """
        models = self._workers.models()
        if models is None:
            raise Unavailable(self.readiness().reason, self.readiness().retry_after_s)
        return models

    async def repository(self, deadline_s: float | None = None) -> tuple[StoredModel, ...]:
        """Everything in the worker's store, by name, and everything that it serves.

        Raises:
            DeadlineExceeded: there was no answer by `deadline_s`, on the clock of `time.monotonic`; where it is left
                out, `model_control_timeout_ms` from now.
            Overloaded: too many such requests wait already.
            Unavailable: there is no worker, it is starting or draining, or it was lost meanwhile.
        """
        return await self._workers.repository(self._control_deadline(deadline_s))

    async def load(self, name: str, deadline_s: float | None = None) -> None:
        """Serve a model of the store. When this returns it is ready, and the last of its task.

        One that is served already is read again from disk: where its weights or its config changed, or where it
        is not ready, it is loaded anew and takes the old one's place, which answers until then; else nothing is
        done. A call that is cancelled, fails or is late leaves everything as it was; only where one of several
        workers could not take a changed model do the others keep the change.

        Raises:
            Forbidden: the service is configured not to let callers do this.
            ModelNotFound: there is none of that name in the store.
            Internal: it cannot be served: its bundle is broken, or it does not give its committed answer.
            Overloaded: the device has no room for it, or too many such requests wait already.
            DeadlineExceeded, Unavailable: as `repository`.
        """
        self._check_model_control()
        await self._workers.load(name, self._control_deadline(deadline_s))

    async def unload(self, name: str, deadline_s: float | None = None) -> None:
        """Serve a model no more. What the worker has in hand for it is answered first, then its memory is free.

        Requests that come meanwhile are told ModelNotFound. Any model may go: without the last one the service is
        not ready, and says why. Once begun it is done to its end, even if the caller has left.

        Raises:
            Forbidden: the service is configured not to let callers do this.
            ModelNotFound: it is not served.
            Overloaded: too many such requests wait already.
            DeadlineExceeded, Unavailable: as `repository`.
        """
        self._check_model_control()
        await self._workers.unload(name, self._control_deadline(deadline_s))

    def readiness(self) -> Readiness:
        return self._workers.readiness()

    def next_change(self) -> asyncio.Event:
        """What is set as soon as `models` or `readiness` say something else than now."""
        return self._workers.next_change()

    def deadline(self, timeout_ms: int | None) -> float:
        """The deadline of a request that came now, on the clock of `time.monotonic`."""
        limit = self._settings.request_timeout_ms
        return time.monotonic() + min(timeout_ms if timeout_ms is not None else limit, limit) / 1000

    def _check_model_control(self) -> None:
        if not self._settings.model_control:
            raise Forbidden(MODEL_CONTROL_OFF)

    def _control_deadline(self, deadline_s: float | None) -> float:
        latest_s = time.monotonic() + self._settings.model_control_timeout_ms / 1000
        return latest_s if deadline_s is None else min(deadline_s, latest_s)

    def body_budget(self) -> AbstractContextManager[Callable[[int], None]]:
        """Room for a request's body: call the given function with the bytes of each chunk that came.

        Raises:
            Overloaded: all bodies together would be over `max_in_flight_bytes`.
        """
        return Share(self._bodies)

    def _admit(self, model: ModelStatus) -> None:
        if not model.ready:
            readiness = self.readiness()
            raise Unavailable(readiness.reason, readiness.retry_after_s)
        if self._images >= self._settings.max_in_flight:
            raise Overloaded(
                f"{self._images} images are in hand already, which is the most; try again later",
                self._workers.retry_after_s(),
                Refusal.IN_FLIGHT,
            )
        self._images += 1
        self._metrics.in_flight(1)

    def _leave(self) -> None:
        self._images -= 1
        self._metrics.in_flight(-1)


def _is_short(output: RawOutput) -> bool:
    match output:
        case ClassifyOutput():
            return len(output.scores) <= SHORT
        case DetectOutput(mask_logits=None):
            return len(output.scores) <= SHORT
        case _:
            return False
