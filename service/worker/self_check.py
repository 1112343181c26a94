"""Ready means proven: each model answers the reference picture, through the whole path, as its bundle says."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence

from model.bundle import REFERENCE_PICTURE, Bundle, BundleConfig
from model.decode import DecodeLimits, decode
from model.errors import ConvMLPError
from model.postprocess.finish import finish
from model.preprocess import prepare
from model.reference import REFERENCE_PARAMS, disagreement
from service.errors import Overloaded
from service.worker.queue import Done, Job, Shape

CHECK_TIMEOUT_S = 60.0
LIMITS = DecodeLimits(max_bytes=10**7, max_pixels=10**7)


class SelfCheck:
    """Asks the models through the same queue that everybody else uses."""

    def __init__(self, bundles: Sequence[Bundle], submit: Callable[[Job], None]) -> None:
        picture = decode(REFERENCE_PICTURE.read_bytes(), LIMITS)
        self._models: dict[str, BundleConfig] = {bundle.config.name: bundle.config for bundle in bundles}
        self._inputs = {name: prepare(picture, config.preprocessing) for name, config in self._models.items()}
        self._submit = submit
        self._numbers = itertools.count(1)

    async def objection(self, model: str) -> str | None:
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
                config = self._models[model]
                result = finish(output, config, self._inputs[model].geometry.original)
                return disagreement(result, config.reference)

    async def _ask(self, model: str) -> Done:
        answered: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        model_input = self._inputs[model]
        height, width, _ = model_input.pixels.shape
        now_s = time.monotonic()
        self._submit(
            Job(
                key=(b"self-check", next(self._numbers)),
                shape=Shape(model, height, width),
                input=model_input,
                params=REFERENCE_PARAMS,
                enqueued_s=now_s,
                deadline_s=now_s + CHECK_TIMEOUT_S,
                reply=answered.set_result,
            )
        )
        return await answered
