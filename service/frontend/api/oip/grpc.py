"""The methods of the gRPC service that tell of the service and its models.

The protocol over gRPC: `inference.GRPCInferenceService`.

Messages are parsed here and not by gRPC, which would answer one that is malformed with its own internals.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Never, TypeVar

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message

from model.errors import ConvMLPError
from service.errors import BadRequest, DeadlineExceeded, ModelNotFound, Unavailable
from service.frontend.api.oip.generated import grpc_predict_v2_pb2 as pb
from service.frontend.api.oip.grpc_codec import read_request, response_message, stream_error, stream_message
from service.frontend.api.oip.inference import Inference, offload
from service.frontend.api.oip.metadata import NO_SETTINGS, NO_SHARED_MEMORY, ModelRepository, server_metadata
from service.frontend.api.oip.protocol import InferResponse
from service.frontend.core.auth import Auth, Caller
from service.frontend.core.engine import Engine, value_or_error
from service.frontend.core.request_log import RequestLog, RequestRecord
from service.frontend.grpc.call import answer_in_order, begin_call, caller_of, timeout_ms_of
from service.frontend.grpc.status import Context, abort, note, status_of
from service.settings import Settings

Facts = dict[str, Any]
"""A reply's fields."""


@dataclass(frozen=True, slots=True)
class UnaryMethod:
    """One method. `facts` takes its message and the call's deadline, on the clock of `time.monotonic`.

    `open_to_all`: no key is asked for.
    """

    request: type[Message]
    reply: type[Message]
    facts: Callable[[Any, float | None], Awaitable[Facts]]
    open_to_all: bool = False

    async def tell(self, message: Message, deadline_s: float | None) -> Message:
        """Raises the domain errors of `ModelRepository`."""
        return ParseDict(await self.facts(message, deadline_s), self.reply())


def unary_methods(engine: Engine, catalogue: ModelRepository) -> dict[str, UnaryMethod]:
    """By the method's name."""

    async def live(_: pb.ServerLiveRequest, __: float | None) -> Facts:
        return {"live": True}

    async def ready(_: pb.ServerReadyRequest, __: float | None) -> Facts:
        return {"ready": engine.readiness().ready}

    async def metadata(_: pb.ServerMetadataRequest, __: float | None) -> Facts:
        return server_metadata()

    async def model_ready(message: pb.ModelReadyRequest, _: float | None) -> Facts:
        try:
            return {"ready": catalogue.status(message.name, message.version).ready}
        except (ModelNotFound, Unavailable):  # as Triton's, a model that is not there is not ready
            return {"ready": False}

    async def model_metadata(message: pb.ModelMetadataRequest, _: float | None) -> Facts:
        return catalogue.metadata(message.name, message.version)

    async def model_config(message: pb.ModelConfigRequest, _: float | None) -> Facts:
        return {"config": catalogue.config(message.name, message.version)}

    async def statistics(message: pb.ModelStatisticsRequest, _: float | None) -> Facts:
        return catalogue.statistics_of(message.name, message.version)

    async def index(message: pb.RepositoryIndexRequest, deadline_s: float | None) -> Facts:
        return {"models": await catalogue.index(only_ready=message.ready, deadline_s=deadline_s)}

    async def load(message: pb.RepositoryModelLoadRequest, deadline_s: float | None) -> Facts:
        await catalogue.load(message.model_name, message.parameters, deadline_s)
        return {}

    async def unload(message: pb.RepositoryModelUnloadRequest, deadline_s: float | None) -> Facts:
        await catalogue.unload(message.model_name, deadline_s)
        return {}

    async def no_regions(_: Message, __: float | None) -> Facts:
        return {}

    return {
        "ServerLive": UnaryMethod(pb.ServerLiveRequest, pb.ServerLiveResponse, live, open_to_all=True),
        "ServerReady": UnaryMethod(pb.ServerReadyRequest, pb.ServerReadyResponse, ready, open_to_all=True),
        "ServerMetadata": UnaryMethod(pb.ServerMetadataRequest, pb.ServerMetadataResponse, metadata),
        "ModelReady": UnaryMethod(pb.ModelReadyRequest, pb.ModelReadyResponse, model_ready),
        "ModelMetadata": UnaryMethod(pb.ModelMetadataRequest, pb.ModelMetadataResponse, model_metadata),
        "ModelConfig": UnaryMethod(pb.ModelConfigRequest, pb.ModelConfigResponse, model_config),
        "ModelStatistics": UnaryMethod(pb.ModelStatisticsRequest, pb.ModelStatisticsResponse, statistics),
        "RepositoryIndex": UnaryMethod(pb.RepositoryIndexRequest, pb.RepositoryIndexResponse, index),
        "RepositoryModelLoad": UnaryMethod(pb.RepositoryModelLoadRequest, pb.RepositoryModelLoadResponse, load),
        "RepositoryModelUnload": UnaryMethod(pb.RepositoryModelUnloadRequest, pb.RepositoryModelUnloadResponse, unload),
        "SystemSharedMemoryStatus": UnaryMethod(
            pb.SystemSharedMemoryStatusRequest, pb.SystemSharedMemoryStatusResponse, no_regions
        ),
        "CudaSharedMemoryStatus": UnaryMethod(
            pb.CudaSharedMemoryStatusRequest, pb.CudaSharedMemoryStatusResponse, no_regions
        ),
    }


SERVICE: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

M = TypeVar("M", bound=Message)


