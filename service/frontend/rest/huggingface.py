"""POST /compat/huggingface/{classify,detect,segment}: for the unmodified `huggingface_hub.InferenceClient`.

Give it the URL of a route as its model, with `?model=NAME` where the task's default model is not meant. `segment`
is answered by semantic models and by detectors with masks, which do instances.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from model.bundle import BundleConfig
from model.spec import MaskRCNNSpec
from model.types import Task
from service.errors import BadParameter, ModelNotFound
from service.frontend.engine import Engine
from service.frontend.outcome import counted
from service.frontend.parameters import asked
from service.frontend.rest.body import read_body
from service.frontend.rest.edge import exchange_of, read_timeout_ms
from service.frontend.rest.huggingface_ask import Ask, read_ask
from service.frontend.rest.huggingface_openapi import SUMMARY, operation
from service.frontend.rest.huggingface_schemas import Parameters, SegmentParameters, Subtask, encode_elements
from service.frontend.rest.waiting import in_time, unless_gone
from service.metrics import FrontEndMetrics
from service.settings import Settings
from service.types import PredictRequest


def huggingface(engine: Engine, settings: Settings, metrics: FrontEndMetrics) -> APIRouter:
    router = APIRouter(prefix="/compat/huggingface", tags=["huggingface"])
    compat = HuggingFace(engine, settings, metrics)
    for task in Task:
        router.add_api_route(
            f"/{task.value}",
            _route(compat, task),
            methods=["POST"],
            summary=SUMMARY[task],
            openapi_extra=operation(task, settings),
            response_class=Response,
        )
    return router


class HuggingFace:
    def __init__(self, engine: Engine, settings: Settings, metrics: FrontEndMetrics) -> None:
        self._engine = engine
        self._settings = settings
        self._metrics = metrics

    async def answer(self, task: Task, request: Request) -> Response:
        """The whole way of one request; `task` is that of the route.

        Raises:
            ConvMLPError: what is wrong.
            ClientDisconnect: the caller left; the work was withdrawn.
        """
        exchange = exchange_of(request)
        with counted(self._metrics, "rest", task.value, exchange, ClientDisconnect) as count_for:
            deadline_s = self._engine.deadline(read_timeout_ms(request.headers.get("x-request-timeout-ms")))
            # Before the body is read: a wrong model's name should not cost an upload.
            able = self._able(task, _model_name(request))
            with self._engine.body_budget() as take:
                ask = await in_time(self._read(task, request, take), deadline_s)
                config = _chosen(able, ask.parameters)
                count_for(config.name)
                prediction = PredictRequest(
                    exchange.request_id, config.task, config.name, ask.image, ask.params, deadline_s
                )
                with unless_gone(request):
                    reply = await self._engine.predict(
                        prediction, lambda result: encode_elements(ask.parameters, result)
                    )
        exchange.timings = reply.timings
        return Response(reply.payload, media_type="application/json")

    async def _read(self, task: Task, request: Request, take: Callable[[int], None]) -> Ask:
        return await read_ask(task, await read_body(request, self._settings, take))

    def _able(self, task: Task, name: str | None) -> Sequence[BundleConfig]:
        """The models that may answer, the preferred first; never none."""
        if task is not Task.SEGMENT:
            return [self._engine.resolve(task, name).config]
        if name is not None:
            config = self._engine.model(name).config
            return [config if _does_instances(config) else self._engine.resolve(task, name).config]
        served = [status.config for status in self._engine.models()]
        semantic = [config for config in served if config.task is Task.SEGMENT]
        able = [*semantic, *(config for config in served if _does_instances(config))]
        if not able:
            raise ModelNotFound("this service has no model that segments; see /models")
        return able


def _route(compat: HuggingFace, task: Task) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return await compat.answer(task, request)

    return answer


def _model_name(request: Request) -> str | None:
    given = request.query_params.multi_items()
    if len(given) > 1 or any(name != "model" for name, _ in given):
        raise BadParameter("the query string takes `model`, once; all else belongs into the JSON body's `parameters`")
    return asked(model=given[0][1] if given else None).model


def _does_instances(config: BundleConfig) -> bool:
    return isinstance(config.architecture, MaskRCNNSpec)


def _subtask(config: BundleConfig) -> Subtask:
    return Subtask.INSTANCE if _does_instances(config) else Subtask.SEMANTIC


def _chosen(able: Sequence[BundleConfig], parameters: Parameters) -> BundleConfig:
    """The first model that does the subtask, where one is asked for."""
    if not isinstance(parameters, SegmentParameters) or parameters.subtask is None:
        return able[0]
    for config in able:
        if _subtask(config) is parameters.subtask:
            return config
    does = ", ".join(f"{config.name} does {_subtask(config)}" for config in able)
    raise BadParameter(f"no model does the subtask {parameters.subtask.value!r} here; {does}", "subtask")
