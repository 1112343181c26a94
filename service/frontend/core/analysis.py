"""Several models on one image: it is decoded once, and their jobs are in flight together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from msgspec.structs import replace

from model.containers.header import Header, ImageFormat
from model.decode import DecodeLimits, decode_picture, depends_on_reader
from model.errors import ConvMLPError, ImageUndecodable, UnsupportedFormat
from model.preprocess import content_size, largest_input_bytes, prepare_picture
from model.spec import Preprocessing
from model.tiles import TiledInput
from model.types import ModelInput, Task
from service.errors import ModelNotFound
from service.frontend.core.engine import LABEL_MAP_BYTES, POST_BYTES, Encode, Engine
from service.frontend.core.executor import Timed, Work
from service.frontend.core.parameters import ANALYZE
from service.frontend.core.sniffing import explained
from service.frontend.core.tiling import TilePlan, charge_tiles, require_time, tile_plan
from service.observability.histograms import exemplar_of
from service.observability.tracing import current_span, step
from service.types import ModelStatus, PredictRequest, Reply
from service.wire.worker_client import WaitForecast

T = TypeVar("T")
Inputs = tuple[ModelInput | TiledInput, ...]
"""Of the models, in their order."""
Outcome = Reply[T] | Exception
"""What one model answered for an image, or why it did not."""


Models = Mapping[str, ModelStatus]
"""By the name of their answers: the task, or the model's own name where models were named."""


def models_of(engine: Engine, tasks: tuple[Task, ...], names: tuple[str, ...]) -> Models:
    """The named models; or those of the tasks; or, where neither are named, those of all tasks that have one.

    Raises:
        ModelNotFound, Unavailable: as `Engine.resolve`.
    """
    if names:
        return {name: engine.resolve_any(name) for name in names}
    if tasks:
        return {task.value: engine.resolve(task, None) for task in tasks}
    served = {model.config.task for model in engine.models()}
    models = {task.value: engine.resolve(task, None) for task in Task if task in served}
    if not models:
        raise ModelNotFound("this service has no model; see /models")
    return models


class Analysis(Generic[T]):
    """One image and the models that it is for. Each is asked by a request, whose answer it would have alone.

    `requests` have one encoded image, one deadline and one caller, and a model and an encoder each.
    """

    def __init__(self, engine: Engine, requests: Sequence[PredictRequest]) -> None:
        self._engine = engine
        self._limits = engine.settings.decode_limits
        self._fast = engine.settings.fast_decode
        self._requests = requests
        self._outcomes: list[Outcome[T] | None] = [None] * len(requests)
        self._models: dict[int, ModelStatus] = {}
        """Those that can answer, by their position."""
        self._plans: dict[int, TilePlan] = {}
        """How the image is cut for those that get it in windows."""

    async def run(
        self,
        encoders: Sequence[Encode[T]],
        draw: Callable[[list[Outcome[T]]], bytes] | None = None,
    ) -> tuple[list[Outcome[T]], Timed[bytes] | None]:
        """The outcome of each request, in their order; one that fails costs no other its answer.

        `draw` gets the outcomes in a thread, and draws them on the image.

        Raises:
            ConvMLPError: the image cannot be decoded, or there are too many in progress; or no model answers, then with
                the error of the first.
        """
        image = self._requests[0].image
        assert isinstance(image, bytes)
        try:
            return await self._run(image, encoders, draw)
        except (ImageUndecodable, UnsupportedFormat) as error:
            raise explained(error, image) from None

    async def _run(
        self, image: bytes, encoders: Sequence[Encode[T]], draw: Callable[[list[Outcome[T]]], bytes] | None
    ) -> tuple[list[Outcome[T]], Timed[bytes] | None]:
        for position, request in enumerate(self._requests):
            try:
                self._models[position] = self._engine.current(request.model)
            except ConvMLPError as error:
                self._outcomes[position] = error
        self._require(self._models)
        preparing = self._preparation(image)
        caller, count = preparing.caller, preparing.images
        self._engine.begin(caller, count)
        try:
            prepared = await self._prepared(preparing)
            inputs = dict(zip(self._models, prepared.value, strict=True))
            # The longest first: the answer is complete when the last one is, and cores may be fewer than models.
            longest_first = sorted(inputs, key=lambda position: -self._engine.expected_s(self._models[position]))
            answering = {
                position: self._answer(position, preparing, inputs[position], prepared.seconds, encoders[position])
                for position in longest_first
                if self._outcomes[position] is None
            }
            for position, outcome in zip(
                answering, await asyncio.gather(*answering.values(), return_exceptions=True), strict=True
            ):
                if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                    raise outcome
                self._outcomes[position] = outcome
            outcomes = [outcome for outcome in self._outcomes if outcome is not None]
            self._require(any(isinstance(outcome, Reply) for outcome in outcomes))
            if draw is None:
                return outcomes, None
            drawing = Work(draw, (outcomes,), preparing.deadline_s, caller, urgent=True)
            drawing.nbytes = preparing.nbytes + POST_BYTES * _pixels(prepared.value[0])
            return outcomes, await self._engine.threads.run(drawing)
        finally:
            self._engine.end(caller, count)
            self._engine.threads.release(preparing)

    def _require(self, something: object) -> None:
        """Raises the first error unless there is something."""
        if not something:
            raise next(outcome for outcome in self._outcomes if isinstance(outcome, Exception))

    async def _prepared(self, preparing: Work[Inputs]) -> Timed[Inputs]:
        """The inputs of all models. The outcome of one that would answer too late is its error.

        Raises:
            ConvMLPError: the image cannot be decoded, or all would be too late.
        """
        reservations: list[tuple[WaitForecast, int]] = []
        try:
            for position, model in self._models.items():
                images = self._images(position)
                try:
                    reservations.append((self._engine.reserve(model, preparing, images=images), images))
                except ConvMLPError as error:
                    self._outcomes[position] = error
            self._require(reservations)
            self._engine.threads.submit(preparing)
            prepared = await preparing.future
        finally:
            for reservation, images in reservations:
                reservation.prepared(images)
        span = current_span()
        self._engine.metrics.stages["decode", ANALYZE].add((prepared.seconds, exemplar_of(span.ids, prepared.seconds)))
        if span.recording:
            span.record("decode", prepared.started_s, prepared.started_s + prepared.seconds)
        return prepared

    async def _answer(
        self,
        position: int,
        preparing: Work[Any],
        model_input: ModelInput | TiledInput,
        decode_s: float,
        encode: Encode[T],
    ) -> Reply[T]:
        request, model = self._requests[position], self._models[position]
        if not current_span().recording:
            return await self._engine.answer(request, model, preparing, model_input, decode_s, encode)
        attributes = {"convmlp.request_id": request.id, "convmlp.model": model.config.name}
        with step("predict", attributes) as span:
            return await self._engine.answer(request, model, preparing, model_input, decode_s, encode, span=span)

    def _images(self, position: int) -> int:
        """How many network inputs a model gets, at most."""
        return self._plans[position].jobs if position in self._plans else 1

    def _preparation(self, image: bytes) -> Work[Inputs]:
        """Decoding the image, and resizing it for each model, in windows if it is to be cut. Raises as
        `Engine.preparation`."""
        positions = list(self._models)
        first = replace(self._requests[positions[0]], tiling=None)
        alone = self._engine.preparation(first, self._models[positions[0]].config)
        header: Header = alone.args[-1]
        configs = [model.config for model in self._models.values()]
        specs = tuple(config.preprocessing for config in configs)
        self._plans = self._tile_plans(header)
        plans = tuple(self._plans.get(position) for position in positions)
        decodings = decodings_of(specs, plans, header, fast=self._fast)
        pixels = header.size.height * header.size.width
        label_maps = LABEL_MAP_BYTES * pixels * sum(config.task is Task.SEGMENT for config in configs)
        work: Work[Inputs] = Work(
            prepare_for_all,
            (),
            alone.deadline_s,
            alone.caller,
            "+".join(config.name for config in configs),
            alone.cost * len(decodings),
            alone.nbytes,
            label_maps + sum(map(largest_input_bytes, specs)),
            images=sum(map(self._images, positions)),
        )
        before_each = partial(require_time, work)
        work.args = (image, specs, plans, decodings, self._limits, header, self._fast, before_each)
        if self._plans:
            charge_tiles(work, self._plans.values(), header.size, self._engine.threads.max_bytes)
        return work

    def _tile_plans(self, header: Header) -> dict[int, TilePlan]:
        """Of the requests that want tiles, by their position. Raises ImageTooLarge as `tile_plan`."""
        limit = self._engine.settings.max_tiles
        plans: dict[int, TilePlan] = {}
        for position, model in self._models.items():
            request = self._requests[position]
            if request.tiling is not None:
                plan = tile_plan(request.tiling, header.size, model.config, request.params, limit)
                if plan is not None:
                    plans[position] = plan
        return plans


