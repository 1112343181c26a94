"""Predictions for all transports of a front-end process: admit, choose the model, prepare, ask a worker, encode."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeGuard, TypeVar

from model.bundle import BundleConfig
from model.decode import check_pixels, read_header
from model.errors import ImageTooLarge, ImageUndecodable, UnsupportedFormat
from model.model_name import base_name, canonical_name
from model.tiles import TiledInput
from model.types import ClassifyOutput, DetectOutput, EmbedOutput, ModelInput, RawOutput, Size, Task
from service.errors import BadParameter, ModelNotFound, Overloaded, Refusal, Unavailable
from service.frontend.core.auth import Caller, Charge, network_of
from service.frontend.core.executor import PreparePool, Timed, Work
from service.frontend.core.image_fetcher import ImageFetcher
from service.frontend.core.model_control import ModelControl
from service.frontend.core.parameters import params_for
from service.frontend.core.request_log import RequestRecord
from service.frontend.core.sniffing import explained
from service.frontend.core.tiling import (
    TiledAnswer,
    TiledOutput,
    join_and_encode,
    predict_windows,
    tile_plan,
    tile_work,
)
from service.observability.histograms import exemplar_of
from service.observability.logs import request_id
from service.observability.metrics import FrontEndMetrics
from service.observability.tracing import Span, current_span, step
from service.settings import Settings
from service.types import ModelStatus, PredictRequest, Readiness, Reply, Timings
from service.wire.pool import WorkerPool
from service.wire.version_routes import Route
from service.wire.worker_client import WaitForecast
from service.wire.worker_view import WorkerAnswer

T = TypeVar("T")

Encode = Callable[[RawOutput, BundleConfig, Size], T]
"""Encodes a network's output for a transport. Also takes the model's config and the upright size of the image."""

SHORT_ANSWER = 20
"""Labels or boxes, without masks, that are encoded in less time than it takes to reach a thread."""

CALLER_SHARE = 4
"""A caller may have so many times as many images in progress as the process has room for, and bytes of bodies likewise.
It leaves a fifth of the limit for others (dynamic thresholds, Choudhury and Hahne 1998)."""
RESIZE_BYTES = 4
"""Of memory for each pixel of an image that is only resized."""
LABEL_MAP_BYTES = 1
"""For each pixel of an image."""
POST_BYTES = 4
"""Of memory for each pixel of the image that encoding masks or drawing takes."""
SMOOTHING = 0.1
"""Weight of the latest answer in the means of its times."""
NOTHING_KNOWN = (0.0, 0.0)


class ByteBudget:
    """Bounds the bytes that the bodies of all requests hold together to `limit`, and those of one caller to its share.

    `retry_after_s` estimates the seconds until a body fits again.
    """

    def __init__(self, limit: int, retry_after_s: Callable[[], float]) -> None:
        self._limit = limit
        self._retry_after_s = retry_after_s
        self._held = 0
        self._held_by: dict[str, int] = {}

    def take(self, record: RequestRecord, count: int) -> None:
        """Hold `count` more bytes for a request. Call `release` when the request no longer needs its body.

        Raises:
            Overloaded: the bodies would hold more than the limit, or the caller has its share of it.
        """
        held, held_by_caller = self._held, self._held_by.get(record.caller, 0)
        if held + count > self._limit or held_by_caller >= CALLER_SHARE * (self._limit - held):
            detail = f"the bodies of requests in progress hold {held} bytes of at most {self._limit}"
            if held_by_caller != held:
                detail += f", this caller's {held_by_caller}"
            raise Overloaded(f"{detail}; try again later", self._retry_after_s(), Refusal.BODIES)
        self._held = held + count
        self._held_by[record.caller] = held_by_caller + count
        record.held_bytes += count

    def release(self, record: RequestRecord) -> None:
        """Release all bytes that a request holds."""
        if not record.held_bytes:
            return
        self._held -= record.held_bytes
        if left := self._held_by[record.caller] - record.held_bytes:
            self._held_by[record.caller] = left
        else:
            del self._held_by[record.caller]
        record.held_bytes = 0


class Engine:
    """Predicts on the workers. Transports use nothing below it."""

    def __init__(
        self, workers: WorkerPool, threads: PreparePool, settings: Settings, metrics: FrontEndMetrics, charge: Charge
    ) -> None:
        self._workers = workers
        self.threads = threads
        """Where images are decoded and encoded."""
        self._charge = charge
        self.control = ModelControl(workers, settings)
        self.settings = settings
        self.metrics = metrics
        self._limits = settings.decode_limits
        self._images = 0
        metrics.in_flight.set_function(lambda: self._images)  # read at each scrape, not counted for each request
        self._images_of: dict[str, int] = {}
        """Images in progress by caller."""
        self._after_s: dict[tuple[Task, bool], tuple[float, float]] = {}
        """Means by task, and whether a picture is drawn: the seconds of a batch, and those of encoding the answer."""
        self.bodies = ByteBudget(settings.max_in_flight_bytes, self.retry_after_s)
        self.fetcher = ImageFetcher(settings, metrics, self.bodies.take)

    async def predict(self, request: PredictRequest, encode: Encode[T], *, draws: bool = False) -> Reply[T]:
        """The answer for one image.

        `encode` runs in a thread, unless the answer is short. `draws`: encoding renders a picture, so always use a
        thread. Whatever a thread does, the call ends at the request's deadline.

        Raises:
            ConvMLPError: the domain errors; see `model.errors` and `service.errors`.
        """
        model = self.current(request.model)
        try:
            if not current_span().recording:
                return await self._predict(request, model, encode, draws, None)
            attributes = {"convmlp.request_id": request.id, "convmlp.model": model.config.name}
            with step("predict", attributes) as span:
                return await self._predict(request, model, encode, draws, span)
        except (ImageUndecodable, UnsupportedFormat) as error:
            if not isinstance(request.image, bytes):
                raise
            raise explained(error, request.image) from None

    async def _predict(
        self, request: PredictRequest, model: ModelStatus, encode: Encode[T], draws: bool, span: Span | None
    ) -> Reply[T]:
        config = model.config
        if request.classes or request.params.threshold is not None:  # refuses before decoding
            params_for(config, request.params, request.classes)
        preparing = self.preparation(request, config)
        self.begin(preparing.caller, preparing.images)
        try:
            reservation = self.reserve(model, preparing, draws, preparing.images)
            try:
                self.threads.submit(preparing)
                prepared = await preparing.future
            finally:
                reservation.prepared(preparing.images)
            self.metrics.stages["decode", config.task].add(
                (prepared.seconds, None if span is None else exemplar_of(span.ids, prepared.seconds))
            )
            if span is not None:
                span.record("decode", prepared.started_s, prepared.started_s + prepared.seconds)
            return await self.answer(request, model, preparing, prepared.value, prepared.seconds, encode, draws, span)
        finally:
            self.end(preparing.caller, preparing.images)
            self.threads.release(preparing)

    async def answer(
        self,
        request: PredictRequest,
        model: ModelStatus,
        preparing: Work[Any],
        model_input: ModelInput | TiledInput,
        decode_s: float,
        encode: Encode[T],
        draws: bool = False,
        span: Span | None = None,
    ) -> Reply[T]:
        """The answer for an image that was prepared, in `decode_s`, for `model`. Raises as `predict`."""
        config, params = model.config, request.params
        if request.classes or params.threshold is not None:
            params = params_for(config, params, request.classes)
        answer: WorkerAnswer | TiledAnswer
        if isinstance(model_input, TiledInput):
            self._charge(Caller(request.caller), len(model_input.inputs) - 1)
            size = model_input.grid.picture
            answer = await predict_windows(self._workers, request, model, model_input, params)
        else:
            size = model_input.geometry.original
            answer = await self._workers.predict(request.id, model, model_input, params, request.deadline_s)
        output = answer.output
        if not draws and _is_short(output):
            started_s = time.monotonic()
            payload = encode(output, config, size)
            encoded = Timed(payload, started_s, time.monotonic() - started_s)
        else:
            encoded = await self.threads.run(_encoding(preparing, output, config, size, encode, draws=draws))
        self.metrics.stages["post", config.task].add(
            (encoded.seconds, None if span is None else exemplar_of(span.ids, encoded.seconds))
        )
        if span is not None:
            span.record("post", encoded.started_s, encoded.started_s + encoded.seconds)
        if isinstance(answer, WorkerAnswer):
            infer_s, post_s = self._after_s.get((config.task, draws), (answer.infer_s, encoded.seconds))
            self._after_s[config.task, draws] = (
                infer_s + SMOOTHING * (answer.infer_s - infer_s),
                post_s + SMOOTHING * (encoded.seconds - post_s),
            )
        timings = Timings(decode_s, answer.queue_s, answer.infer_s, encoded.seconds)
        return Reply(encoded.value, timings, answer.batch_images, answer.precision)

    def expected_s(self, model: ModelStatus) -> float:
        """About how long the network and the encoding take for an image; 0 where nothing is known."""
        return sum(self._after_s.get((model.config.task, False), NOTHING_KNOWN))

    def begin(self, caller: str, images: int) -> None:
        """Count images of a caller that are in progress until `end`. Each model that answers an image counts.

        Raises:
            Overloaded: there are too many. Where none is in progress any number may be.
        """
        of_caller, in_progress = self._images_of.get(caller, 0), self._images
        more = images - 1
        if in_progress and of_caller + more >= CALLER_SHARE * (self.settings.max_in_flight - in_progress - more):
            raise self._full(of_caller)
        self._images = in_progress + images
        self._images_of[caller] = of_caller + images

    def end(self, caller: str, images: int) -> None:
        """The images are no longer in progress."""
        self._images -= images
        if of_caller := self._images_of[caller] - images:
            self._images_of[caller] = of_caller
        else:
            del self._images_of[caller]

    def reserve(self, model: ModelStatus, preparing: Work[Any], draws: bool = False, images: int = 1) -> WaitForecast:
        """Slots of a worker for an image that is about to be prepared, as so many inputs, perhaps for several models.

        Raises as `WorkerPool.reserve`.
        """
        infer_s, post_s = self._after_s.get((model.config.task, draws), NOTHING_KNOWN)
        preparing.after_s = max(preparing.after_s, infer_s + post_s)
        prepared_s = self.threads.expected_s(preparing)
        ready_s = prepared_s + infer_s if prepared_s else 0.0
        return self._workers.reserve(model, preparing.deadline_s, ready_s, post_s, images)

    def resolve(self, task: Task, name: str | None, purpose: str = "") -> ModelStatus:
        """The model that answers a request: the named one, or the first of its task; of several versions the one that
        the split gives it. `purpose`: what the request is for, in errors, where that is not the task.

        Raises:
            ModelNotFound: no such model or version, or no model of this task.
            BadParameter: the model does another task.
            Unavailable: no worker has reported its models yet.
        """
        workers = self._workers
        route = workers.default_routes.get(task) if name is None else workers.routes.get(name)
        if route is None:
            if name is not None:
                self._route(name)
            self.models()
            raise ModelNotFound(f"this service has no model for the task {task.value!r}; served: {self._names()}")
        model = route.only or self._chosen(route)
        if model.config.task != task:
            raise BadParameter(
                f"model {name!r} is for {model.config.task.value!r}, not for {purpose or task.value!r}; "
                f"leave `model` out or name one for {task.value!r}: {self._names(task)}",
                "model",
            )
        return model

    def resolve_any(self, name: str) -> ModelStatus:
        """As `resolve`, for a request that means the task of its model. Raises ModelNotFound, Unavailable."""
        route = self._route(name)
        return route.only or self._chosen(route)

    def resolve_all(self) -> list[ModelStatus]:
        """For a request that leaves the choice among models open: of each served model the version that answers it.

        Raises:
            Unavailable: no worker has reported its models yet.
        """
        names = dict.fromkeys(base_name(model.config.name) for model in self.models())
        return [self.resolve_any(name) for name in names]

    def model(self, name: str) -> ModelStatus:
        """One served model or version. A name with several versions means the one that answers most requests.

        Raises:
            ModelNotFound, Unavailable: as `resolve`.
        """
        return self._route(name).main

    def versions(self, name: str) -> tuple[ModelStatus, ...]:
        """The served versions of a model, in the order in which they were served. Raises as `model`."""
        self._route(name)
        return tuple(model for model in self.models() if base_name(model.config.name) == base_name(name))

    def is_default(self, model: ModelStatus) -> bool:
        """Whether most requests of its task that name no model are answered by this one."""
        route = self._workers.default_routes.get(model.config.task)
        return route is not None and route.main.config.name == model.config.name

    def share(self, model: ModelStatus) -> float:
        """The share of the requests for the model's name that this version answers while all are ready, 0 to 1."""
        route = self._workers.routes.get(base_name(model.config.name))
        return 0.0 if route is None else route.share(model)

    def readiness_of_models(self) -> dict[str, bool]:
        """By the name of each served version, and of each model: whether requests for it are answered.

        Raises:
            Unavailable: no worker has reported its models yet.
        """
        models = self.models()
        names = [base_name(model.config.name) for model in models]
        return {model.config.name: model.ready for model in models} | {name: self._route(name).ready for name in names}

    def _route(self, name: str) -> Route:
        """Raises ModelNotFound, Unavailable: as `resolve`."""
        route = self._workers.routes.get(name)
        if route is None:
            raise ModelNotFound(f"there is no model {canonical_name(name)!r}; served: {self._names()}")
        return route

    def _chosen(self, route: Route) -> ModelStatus:
        """The version for the request that is being handled, of several."""
        model, meant = route.choose(request_id.get())
        if model is not meant:
            self.metrics.rerouted(meant.config.name)
        return model

    def models(self) -> tuple[ModelStatus, ...]:
        """The models that the worker serves, in its order; still known while a lost worker is being restarted.

        Raises:
            Unavailable: no worker has reported its models yet.
        """
        models = self._workers.models
        if models is None:
            raise Unavailable(self.readiness().reason, self.readiness().retry_after_s)
        return models

    def readiness(self) -> Readiness:
        return self._workers.readiness()

    def next_change(self) -> asyncio.Event:
        """An event that is set at the next change of `models` or `readiness`."""
        return self._workers.next_change()

    def deadline(self, timeout_ms: int | None) -> float:
        """The deadline of a request that came now, on the clock of `time.monotonic`."""
        limit = self.settings.request_timeout_ms
        return time.monotonic() + min(timeout_ms if timeout_ms is not None else limit, limit) / 1000

    def preparation(self, request: PredictRequest, config: BundleConfig) -> Work[Any]:
        """The decoding and resizing of a request's image. Raises as `read_header`, `tile_plan` and `tile_work`."""
        image, caller = request.image, request.caller
        header = None
        if isinstance(image, bytes):
            header = read_header(image, self._limits)
            size, cost, nbytes = header.size, header.decode_cost, header.decode_bytes
        else:
            size = image.size
            check_pixels(size, self._limits)
            cost = size.height * size.width
            nbytes = RESIZE_BYTES * cost
        if nbytes > self.threads.max_bytes:
            raise ImageTooLarge(
                f"to decode the image takes up to {nbytes:,} bytes of memory; "
                f"the limit is {self.threads.max_bytes:,}; scale it down"
            )
        if ":" in caller:
            caller = network_of(caller)
        output_bytes = LABEL_MAP_BYTES * size.height * size.width if config.task is Task.SEGMENT else 0
        args = (image, config.preprocessing, header)
        work = Work(self.threads.prepare, args, request.deadline_s, caller, config.name, cost, nbytes, output_bytes)
        if request.tiling is not None:
            plan = tile_plan(request.tiling, size, config, request.params, self.settings.max_tiles)
            return work if plan is None else tile_work(work, plan, self._limits, self.threads.max_bytes)
        return work

    def _full(self, of_caller: int) -> Overloaded:
        limit = self.settings.max_in_flight
        detail = (
            f"{self._images} images are in progress, which is the limit"
            if self._images >= limit
            else f"{of_caller} images of this caller are in progress, which is its share of the limit of {limit}"
        )
        return Overloaded(f"{detail}; try again later", self.retry_after_s(), Refusal.IN_FLIGHT)

    def retry_after_s(self) -> float:
        """Expected seconds until everything that waits here, or at the worker with the least, is done."""
        return max(self._workers.retry_after_s(), self.threads.drain_s)

    def current(self, model: ModelStatus) -> ModelStatus:
        """The model as it is served now: it may have changed while the request's body arrived.

        One that was unloaded meanwhile stays as it was: workers still answer it for a while.

        Raises:
            Unavailable: it is not ready.
        """
        for served in self._workers.models or ():
            if served is model or served.config.name == model.config.name:
                model = served
                break
        if not model.ready:
            readiness = self.readiness()
            raise Unavailable(readiness.reason, readiness.retry_after_s)
        return model

    def _names(self, task: Task | None = None) -> str:
        """The served models, or those of a task. Raises Unavailable."""
        names = [model.config.name for model in self.models() if task in (None, model.config.task)]
        return ", ".join(names) or "none"


def _is_short(output: RawOutput | TiledOutput) -> TypeGuard[ClassifyOutput | DetectOutput | EmbedOutput]:
    """Whether it is encoded in less time than it takes to reach a thread."""
    match output:
        case ClassifyOutput() | DetectOutput(mask_logits=None):
            return len(output.scores) <= SHORT_ANSWER
        case _:
            return isinstance(output, EmbedOutput)


def _encoding(
    prepared: Work[Any],
    output: RawOutput | TiledOutput,
    config: BundleConfig,
    size: Size,
    encode: Encode[T],
    *,
    draws: bool,
) -> Work[T]:
    """The encoding of the answer for an image that was prepared, in a thread."""
    call = partial(join_and_encode, encode) if isinstance(output, TiledOutput) else encode
    encoding = Work(call, (output, config, size), prepared.deadline_s, prepared.caller, urgent=True)
    is_list = isinstance(output, ClassifyOutput | EmbedOutput | DetectOutput)
    if draws or not is_list or (isinstance(output, DetectOutput) and output.mask_logits is not None):
        encoding.nbytes = size.height * size.width * POST_BYTES
    if draws:  # on the picture, which is decoded once more
        encoding.nbytes += prepared.nbytes
    return encoding
