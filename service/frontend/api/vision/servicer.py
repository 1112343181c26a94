"""ListModels: what the service says of its models.

convmlp.v1.Vision: every prediction, unary or of a stream, goes one way, `_outcome`.

Messages are parsed here and not by gRPC, which would answer one that is malformed with its own internals.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc

from convmlp.v1 import vision_pb2 as pb
from model.bundle import Accuracy, BundleConfig
from model.errors import ConvMLPError
from model.spec import CenterCropSpec, DetectPostSpec, KeepRatioSpec, Preprocessing
from model.types import Task
from service.errors import DeadlineExceeded
from service.frontend.api.vision.convert import METHODS, Method, Request, Response, asked_of, encoder_of, parse
from service.frontend.core.auth import Auth, Caller
from service.frontend.core.engine import Encode, Engine, value_or_error
from service.frontend.core.request_log import RequestLog, RequestRecord
from service.frontend.grpc.call import (
    answer_each,
    begin_call,
    caller_of,
    reply_id,
    take_id,
    timeout_ms_of,
    timings_message,
)
from service.frontend.grpc.status import Context, abort, note, status_of
from service.settings import Settings
from service.types import ModelStatus, PredictRequest, Reply

TASKS: dict[Task, pb.Task.ValueType] = {
    Task.CLASSIFY: pb.TASK_CLASSIFY,
    Task.DETECT: pb.TASK_DETECT,
    Task.SEGMENT: pb.TASK_SEGMENT,
}


def list_models(engine: Engine) -> pb.ListModelsResponse:
    """All served models, in the worker's order.

    Raises:
        Unavailable: it is not known yet what the worker serves.
    """
    return pb.ListModelsResponse(models=[_model(engine, status) for status in engine.models()])


def _model(engine: Engine, status: ModelStatus) -> pb.Model:
    config: BundleConfig = status.config
    post = config.postprocessing
    return pb.Model(
        name=config.name,
        task=TASKS[config.task],
        ready=status.ready,
        labels=config.labels,
        weights_sha256=config.weights_sha256,
        is_default=engine.resolve(config.task, None).config.name == config.name,
        device=status.device,
        precision=status.precision,
        family=config.architecture.family,
        backbone=config.architecture.backbone.size,
        input=_input(config.preprocessing),
        score_threshold=post.score_threshold if isinstance(post, DetectPostSpec) else None,
        source=pb.Source(**config.source.model_dump()),
        accuracy=accuracy_of(config.accuracy),
    )


def _input(spec: Preprocessing) -> pb.Input:
    normalisation = spec.normalisation
    match spec:
        case CenterCropSpec():
            crop = pb.CenterCrop(resize_shorter=spec.resize_shorter, crop=spec.crop)
            return pb.Input(center_crop=crop, mean=normalisation.mean, std=normalisation.std)
        case KeepRatioSpec():
            ratio = pb.KeepRatio(long_side=spec.long_side, short_side=spec.short_side, pad_multiple=spec.pad_multiple)
            return pb.Input(keep_ratio=ratio, mean=normalisation.mean, std=normalisation.std)


def accuracy_of(accuracy: Accuracy | None) -> pb.Accuracy | None:
    return None if accuracy is None else pb.Accuracy(metrics=accuracy.metrics, measured_on=accuracy.measured_on)


SERVICE: str = pb.DESCRIPTOR.services_by_name["Vision"].full_name


def add_vision(
    server: grpc.aio.Server,
    engine: Engine,
    settings: Settings,
    gate: Auth,
    request_log: RequestLog,
) -> None:
    """Have a server answer the calls of `SERVICE`."""
    vision = Vision(engine, settings, gate, request_log)
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "ListModels": grpc.unary_unary_rpc_method_handler(vision.list_models)
    }
    for method in METHODS:
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(partial(vision.answer, method))
        handlers[f"{method.name}Stream"] = grpc.stream_stream_rpc_method_handler(partial(vision.converse, method))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class Vision:
    """The service's methods, from bytes to bytes."""

    def __init__(self, engine: Engine, settings: Settings, gate: Auth, request_log: RequestLog) -> None:
        self._engine = engine
        self._settings = settings
        self._gate = gate
        self._log = request_log

    async def answer(self, method: Method, data: bytes, context: Context) -> bytes:
        """A unary call. Its trailing metadata are `x-request-id` and `server-timing`, as REST's headers."""
        with begin_call(self._log, f"{SERVICE}/{method.name}", context) as turn:
            outcome = await self._outcome(method, turn, data, context, partial(caller_of, context, self._gate))
            if isinstance(outcome, ConvMLPError):
                await abort(context, outcome, turn)
            context.set_trailing_metadata((("x-request-id", turn.request_id), ("server-timing", turn.server_timing())))
            reply = outcome.SerializeToString()
            turn.reply_bytes = len(reply)
            return reply

    async def converse(self, method: Method, messages: AsyncIterator[bytes], context: Context) -> None:
        """A stream. Wrong credentials end it at once; all other errors are those of single messages."""
        with begin_call(self._log, f"{SERVICE}/{method.name}Stream", context) as call:
            await self._converse(method, call, messages, context)

    async def _converse(
        self, method: Method, call: RequestRecord, messages: AsyncIterator[bytes], context: Context
    ) -> None:
        call.task = method.task.value
        try:
            call.caller = caller = caller_of(context, self._gate)
        except ConvMLPError as error:
            call.predicts = True
            await abort(context, error, call)
        await context.send_initial_metadata((("x-request-id", call.request_id),))

        async def answer(at: int, data: bytes) -> bytes:
            with self._log.message(call, at) as turn:
                outcome = await self._outcome(method, turn, data, context, lambda: caller)
                if isinstance(outcome, ConvMLPError):
                    note(outcome, turn)
                    outcome = method.response(id=reply_id(turn), error=status_of(outcome, turn.request_id))
                reply = outcome.SerializeToString()
                turn.reply_bytes = len(reply)
            call.request_bytes += len(data)
            call.reply_bytes += len(reply)
            return reply

        await answer_each(messages, answer, context.write, self._settings.max_stream_in_flight)

    async def list_models(self, _: bytes, context: Context) -> bytes:
        async def listed() -> pb.ListModelsResponse:
            call.caller = caller_of(context, self._gate)
            return list_models(self._engine)

        with begin_call(self._log, f"{SERVICE}/ListModels", context) as call:
            outcome = await value_or_error(listed(), request_id=call.request_id)
            if isinstance(outcome, ConvMLPError):
                await abort(context, outcome, call)
            context.set_trailing_metadata((("x-request-id", call.request_id),))
            return outcome.SerializeToString()

    async def _outcome(
        self, method: Method, turn: RequestRecord, data: bytes, context: Context, caller: Callable[[], Caller]
    ) -> Response | ConvMLPError:
        answered = self._response(method, turn, data, timeout_ms_of(context), caller)
        return await value_or_error(answered, request_id=turn.request_id)

    async def _response(
        self, method: Method, turn: RequestRecord, data: bytes, timeout_ms: int | None, caller: Callable[[], Caller]
    ) -> Response:
        deadline_s = self._engine.deadline(timeout_ms)
        turn.predicts, turn.task = True, method.task.value
        try:
            turn.request_bytes = len(data)
            turn.caller = whose = caller()
            message = parse(method.request, data)
            take_id(turn, message.id)  # first of all: who is refused must know which of his messages was
            self._gate.admit(whose)
            self._engine.bodies.take(turn, len(data))
            request, encode = self._read(method, turn, message, deadline_s)
            del data, message  # two more copies of the image
            reply = await self._predict(request, encode)
        finally:
            self._engine.bodies.release(turn)
        turn.timings = reply.timings
        response = reply.payload
        response.id, response.model = reply_id(turn), turn.model
        response.timings.CopyFrom(timings_message(turn))
        return response

    def _read(
        self, method: Method, turn: RequestRecord, message: Request, deadline_s: float
    ) -> tuple[PredictRequest, Encode[Response]]:
        """What to predict, and how to tell it."""
        asked = asked_of(message)
        model = self._engine.resolve(method.task, asked.model)
        turn.model = model.config.name
        request = PredictRequest(turn.request_id, model, message.image, asked.params, deadline_s)
        return request, encoder_of(message, asked.mask_format)

    async def _predict(self, request: PredictRequest, encode: Encode[Response]) -> Reply[Response]:
        try:
            return await self._engine.predict(request, encode)
        except asyncio.CancelledError:
            if time.monotonic() < request.deadline_s:
                raise  # the caller left
            raise DeadlineExceeded("the call's deadline passed before its answer was ready") from None
