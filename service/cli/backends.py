"""What predicts for a command: a running service, or with `--local` this process."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from convmlp_client.aio import AsyncClient
from convmlp_client.convert import result_from_json
from convmlp_client.drawing import Palette
from convmlp_client.errors import ClientError, ConnectionFailed, ProtocolError
from convmlp_client.results import Analysis, Answer, Embedding, Meta, Result
from convmlp_client.results import Task as ClientTask
from convmlp_client.retry import Retries
from model.bundle import Bundle, find_bundle, read_bundle
from model.decode import Picture, decode
from model.errors import ConvMLPError, NotFinite
from model.preprocess import prepare
from model.tiles import needs_whole, plan_tiles, prepare_tiles
from model.types import Batch, Image, ModelInput, QueryParams, RawOutput, Task
from service.cli.console import print_error
from service.errors import BadParameter, ModelNotFound, Overloaded, Unauthenticated, error_from_code
from service.frontend.api.rest.embed import EmbedQuery
from service.frontend.api.rest.query import Query
from service.frontend.api.rest.schemas import encode_embedding, encode_output
from service.frontend.core.engine import Encode
from service.frontend.core.parameters import VectorEncoding, params_for
from service.frontend.core.tiling import TiledOutput, window_params
from service.settings import Settings
from service.worker.runner import DeviceMissing, OutOfDeviceMemory

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 120.0
"""Limit of a prediction without --timeout-ms. The service's own limit is shorter."""

DEFAULT_CONCURRENCY = 8
DEFAULT_RETRIES = 3

KEY_REMEDY = "set CONVMLP_API_KEY, or give --api-key"

SILENT_RETRY_S = 1.0
"""A shorter wait before a retry is not reported."""


class NoAnswer(ConvMLPError):
    """No prediction is possible: no service, no device, or an answer that is not this service's."""

    code = "no-answer"


class Backend(Protocol):
    """Predicts for one task with fixed parameters."""

    @property
    def concurrency(self) -> int:
        """The number of images worth predicting at once."""
        ...

    async def predict(self, image: bytes) -> Result:
        """The result for one encoded image. Raises ConvMLPError."""
        ...

    async def palettes(self) -> Mapping[str, Palette | None]:
        """The colours of classes by the models' names. Raises ConvMLPError."""
        ...

    async def aclose(self) -> None: ...


class AnalysisBackend(Protocol):
    """The same for several tasks or models."""

    @property
    def concurrency(self) -> int: ...

    async def predict(self, image: bytes) -> Analysis: ...

    async def palettes(self) -> Mapping[str, Palette | None]: ...

    async def aclose(self) -> None: ...


def open_client(
    url: str,
    api_key: str | None,
    timeout_ms: int | None = None,
    concurrency: int = DEFAULT_CONCURRENCY,
    retries: int | Retries = DEFAULT_RETRIES,
) -> AsyncClient:
    """A client of the service at `url`. Raises BadParameter if the URL or the key is malformed."""
    try:
        return AsyncClient(
            url,
            api_key=api_key,
            timeout_s=DEFAULT_TIMEOUT_S if timeout_ms is None else timeout_ms / 1000,
            max_concurrency=concurrency,
            retries=retries,
        )
    except ValueError as error:
        raise BadParameter(f"--url or --api-key: {error}") from None


class _Remote(Generic[T]):
    """The service at `url`, called with the project's client: one image per request, several requests at once.

    The service batches concurrent requests, so a request of many images would gain nothing, and would put all of
    them under one deadline.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        task: ClientTask,
        parameters: Mapping[str, Any],
        timeout_ms: int | None,
        concurrency: int = DEFAULT_CONCURRENCY,
        retries: int | Retries = DEFAULT_RETRIES,
    ) -> None:
        """Raises BadParameter if the URL or the key is malformed."""
        self.concurrency = concurrency
        self._client = open_client(url, api_key, timeout_ms, concurrency, retries)
        methods: dict[ClientTask, Callable[..., Awaitable[Any]]] = {
            ClientTask.CLASSIFY: self._client.classify,
            ClientTask.DETECT: self._client.detect,
            ClientTask.SEGMENT: self._client.segment,
            ClientTask.EMBED: self._client.embed,
            ClientTask.ANALYZE: self._client.analyze,
        }
        self._method: Callable[..., Awaitable[T]] = methods[task]
        self._parameters = parameters
        _print_retries()

    async def predict(self, image: bytes) -> T:
        """The service's result.

        Raises:
            NoAnswer: the client cannot connect, or the answer is not this service's.
            ConvMLPError: the error that the service answered.
        """
        try:
            return await self._method(image, **self._parameters)
        except ClientError as error:
            raise domain_error(error) from error

    async def palettes(self) -> Mapping[str, Palette | None]:
        return await palettes_of(self._client)

    async def aclose(self) -> None:
        await self._client.aclose()


class RemoteBackend(_Remote[Result]): ...


class RemoteAnalysis(_Remote[Analysis]): ...


async def palettes_of(client: AsyncClient, *, has_local: bool = True) -> Mapping[str, Palette | None]:
    """The colours of classes by the models' names. Raises as `RemoteBackend.predict`; see `domain_error`."""
    try:
        return {model.name: model.palette for model in await client.models()}
    except ClientError as error:
        raise domain_error(error, has_local=has_local) from error


def domain_error(error: ClientError, *, has_local: bool = True) -> ConvMLPError:
    """The service's error, or NoAnswer where there is none. `has_local`: the command has the flag --local."""
    match error:
        case ConnectionFailed():
            others = "set --url, or use --local" if has_local else "or set --url"
            return NoAnswer(f"{error.detail}; start `convmlp serve`, {others}")
        case ProtocolError():
            return NoAnswer(f"{error.detail}; check --url")
        case _:
            return error_from_code(error.code, f"{error.detail}{remedy(error.code)}", error.retry_after_s)


