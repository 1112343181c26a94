"""The protocol over gRPC: the service `inference.GRPCInferenceService`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

from model.model_name import versioned_name
from service.errors import ModelNotFound, Unavailable
from service.frontend.api.oip.generated import grpc_predict_v2_pb2 as pb
from service.frontend.api.oip.grpc_codec import read_request, response_message, stream_error, stream_message
from service.frontend.api.oip.inference import Inference, offload
from service.frontend.api.oip.metadata import NO_SETTINGS, NO_SHARED_MEMORY, Fields, ModelRepository, server_metadata
from service.frontend.api.oip.protocol import InferResponse
from service.frontend.core.auth import Auth, Caller
from service.frontend.core.engine import Engine
from service.frontend.core.request_log import RequestLog, RequestRecord
from service.frontend.grpc.call import RpcService, parse
from service.settings import Settings

SERVICE: str = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
UNSUPPORTED = {
    "SystemSharedMemoryRegister": NO_SHARED_MEMORY,
    "SystemSharedMemoryUnregister": NO_SHARED_MEMORY,
    "CudaSharedMemoryRegister": NO_SHARED_MEMORY,
    "CudaSharedMemoryUnregister": NO_SHARED_MEMORY,
    "TraceSetting": NO_SETTINGS,
    "LogSettings": NO_SETTINGS,
}


def add_open_inference(
    server: grpc.aio.Server, engine: Engine, auth: Auth, settings: Settings, request_log: RequestLog
) -> None:
    """Add the service to a server."""
    repository = ModelRepository(engine, settings)
    infer = InferMethod(engine, auth, Inference(engine, auth, settings, repository)).infer
    service = RpcService(SERVICE, auth, request_log, settings.max_stream_in_flight)
    service.add_unary("ModelInfer", partial(infer, response_message), task="")
    # Triton's clients match a stream's replies by their order.
    service.add_stream("ModelStreamInfer", partial(infer, stream_message), _stream_error, ordered=True)
    for name, method in unary_methods(engine, repository).items():
        service.add_unary(name, method.call, probe=method.probe)
    for name, reason in UNSUPPORTED.items():
        service.add_unsupported(name, reason)
    service.add_to(server)


class InferMethod:
    """ModelInfer and ModelStreamInfer."""

    def __init__(self, engine: Engine, auth: Auth, inference: Inference) -> None:
        self._engine = engine
        self._auth = auth
        self._inference = inference

    async def infer(
        self, encode: Callable[[InferResponse], bytes], record: RequestRecord, data: bytes, timeout_ms: int | None
    ) -> bytes:
        """The reply to one inference request."""
        deadline_s = self._engine.deadline(timeout_ms)
        try:
            if not self._auth.is_open:
                self._auth.admit(Caller(record.caller))
            self._engine.bodies.take(record, len(data))
            message = parse(pb.ModelInferRequest, data)
            name, version = message.model_name, message.model_version
            record.given_id, record.given_model = message.id, versioned_name(name, version) if version else name
            model = self._inference.resolve(record, name, version)
            # Raw tensors are copied, not parsed.
            nbytes = len(data) // 256 if message.raw_input_contents else len(data)
            del data  # the message holds a copy
            request = await offload(partial(read_request, message), nbytes, deadline_s)
            del message  # it holds a copy of the tensors
            return await self._inference.infer(model, record, deadline_s, request, encode)
        finally:
            self._engine.bodies.release(record)


def _stream_error(record: RequestRecord, status: Status) -> bytes:
    return stream_error(status.message, record.given_model, record.given_id)


@dataclass(frozen=True, slots=True)
class UnaryMethod:
    """A method besides inference.

    `fields` maps its message and the call's deadline, on the clock of `time.monotonic`, to the reply's fields. Every
    caller may use a `probe`.
    """

    request: type[Message]
    reply: type[Message]
    fields: Callable[[Any, float | None], Awaitable[Fields]]
    probe: bool = False

    async def call(self, _: RequestRecord, data: bytes, timeout_ms: int | None) -> bytes:
        """Raises as the methods of `ModelRepository`."""
        deadline_s = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        fields = await self.fields(parse(self.request, data), deadline_s)
        return ParseDict(fields, self.reply()).SerializeToString()


def unary_methods(engine: Engine, repository: ModelRepository) -> dict[str, UnaryMethod]:
    """By name."""

    async def live(_: pb.ServerLiveRequest, __: float | None) -> Fields:
        return {"live": True}

    async def ready(_: pb.ServerReadyRequest, __: float | None) -> Fields:
        return {"ready": engine.readiness().ready}

    async def metadata(_: pb.ServerMetadataRequest, __: float | None) -> Fields:
        return server_metadata()

    async def model_ready(message: pb.ModelReadyRequest, _: float | None) -> Fields:
        try:
            return {"ready": repository.model(message.name, message.version).ready}
        except (ModelNotFound, Unavailable):  # Triton, too, reports an unknown model as not ready
            return {"ready": False}

    async def model_metadata(message: pb.ModelMetadataRequest, _: float | None) -> Fields:
        return repository.metadata(message.name, message.version)

    async def model_config(message: pb.ModelConfigRequest, _: float | None) -> Fields:
        return {"config": repository.config(message.name, message.version)}

    async def statistics(message: pb.ModelStatisticsRequest, _: float | None) -> Fields:
        return repository.statistics_of(message.name, message.version)

    async def index(message: pb.RepositoryIndexRequest, deadline_s: float | None) -> Fields:
        return {"models": await repository.index(only_ready=message.ready, deadline_s=deadline_s)}

    async def load(message: pb.RepositoryModelLoadRequest, deadline_s: float | None) -> Fields:
        await repository.load(message.model_name, message.parameters, deadline_s)
        return {}

    async def unload(message: pb.RepositoryModelUnloadRequest, deadline_s: float | None) -> Fields:
        await repository.unload(message.model_name, deadline_s)
        return {}

    async def no_regions(_: Message, __: float | None) -> Fields:
        return {}

    return {
        "ServerLive": UnaryMethod(pb.ServerLiveRequest, pb.ServerLiveResponse, live, probe=True),
        "ServerReady": UnaryMethod(pb.ServerReadyRequest, pb.ServerReadyResponse, ready, probe=True),
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