def decodings_of(
    specs: Sequence[Preprocessing], plans: Sequence[TilePlan | None], header: Header, *, fast: bool
) -> tuple[tuple[int, ...], ...]:
    """How often an image is decoded, and for which specs, by position: those whose pixels are the same share one.

    `fast`: a JPEG is decoded at the scale that a spec needs, unless it is cut into windows.
    """
    by_reader, by_scale = depends_on_reader(header), fast and header.format is ImageFormat.JPEG
    groups: dict[object, list[int]] = {}
    for position, (spec, plan) in enumerate(zip(specs, plans, strict=True)):
        groups.setdefault((by_reader and spec.reader, by_scale and plan is None and position), []).append(position)
    return tuple(map(tuple, groups.values()))


def prepare_for_all(
    image: bytes,
    specs: Sequence[Preprocessing],
    plans: Sequence[TilePlan | None],
    decodings: Sequence[Sequence[int]],
    limits: DecodeLimits,
    header: Header,
    fast: bool,
    before_each: Callable[[], None],
) -> Inputs:
    """The network input, or the windows, for each spec, from one decoded picture for each of `decodings`. Call it in a
    thread.

    Raises:
        ImageUndecodable, UnsupportedFormat, ImageTooLarge, OutOfMemory: as `model.decode.decode`.
        ImageTooLarge, DeadlineExceeded: as `TilePlan.prepare`.
    """
    inputs: dict[int, ModelInput | TiledInput] = {}
    for positions in decodings:
        first = specs[positions[0]]
        needed = partial(content_size, spec=first) if fast and plans[positions[0]] is None else None
        picture = decode_picture(image, limits, needed, header, first.reader)
        for position in positions:
            plan = plans[position]
            inputs[position] = (
                prepare_picture(picture, specs[position]) if plan is None else plan.prepare(picture, before_each)
            )
        del picture  # before the next one is decoded
    return tuple(inputs[position] for position in range(len(specs)))


def _pixels(model_input: ModelInput | TiledInput) -> int:
    original = model_input.grid.picture if isinstance(model_input, TiledInput) else model_input.geometry.original
    return original.height * original.width