def add_open_inference(
    server: grpc.aio.Server,
    engine: Engine,
    settings: Settings,
    gate: Auth,
    request_log: RequestLog,
) -> None:
    """Have a server answer the calls of `SERVICE`."""
    catalogue = ModelRepository(engine, settings)
    inference = Inference(engine, gate, settings, catalogue)
    service = GrpcServer(engine, settings, gate, inference, catalogue, request_log)
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(service.infer),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(service.converse),
    }
    for name, teller in unary_methods(engine, catalogue).items():
        handlers[name] = grpc.unary_unary_rpc_method_handler(partial(service.tell, name, teller))
    for name, why in UNSUPPORTED.items():
        handlers[name] = grpc.unary_unary_rpc_method_handler(partial(service.refuse, why))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


UNSUPPORTED = {
    "SystemSharedMemoryRegister": NO_SHARED_MEMORY,
    "SystemSharedMemoryUnregister": NO_SHARED_MEMORY,
    "CudaSharedMemoryRegister": NO_SHARED_MEMORY,
    "CudaSharedMemoryUnregister": NO_SHARED_MEMORY,
    "TraceSetting": NO_SETTINGS,
    "LogSettings": NO_SETTINGS,
}


class GrpcServer:
    """What the methods do, from bytes to bytes."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        gate: Auth,
        inference: Inference,
        catalogue: ModelRepository,
        request_log: RequestLog,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._gate = gate
        self._inference = inference
        self._catalogue = catalogue
        self._log = request_log

    async def infer(self, data: bytes, context: Context) -> bytes:
        """ModelInfer. Its trailing metadata are `x-request-id` and `server-timing`, as over HTTP."""
        with begin_call(self._log, f"{SERVICE}/ModelInfer", context) as turn:
            answered = self._answer(turn, data, context, partial(caller_of, context, self._gate), response_message)
            outcome = await value_or_error(answered, request_id=turn.request_id)
            if isinstance(outcome, ConvMLPError):
                await abort(context, outcome, turn)
            context.set_trailing_metadata((("x-request-id", turn.request_id), ("server-timing", turn.server_timing())))
            turn.reply_bytes = len(outcome)
            return outcome

    async def converse(self, messages: AsyncIterator[bytes], context: Context) -> None:
        """ModelStreamInfer. Wrong credentials end it at once; all other errors are those of single requests."""
        with begin_call(self._log, f"{SERVICE}/ModelStreamInfer", context) as call:
            await self._converse(call, messages, context)

    async def _converse(self, call: RequestRecord, messages: AsyncIterator[bytes], context: Context) -> None:
        try:
            call.caller = caller = caller_of(context, self._gate)
        except ConvMLPError as error:
            call.predicts = True
            await abort(context, error, call)
        await context.send_initial_metadata((("x-request-id", call.request_id),))

        async def answer(at: int, data: bytes) -> bytes:
            with self._log.message(call, at) as turn:
                answered = self._answer(turn, data, context, lambda: caller, stream_message)
                reply = await value_or_error(answered, request_id=turn.request_id)
                if isinstance(reply, ConvMLPError):
                    note(reply, turn)
                    reply = stream_error(status_of(reply, turn.request_id).message, turn.given_id)
                turn.reply_bytes = len(reply)
            call.request_bytes += len(data)
            call.reply_bytes += len(reply)
            return reply

        await answer_in_order(messages, answer, context.write, self._settings.max_stream_in_flight)

    async def tell(self, name: str, teller: UnaryMethod, data: bytes, context: Context) -> bytes:
        """A method that asks about the service or a model."""

        async def answered() -> bytes:
            if not teller.open_to_all:
                call.caller = caller_of(context, self._gate)
            reply = await teller.tell(_parse(teller.request, data), _deadline_s(context))
            return reply.SerializeToString()

        with begin_call(self._log, f"{SERVICE}/{name}", context, probe=teller.open_to_all) as call:
            outcome = await value_or_error(answered(), request_id=call.request_id)
            if isinstance(outcome, ConvMLPError):
                await abort(context, outcome, call)
            context.set_trailing_metadata((("x-request-id", call.request_id),))
            return outcome

    async def refuse(self, why: str, _: bytes, context: Context) -> Never:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, why)

    async def _answer(
        self,
        turn: RequestRecord,
        data: bytes,
        context: Context,
        caller: Callable[[], Caller],
        encode: Callable[[InferResponse], bytes],
    ) -> bytes:
        deadline_s = self._engine.deadline(timeout_ms_of(context))
        turn.predicts = True
        try:
            turn.request_bytes = len(data)
            turn.caller = whose = caller()
            self._gate.admit(whose)
            self._engine.bodies.take(turn, len(data))
            message = _parse(pb.ModelInferRequest, data)
            turn.given_id = message.id
            turn.task = self._catalogue.task_of(message.model_name)
            model = self._catalogue.status(message.model_name, message.model_version)
            turn.model = model.config.name
            # Raw tensors are only copied.
            nbytes = len(data) // 256 if message.raw_input_contents else len(data)
            asked = await offload(partial(read_request, message), nbytes)
            del message  # it holds a copy of the tensors
            try:
                return await self._inference.infer(model, turn, whose, deadline_s, asked, encode)
            except asyncio.CancelledError:
                if time.monotonic() < deadline_s:
                    raise  # the caller left
                raise DeadlineExceeded("the call's deadline passed before its answer was ready") from None
        finally:
            self._engine.bodies.release(turn)


def _parse(kind: type[M], data: bytes) -> M:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise BadRequest(f"the request is not a message {kind.DESCRIPTOR.full_name} of the protocol") from None


def _deadline_s(context: Context) -> float | None:
    timeout_ms = timeout_ms_of(context)
    return None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
