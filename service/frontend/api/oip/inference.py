"""One inference request → its response, for both transports.

Each image is a job of its own, and the first error fails the request. A transport parses the request, and passes the
function that encodes the response.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from model.errors import ConvMLPError
from model.model_name import base_name, version_of
from service.errors import DeadlineExceeded, error_of_part
from service.frontend.api.oip.metadata import ModelRepository
from service.frontend.api.oip.options import read_params, read_timeout_s
from service.frontend.api.oip.outputs import OutputSelection, nbytes_of, select_outputs
from service.frontend.api.oip.protocol import INPUT, InferRequest, InferResponse, Values, images_of
from service.frontend.core.auth import Auth, Caller
from service.frontend.core.engine import Engine
from service.frontend.core.request_log import RequestRecord
from service.settings import Settings
from service.types import ModelStatus, PredictRequest, Reply

T = TypeVar("T")

OFFLOAD_FROM_BYTES = 2**12
"""So many bytes of JSON, or of an answer's values, are handled without a thread: to reach one takes some 0.1 ms."""


async def offload(work: Callable[[], T], nbytes: int, deadline_s: float) -> T:
    """The result of `work` on that many bytes, in a thread where it takes long.

    Raises:
        DeadlineExceeded: it was not done at `deadline_s`, on the clock of `time.monotonic`. It is not stopped.
    """
    if nbytes <= OFFLOAD_FROM_BYTES:
        return work()
    try:
        async with asyncio.timeout(deadline_s - time.monotonic()):
            return await asyncio.to_thread(work)
    except TimeoutError:
        raise DeadlineExceeded("the request timed out while its tensors were converted") from None


class Inference:
    """Shared by all requests of one front-end."""

    def __init__(self, engine: Engine, auth: Auth, settings: Settings, repository: ModelRepository) -> None:
        self._engine = engine
        self._auth = auth
        self._max_images = settings.max_images
        self._max_bytes = settings.max_request_bytes
        self._repository = repository
        self._statistics = repository.statistics

    def resolve(self, record: RequestRecord, name: str, version: str) -> ModelStatus:
        """The model that a request names; its record gets the task and the name.

        Raises:
            ModelNotFound: it is not served, or has no such version.
            Unavailable: no worker has reported its models yet.
        """
        model = self._engine.resolve_any(self._repository.reference(name, version))
        record.task, record.model = model.config.task.value, model.config.name
        return model

    async def infer(
        self,
        model: ModelStatus,
        record: RequestRecord,
        deadline_s: float,
        request: InferRequest,
        encode: Callable[[InferResponse], T],
    ) -> T:
        """The encoded response to one request.

        `encode` runs in a thread where the response is large. `deadline_s` is on the clock of `time.monotonic`.

        Raises:
            ConvMLPError: the request's error, or that of one of its images.
        """
        config = model.config
        counts = self._statistics[config.name]
        try:
            selection = select_outputs(config, request, read_params(config.task, request.parameters))
            images = images_of(request.inputs, self._max_images)
            timeout_s = read_timeout_s(request.parameters)
            if timeout_s is not None:
                deadline_s = min(deadline_s, record.started_s + timeout_s)

            def predict_request(image_id: str, index: int) -> PredictRequest:
                return PredictRequest(
                    image_id,
                    model,
                    images[index],
                    selection.params,
                    deadline_s,
                    record.caller,
                    selection.classes,
                    selection.tiling,
                )

            if len(images) == 1:
                replies = [await self._engine.predict(predict_request(record.request_id, 0), selection.compute)]
            else:
                self._auth.charge(Caller(record.caller), len(images) - 1)
                requests = [predict_request(f"{record.request_id}-{index}", index) for index in range(len(images))]
                replies = await self._predict_all(requests, selection)
            timings = record.answered_by(replies)
            values = [reply.payload for reply in replies]
            nbytes = sum(map(nbytes_of, values))
            if nbytes > self._max_bytes:
                raise selection.too_large(values[0], self._max_bytes)

            def respond() -> T:
                outputs = selection.stack(values, self._max_bytes)
                name, version = base_name(config.name), version_of(config.name)
                return encode(InferResponse(name, version, request.id, record.precision, outputs))

            encoded = await offload(respond, nbytes, deadline_s)
        except ConvMLPError:
            counts.add_failed(time.monotonic() - record.started_s)
            raise
        counts.add([reply.batch_images for reply in replies], time.monotonic() - record.started_s, timings)
        return encoded

    async def _predict_all(
        self, requests: Sequence[PredictRequest], selection: OutputSelection
    ) -> list[Reply[list[Values]]]:
        """In the images' order. The first error cancels the other images: the request has failed."""
        held = 0

        async def predict(index: int, request: PredictRequest) -> Reply[list[Values]]:
            nonlocal held
            try:
                reply = await self._engine.predict(request, selection.compute)
            except ConvMLPError as error:
                raise error_of_part(error, f"element {index} of input {INPUT!r}") from None
            held += nbytes_of(reply.payload)
            if held > self._max_bytes:
                raise selection.too_large(reply.payload, self._max_bytes)
            return reply

        tasks = [asyncio.create_task(predict(index, request)) for index, request in enumerate(requests)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            # Of several errors at once the first image's is raised.
            return [task.result() for task in sorted(done, key=tasks.index)]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
