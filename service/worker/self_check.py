"""Ready means proven: each model answers the reference picture, through the whole path, as its bundle says."""

from __future__ import annotations

import asyncio
import itertools
import time

from model.errors import ConvMLPError
from model.postprocess.results import postprocess
from model.reference import REFERENCE_PARAMS, mismatch
from service.errors import Overloaded
from service.worker.dispatcher import Dispatcher
from service.worker.model_registry import LoadedModel
from service.worker.queue import Done, Job, Shape

CHECK_TIMEOUT_S = 60.0


class SelfCheck:
    """Asks models through the same queue that everybody else uses."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._numbers = itertools.count(1)

    async def unready_reason(self, model: LoadedModel) -> str | None:
        """Why the model is not fit to serve; None where it has proven itself.

        Raises:
            Overloaded: it could not be asked, which says nothing for or against it.
        """
        done = await self._ask(model)
        match done.result:
            case Overloaded() as busy:
                raise busy
            case ConvMLPError() as error:
                return error.detail
            case output:
                result = postprocess(output, model.config, model.reference.geometry.original)
                return mismatch(result, model.config.reference)

    async def _ask(self, model: LoadedModel) -> Done:
        answered: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        key = (b"self-check", next(self._numbers))
        height, width, _ = model.reference.pixels.shape
        now_s = time.monotonic()

        def reply(done: Done) -> None:
            if not answered.done():  # whoever asked may have left
                answered.set_result(done)

        self._dispatcher.submit(
            Job(
                key=key,
                shape=Shape(model.name, model.slot, height, width),
                input=model.reference,
                params=REFERENCE_PARAMS,
                enqueued_s=now_s,
                deadline_s=now_s + CHECK_TIMEOUT_S,
                reply=reply,
            )
        )
        try:
            return await answered
        finally:
            self._dispatcher.cancel(key)
