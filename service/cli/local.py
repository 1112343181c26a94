"""This process in the service's place: the same steps, without queue and wire."""

from __future__ import annotations

import numpy as np

from convmlp_client.convert import result_from_json
from convmlp_client.results import Meta, Result
from convmlp_client.results import Task as AnswerTask
from model.bundle import Bundle, find_bundle, read_bundle
from model.decode import decode
from model.preprocess import prepare
from model.types import Batch, Task
from service.cli.answerer import NoAnswer
from service.errors import BadParameter, ModelNotFound, Overloaded
from service.frontend.api.rest.query import Query
from service.frontend.api.rest.schemas import encode_output
from service.settings import Settings
from service.worker.runner import DeviceMissing, OutOfDeviceMemory
from service.worker.torch_runner import TorchRunner


class Local:
    """A model of the store, loaded, and the parameters that it is asked with."""

    concurrency = 1

    def __init__(self, task: Task, query: Query, settings: Settings) -> None:
        """Load the model that `query` names, or the first of `settings.models` that does the task.

        Raises:
            BundleInvalid: it is not in the store, or not fit to be used.
            BadParameter: it does another task.
            ModelNotFound: none is named, and none of `settings.models` does the task.
            NoAnswer: this machine does not have the device that the settings name.
        """
        bundle = _bundle(task, query.model, settings)
        self._config = bundle.config
        self._query = query
        self._limits = settings.decode_limits
        try:
            # Measuring what is fastest takes longer than a few answers.
            exact = settings.precision == "auto"
            self._runner = TorchRunner([bundle], settings.with_changes(precision="exact") if exact else settings)
        except DeviceMissing as error:
            raise NoAnswer(str(error)) from error

    async def answer(self, image: bytes) -> Result:
        """The answer that the service would give.

        Raises:
            ImageUndecodable, UnsupportedFormat, ImageTooLarge: as `model.decode.decode`.
            Overloaded: the device has no memory for it.
        """
        picture = decode(image, self._limits)
        model_input = prepare(picture, self._config.preprocessing)
        batch = Batch(np.stack([model_input.pixels]), (model_input.geometry,), (self._query.params,))
        try:
            (output,) = self._runner.run(self._config.name, batch, self._runner.lanes)
        except OutOfDeviceMemory as error:
            raise Overloaded(
                "the device has no memory left for this image; send a smaller one, or set CONVMLP_DEVICE=cpu"
            ) from error
        meta = Meta(self._config.name, AnswerTask(self._config.task))
        return result_from_json(encode_output(self._query.mask_format, output, self._config, picture.size), meta)

    async def aclose(self) -> None:
        self._runner.close()


def _bundle(task: Task, name: str | None, settings: Settings) -> Bundle:
    if name is not None:
        bundle = read_bundle(find_bundle(name, settings.models_dir))
        if bundle.config.task != task:
            raise BadParameter(
                f"model {name!r} is for {bundle.config.task.value!r}, not for {task.value!r}; see `convmlp models list`"
            )
        return bundle
    for served in settings.models:
        bundle = read_bundle(find_bundle(served, settings.models_dir))
        if bundle.config.task == task:
            return bundle
    raise ModelNotFound(f"none of {', '.join(settings.models)} is for {task.value!r}; name one with --model")