def remedy(code: str) -> str:
    """What the user of a command can do about an error of the service, to go behind its text."""
    return f"; {KEY_REMEDY}" if code == Unauthenticated.code else ""


def _print_retries() -> None:
    """Print the client's log on stderr: it logs each wait before a retry."""
    log = logging.getLogger("convmlp_client")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [_RetryHandler()]


class _RetryHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        match record.args:
            case (_, float(wait_s)) if wait_s < SILENT_RETRY_S:
                pass
            case _:
                print_error(record.getMessage())


class LocalBackend:
    """A model of the store in this process: the service's steps without queue and network."""

    concurrency = 1

    def __init__(self, query: Query | EmbedQuery, task: Task, settings: Settings) -> None:
        """Load the model that `query` names, or the first of `settings.models` for the task. Classifiers also embed.

        Raises:
            BundleInvalid: the model is not in the store, or is damaged.
            BadParameter: it is for another task.
            ModelNotFound: `query` names none, and none of `settings.models` is for the task.
            NoAnswer: this machine does not have the device that the settings name.
            ModuleNotFoundError: torch is not installed.
        """
        from service.observability.logs import configure_command_logs
        from service.worker.compute_libraries import configure_libraries

        configure_command_logs()
        configure_libraries()
        from service.worker.torch_runner import TorchRunner  # torch: calling a service must not need it

        bundle = _bundle(task, query.model, settings)
        self._config = bundle.config
        self._params = query.params
        if isinstance(query, Query):
            self._params = params_for(bundle.config, query.params, query.classes)
        self._encode: Encode[bytes]
        if isinstance(query, EmbedQuery):
            self._encode = partial(encode_embedding, query.normalize, VectorEncoding.BASE64)
            self._meta = Meta(bundle.config.name, ClientTask.EMBED)
        else:
            self._encode = partial(encode_output, query.mask_format)
            self._meta = Meta(bundle.config.name, ClientTask(task))
        self._tiling = query.tiling if isinstance(query, Query) else None
        self._max_tiles = settings.max_tiles
        self._limits = settings.decode_limits
        # Measuring which precision is fastest takes longer than a few predictions.
        if settings.precision_of(bundle.config.name) == "auto":
            settings = settings.with_changes(precision="exact")
        try:
            self._runner = TorchRunner([bundle], settings)
        except DeviceMissing as error:
            raise NoAnswer(str(error)) from error

    @property
    def model(self) -> str:
        """The name of the model."""
        return self._config.name

    async def predict(self, image: bytes) -> Result:
        """The result that the service would answer.

        Raises:
            ImageUndecodable, UnsupportedFormat, ImageTooLarge: as `model.decode.decode`.
            NotFinite: the network's output has NaN or infinity.
            Overloaded: the image does not fit into the device's memory.
        """
        picture = decode(image, self._limits, self._config.preprocessing.reader)
        output = self._output(picture)
        return result_from_json(self._encode(output, self._config, picture.size), self._meta)

    def _output(self, picture: Image) -> RawOutput:
        """The network's output, joined from those of the windows where the picture is cut."""
        spec, size = self._config.preprocessing, picture.size
        if self._tiling is None:
            return self._run(prepare(picture, spec), self._params)
        grid = plan_tiles(size, self._tiling, spec, self._max_tiles)
        if len(grid) == 1:
            return self._run(prepare(picture, spec), self._params)
        whole = needs_whole(self._config.task)
        tiled = prepare_tiles(Picture(picture.pixels, size), spec, grid, whole=whole, before_each=lambda: None)
        params = window_params(self._params, self._config.task)
        outputs = tuple(self._run(one, params) for one in tiled.inputs)
        return TiledOutput(tiled, outputs, self._params, math.inf).join(self._config)

    def _run(self, model_input: ModelInput, params: QueryParams) -> RawOutput:
        batch = Batch(np.stack([model_input.pixels]), (model_input.geometry,), (params,))
        try:
            (output,) = self._runner.run(self._config.name, batch, self._runner.lanes)
        except OutOfDeviceMemory as error:
            raise Overloaded(
                "the image does not fit into the device's memory; send a smaller one, or set CONVMLP_DEVICE=cpu"
            ) from error
        if isinstance(output, NotFinite):
            raise output
        return output

    async def palettes(self) -> Mapping[str, Palette | None]:
        return {self._config.name: self._config.palette}

    async def aclose(self) -> None:
        self._runner.close()


class LocalAnalysis:
    """Several models of the store in this process, one after the other; `backends` are by the names of the answers."""

    concurrency = 1

    def __init__(self, backends: Mapping[str, LocalBackend]) -> None:
        self._backends = backends

    async def predict(self, image: bytes) -> Analysis:
        """The answers of all models. Raises as `LocalBackend.predict`: an error of one model is that of the image."""
        answers: dict[str, Answer | ClientError] = {}
        for name, backend in self._backends.items():
            result = await backend.predict(image)
            assert not isinstance(result, Embedding)
            answers[name] = result
            size = result.image
        models = {name: backend.model for name, backend in self._backends.items()}
        return Analysis(size, answers, models, Meta("", ClientTask.ANALYZE))

    async def palettes(self) -> Mapping[str, Palette | None]:
        found: dict[str, Palette | None] = {}
        for backend in self._backends.values():
            found |= await backend.palettes()
        return found

    async def aclose(self) -> None:
        for backend in self._backends.values():
            await backend.aclose()


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
