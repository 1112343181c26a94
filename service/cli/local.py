"""This process in the service's place: the same steps, without queue and wire."""

from __future__ import annotations

import msgspec
import numpy as np

from model.bundle import Bundle, find_bundle, read_bundle
from model.decode import decode
from model.postprocess.finish import finish
from model.preprocess import prepare
from model.types import Batch, Image, Result, Task
from service.cli.answerer import Answer, NoAnswer
from service.errors import BadParameter, ModelNotFound, Overloaded
from service.frontend.render import PictureFormat, encode_picture, render
from service.frontend.rest.query import Query
from service.frontend.rest.schemas import encode_result
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
            self._runner = TorchRunner([bundle], settings)
        except DeviceMissing as error:
            raise NoAnswer(str(error)) from error

    async def answer(self, image: bytes) -> Answer:
        """The answer that the service would give.

        Raises:
            ImageUndecodable, UnsupportedFormat, ImageTooLarge: as `model.decode.decode`.
            Overloaded: the device has no memory for it.
        """
        result = self._predict(decode(image, self._limits))
        encoded = encode_result(result, self._query.mask_format)
        return Answer(self._config.name, self._config.task, [msgspec.Raw(encoded)])

    async def draw(self, image: bytes, picture_format: PictureFormat) -> bytes:
        """The image with the answer drawn on it. Raises as `answer`."""
        picture = decode(image, self._limits)
        return encode_picture(render(picture, self._predict(picture)), picture_format)

    async def aclose(self) -> None:
        self._runner.close()

    def _predict(self, picture: Image) -> Result:
        model_input = prepare(picture, self._config.preprocessing)
        batch = Batch(np.stack([model_input.pixels]), (model_input.geometry,), (self._query.params,))
        try:
            (output,) = self._runner.run(self._config.name, batch)
        except OutOfDeviceMemory as error:
            raise Overloaded(
                "the device has no memory left for this image; send a smaller one, or set CONVMLP_DEVICE=cpu"
            ) from error
        return finish(output, self._config, picture.size)


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
