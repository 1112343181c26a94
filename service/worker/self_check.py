"""The self-check: a model is ready once the reference picture, through the whole path, gave its committed answer."""

from __future__ import annotations

import asyncio
import itertools
import time

from model.errors import ConvMLPError
from model.postprocess.results import postprocess
from model.reference import mismatch, reference_params
from service.errors import Overloaded
from service.worker.dispatcher import Dispatcher
from service.worker.model_registry import LoadedModel
from service.worker.types import Job, JobResult, Shape

CHECK_TIMEOUT_S = 60.0


class SelfCheck:
    """Runs models on their reference pictures, through the queue that requests use."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._numbers = itertools.count(1)

    async def unready_reason(self, model: LoadedModel) -> str | None:
        """Why a model is not fit to serve; None where it gave its committed answer.

        Raises:
            Overloaded: the check could not run, which is no evidence for or against the model.
        """
        match (await self._run(model)).result:
            case Overloaded() as busy:
                raise busy
            case ConvMLPError() as error:
                return error.detail
            case output:
                result = postprocess(output, model.config, model.reference.geometry.original)
                return mismatch(result, model.config.reference)

    async def _run(self, model: LoadedModel) -> JobResult:
        answered: asyncio.Future[JobResult] = asyncio.get_running_loop().create_future()
        key = (b"self-check", next(self._numbers))
        height, width, _ = model.reference.pixels.shape
        now_s = time.monotonic()

        def reply(_: Job, result: JobResult) -> None:
            if not answered.done():  # the check may have been cancelled
                answered.set_result(result)

        self._dispatcher.submit(
            Job(
                key=key,
                shape=Shape(model.name, model.slot, height, width),
                input=model.reference,
                params=reference_params(model.config.task),
                enqueued_s=now_s,
                deadline_s=now_s + CHECK_TIMEOUT_S,
                reply=reply,
            )
        )
        try:
            return await answered
        finally:
            self._dispatcher.cancel(key)
