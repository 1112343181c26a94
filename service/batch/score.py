"""Samples → rows: decoding, the networks and encoding, in one process with one device.

Each thread takes a unit, and batches its pictures by shape. The steps and the functions are those of the service, so a
row has what the REST API answers for the picture.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote

import msgspec
import numpy as np

from model.decode import read_header
from model.errors import ConvMLPError, ImageTooLarge
from model.postprocess.results import require_finite
from model.tiles import TiledInput
from model.types import Batch, ModelInput, QueryParams, RawOutput, Size
from service.batch.plan import Plan
from service.batch.samples import Sample
from service.errors import BadParameter, Internal, Overloaded, RetryLater
from service.frontend.api.rest.schemas import encode_analysis, encode_error, encode_output
from service.frontend.core.analysis import decodings_of, prepare_for_all
from service.frontend.core.sniffing import explained
from service.frontend.core.tiling import TiledOutput, TilePlan, tile_plan, window_params
from service.frontend.http.problems import Problem, problem_of
from service.settings import usable_cores
from service.worker.runner import DeviceMissing, OutOfDeviceMemory
from service.worker.state_folder import StateFolder

CPU_BATCH_IMAGES = 8
"""On a core of a CPU larger batches are hardly faster: a classifier's picture took 17.3 ms of it alone, 11.2 ms in a
batch of 8 and 10.8 ms in one of 16."""
WAITING_BATCHES = 4
"""Of a thread: so many batches of pictures may wait for others of their shape."""
WAITING_BYTES = 64 << 20
"""Of network inputs that wait, in a thread."""
NO_DEADLINE = float("inf")


class Row(NamedTuple):
    """A picture's row. `line`: JSON, without a line break. `errors`: the codes of its errors. `transient`: one of them
    may not come again, on another device for example."""

    id: str
    line: bytes
    errors: tuple[str, ...] = ()
    transient: bool = False


def error_row(sample_id: str, error: ConvMLPError) -> Row:
    """The row of a picture that no model can answer."""
    line = _with_id(sample_id, encode_error(_problem(error, sample_id)))
    return Row(sample_id, line, (error.code,), isinstance(error, RetryLater))


def crash_row(sample_id: str) -> Row:
    """The row of a picture at which the process that scored it ended."""
    return error_row(sample_id, Internal("the process that scored this picture ended, twice"))._replace(transient=True)


@dataclass(slots=True)
class _Picture:
    """A decoded picture whose models have not all answered."""

    id: str
    answers: list[bytes | ConvMLPError | None]
    size: Size = field(default_factory=lambda: Size(0, 0))


class _Waiting(NamedTuple):
    """An input of a model that waits for others of its shape."""

    picture: _Picture
    model_input: ModelInput


class Scorer:
    """The models of a plan on one device. Any number of threads may call `score` at a time."""

    def __init__(self, plan: Plan) -> None:
        """Load the models, and select the precision of those with `auto`.

        Raises:
            BundleInvalid: a model is damaged, or changed since the plan was made.
            BadParameter: this machine does not have the device that the settings name.
            Overloaded: there is no memory for the models.
        """
        from service.observability.logs import configure_command_logs
        from service.worker.compute_libraries import configure_libraries

        configure_command_logs()
        configure_libraries()
        from service.worker.torch_runner import TorchRunner  # torch reads the environment once

        settings = plan.worker_settings
        bundles = [one.bundle() for one in plan.models]
        try:
            self._runner = TorchRunner(bundles, settings, StateFolder(settings.state_folder))
        except DeviceMissing as error:
            raise BadParameter(str(error)) from error
        except OutOfDeviceMemory as error:
            raise Overloaded("the models do not fit into the device's memory; use another device") from error
        self._plan = plan
        self._configs = [bundle.config for bundle in bundles]
        self._specs = tuple(config.preprocessing for config in self._configs)
        self._settings = settings
        on_cpu = self._runner.device == "cpu"
        default = CPU_BATCH_IMAGES if on_cpu else settings.max_batch_images
        self._batch_images = plan.batch_images or default
        self.device = self._runner.device
        self.threads = (
            self._runner.lanes if on_cpu else max(self._runner.lanes, settings.compute_threads or usable_cores())
        )
        """Worth calling `score` at once."""
        self._lanes = threading.BoundedSemaphore(self._runner.lanes)
        self._memory = DecodeMemory(settings.decoded_bytes)

    @property
    def precisions(self) -> dict[str, str]:
        """By the names of the models."""
        return {config.name: self._runner.precision(config.name) for config in self._configs}

    def score(self, samples: Iterator[Sample], batch_images: int | None = None) -> Iterator[list[Row]]:
        """The rows of all samples, not in their order, as they are ready.

        Raises:
            What `samples` raises; and what a broken device raises, which is no picture's fault.
        """
        limit = batch_images or self._batch_images
        waiting: dict[tuple[int, int, int], list[_Waiting]] = {}
        for sample in samples:
            rows: list[Row] = []
            try:
                picture, inputs = self._prepare(sample)
            except ConvMLPError as error:
                yield [error_row(sample.id, error)]
                continue
            plain: list[tuple[int, ModelInput]] = []
            for position, model_input in enumerate(inputs):
                if isinstance(model_input, TiledInput):
                    self._answer_tiled(picture, position, model_input, limit)
                elif model_input is not None:
                    plain.append((position, model_input))
            if not plain:
                rows.append(self._row(picture))
            for position, one in plain:
                height, width, _ = one.pixels.shape
                key = (position, height, width)
                waiting.setdefault(key, []).append(_Waiting(picture, one))
                if len(waiting[key]) >= self._largest(limit, height * width):
                    rows += self._answer(position, waiting.pop(key))
            while _exceeds(waiting, limit):
                key = max(waiting, key=lambda one: len(waiting[one]))
                rows += self._answer(key[0], waiting.pop(key))
            if rows:
                yield rows
        for key in list(waiting):
            if rows := self._answer(key[0], waiting.pop(key)):
                yield rows

    def close(self) -> None:
        self._runner.close()

    def _largest(self, limit: int, pixels: int) -> int:
        return max(1, min(limit, self._settings.max_batch_mpx * 10**6 // pixels))

    def _prepare(self, sample: Sample) -> tuple[_Picture, list[ModelInput | TiledInput | None]]:
        """A picture, and the inputs of its models. None: the model's answer is an error.

        Raises:
            ConvMLPError: the picture cannot be read or decoded.
        """
        data, settings = sample.data, self._settings
        if not isinstance(data, bytes):
            raise data
        picture = _Picture(sample.id, [None] * len(self._plan.models))
        try:
            header = read_header(data, settings.decode_limits)
            plans: list[TilePlan | None] = []
            wanted = []
            for position, (one, config) in enumerate(zip(self._plan.models, self._configs, strict=True)):
                plan = None
                if one.tiling is not None:
                    try:
                        plan = tile_plan(one.tiling, header.size, config, one.params, settings.max_tiles)
                    except ImageTooLarge as error:
                        picture.answers[position] = error
                        continue
                wanted.append(position)
                plans.append(plan)
            if not wanted:
                raise next(error for error in picture.answers if isinstance(error, ConvMLPError))
            specs = [self._specs[position] for position in wanted]
            decodings = decodings_of(specs, plans, header, fast=settings.fast_decode)
            with self._memory.reserved(header.decode_bytes):
                found = prepare_for_all(
                    data, specs, plans, decodings, settings.decode_limits, header, settings.fast_decode, _never_late
                )
        except ConvMLPError as error:
            raise explained(error, data) from None
        inputs: list[ModelInput | TiledInput | None] = [None] * len(picture.answers)
        for position, model_input in zip(wanted, found, strict=True):
            inputs[position] = model_input
            picture.size = _size_of(model_input)
        return picture, inputs

    def _answer(self, position: int, waiting: Sequence[_Waiting]) -> list[Row]:
        """Run a batch. The rows of the pictures whose last answers these are."""
        params = self._plan.models[position].params
        outputs = self._run(position, [one.model_input for one in waiting], params)
        for (picture, model_input), output in zip(waiting, outputs, strict=True):
            self._set_answer(picture, position, output, model_input.geometry.original)
        return [self._row(one.picture) for one in waiting if None not in one.picture.answers]

    def _answer_tiled(self, picture: _Picture, position: int, tiled: TiledInput, limit: int) -> None:
        plan, config = self._plan.models[position], self._configs[position]
        params = window_params(plan.params, config.task)
        outputs: list[RawOutput] = []
        inputs = list(tiled.inputs)
        # All windows have one shape, and the whole picture may have another.
        while inputs:
            shape = inputs[0].pixels.shape
            count = 1
            while count < min(len(inputs), self._largest(limit, shape[0] * shape[1])):
                if inputs[count].pixels.shape != shape:
                    break
                count += 1
            for output in self._run(position, inputs[:count], params):
                if isinstance(output, ConvMLPError):
                    picture.answers[position] = output
                    return
                outputs.append(output)
            del inputs[:count]
        try:
            joined = TiledOutput(tiled, tuple(outputs), plan.params, NO_DEADLINE).join(config)
        except ConvMLPError as error:
            picture.answers[position] = error
            return
        self._set_answer(picture, position, joined, tiled.grid.picture)

    def _set_answer(self, picture: _Picture, position: int, output: RawOutput | ConvMLPError, size: Size) -> None:
        try:
            if isinstance(output, ConvMLPError):
                raise output
            plan = self._plan.models[position]
            encoded = encode_output(plan.mask_format, require_finite(output), self._configs[position], size)
        except ConvMLPError as error:
            picture.answers[position] = error
        else:
            picture.answers[position] = encoded

    def _run(self, position: int, inputs: Sequence[ModelInput], params: QueryParams) -> list[RawOutput | ConvMLPError]:
        """The outputs of inputs of one shape. A batch that does not fit into the device's memory is halved."""
        batch = Batch(
            np.stack([one.pixels for one in inputs]),
            tuple(one.geometry for one in inputs),
            (params,) * len(inputs),
        )
        try:
            with self._lanes:
                return list(self._runner.run(self._configs[position].name, batch, 1))
        except OutOfDeviceMemory:
            half = len(inputs) // 2
            if not half:
                return [Overloaded("the picture does not fit into the device's memory; scale it down")]
        return self._run(position, inputs[:half], params) + self._run(position, inputs[half:], params)

    def _row(self, picture: _Picture) -> Row:
        models = self._plan.models
        encoded: dict[str, bytes] = {}
        errors = []
        transient = False
        for plan, answer in zip(models, picture.answers, strict=True):
            if isinstance(answer, ConvMLPError):
                errors.append(answer.code)
                transient |= isinstance(answer, RetryLater)
                answer = encode_error(
                    _problem(answer, picture.id if len(models) == 1 else f"{picture.id}#{plan.answer}")
                )
            assert answer is not None
            encoded[plan.answer] = answer
        body = encoded[models[0].answer] if len(models) == 1 else encode_analysis(picture.size, encoded)
        return Row(picture.id, _with_id(picture.id, body), tuple(errors), transient)


class DecodeMemory:
    """Bytes that pictures take while they are decoded, of all threads; a picture that takes all of them is alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Wait until there is so much memory."""
        size = min(size, self._limit)
        with self._changed:
            self._changed.wait_for(lambda: self._used + size <= self._limit)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def _exceeds(waiting: dict[tuple[int, int, int], list[_Waiting]], limit: int) -> bool:
    if sum(map(len, waiting.values())) > WAITING_BATCHES * limit:
        return True
    return sum(height * width * 3 * len(inputs) for (_, height, width), inputs in waiting.items()) > WAITING_BYTES


def _size_of(model_input: ModelInput | TiledInput) -> Size:
    return model_input.grid.picture if isinstance(model_input, TiledInput) else model_input.geometry.original


def _problem(error: ConvMLPError, instance: str) -> Problem:
    return problem_of(error, quote(instance))


def _with_id(sample_id: str, body: bytes) -> bytes:
    """A JSON object with the member `id` before its own."""
    return b'{"id":' + msgspec.json.encode(sample_id) + b"," + body[1:]


def _never_late() -> None: ...
