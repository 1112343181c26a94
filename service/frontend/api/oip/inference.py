"""Where a request is read and its response written: here, or in a thread where it takes long.

One inference request → its response: each image goes its own way through the engine, all share one status.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from model.bundle import BundleConfig
from model.errors import ConvMLPError
from service.errors import Overloaded, RetryLater, error_from_code
from service.frontend.api.oip.metadata import Statistics
from service.frontend.api.oip.options import read_options
from service.frontend.api.oip.outputs import Choice, Row, answer_too_large, choose, row_bytes, stack
from service.frontend.api.oip.protocol import INPUT, InferRequest, InferResponse, Picture, pictures_of
from service.frontend.core.engine import Engine
from service.frontend.core.request_log import RequestRecord, reply_or_error, slowest
from service.settings import Settings
from service.types import PredictRequest, Reply

T = TypeVar("T")

OFFLOAD_FROM_BYTES = 2**12
"""Of JSON, or of an answer's values: read or written in less time than a thread is reached, some 0.1 ms."""


async def offload(work: Callable[[], T], nbytes: int) -> T:
    """What comes of `work` on so many bytes."""
    return work() if nbytes <= OFFLOAD_FROM_BYTES else await asyncio.to_thread(work)


Answer = Reply[tuple[Row, ...]]
"""One image's part of each chosen output."""


@dataclass(frozen=True, slots=True)
class Call:
    """What the transport knows of a request. `charge` is told of the images beyond the first."""

    record: RequestRecord
    deadline_s: float
    charge: Callable[[int], None]


class Inference:
    """Shared by all requests of one front-end."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self.statistics = Statistics()

    async def answer(
        self, config: BundleConfig, request: InferRequest, call: Call, encode: Callable[[InferResponse], T]
    ) -> T:
        """What `encode` makes of the response, in a thread where it is long.

        Raises:
            ConvMLPError: what is wrong with the request, or with one of its images.
        """
        counts = self.statistics.of(config.name)
        try:
            encoded, batches = await self._answer(config, request, call, encode)
        except ConvMLPError:
            counts.failed(time.monotonic() - call.record.started_s)
            raise
        assert call.record.timings is not None
        counts.succeeded(batches, time.monotonic() - call.record.started_s, call.record.timings)
        return encoded

    async def _answer(
        self, config: BundleConfig, request: InferRequest, call: Call, encode: Callable[[InferResponse], T]
    ) -> tuple[T, list[int]]:
        options = read_options(config.task, request.parameters)
        choice = choose(config, request.outputs, options.asked, binary=request.binary)
        pictures = pictures_of(request.inputs, self._settings.max_images)
        call.charge(len(pictures) - 1)
        deadline_s = call.deadline_s
        if options.timeout_s is not None:
            deadline_s = min(deadline_s, call.record.started_s + options.timeout_s)
        answers = await self._predict_all(config, choice, pictures, call.record.request_id, deadline_s)
        call.record.timings = slowest(answer.timings for answer in answers)

        def respond() -> T:
            outputs = tuple(
                (stack(output, rows, self._settings.max_request_bytes), binary)
                for (output, binary), rows in zip(
                    choice.outputs, zip(*(answer.payload for answer in answers), strict=True), strict=True
                )
            )
            return encode(InferResponse(config.name, request.id, outputs))

        nbytes = sum(row_bytes(row) for answer in answers for row in answer.payload)
        return await offload(respond, nbytes), [answer.batch_images for answer in answers]

    async def _predict_all(
        self, config: BundleConfig, choice: Choice, pictures: Sequence[Picture], request_id: str, deadline_s: float
    ) -> list[Answer]:
        """In the pictures' order. The first error to come withdraws the others, for the request has failed then."""
        held = _Held(choice, self._settings.max_request_bytes)
        alone = len(pictures) == 1

        async def predict(at: int, picture: Picture) -> Answer:
            image_id = request_id if alone else f"{request_id}-{at}"
            request = PredictRequest(image_id, config.task, config.name, picture, choice.params, deadline_s)
            outcome = await reply_or_error(
                self._engine,
                request,
                lambda result: tuple(output.make(result, choice.form) for output, _ in choice.outputs),
            )
            if isinstance(outcome, ConvMLPError):
                raise outcome if alone else _named(outcome, at)
            held.take(outcome)
            return outcome

        tasks = [asyncio.create_task(predict(at, picture)) for at, picture in enumerate(pictures)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            # Of several errors that came at once the first image's is told.
            return [task.result() for task in sorted(done, key=tasks.index)]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Held:
    """What the answers of a request hold until the last has come."""

    def __init__(self, choice: Choice, max_bytes: int) -> None:
        self._outputs = [output for output, _ in choice.outputs]
        self._max_bytes = max_bytes
        self._bytes = 0

    def take(self, answer: Answer) -> None:
        """Raises ImageTooLarge."""
        sizes = [row_bytes(row) for row in answer.payload]
        self._bytes += sum(sizes)
        if self._bytes > self._max_bytes:
            raise answer_too_large(self._outputs[sizes.index(max(sizes))], self._max_bytes)


def _named(error: ConvMLPError, at: int) -> ConvMLPError:
    """The error, with the position of its image."""
    detail = f"element {at} of input {INPUT!r}: {error.detail}"
    if isinstance(error, Overloaded):
        return Overloaded(detail, error.retry_after_s, error.reason)
    retry_after_s = error.retry_after_s if isinstance(error, RetryLater) else None
    return error_from_code(error.code, detail, retry_after_s)
