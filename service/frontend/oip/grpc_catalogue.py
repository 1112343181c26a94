"""The methods of the gRPC service that tell of the service and its models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from service.errors import ModelNotFound, Unavailable
from service.frontend.engine import Engine
from service.frontend.oip.catalogue import Catalogue
from service.frontend.oip.describe import server_metadata
from service.frontend.oip.generated import grpc_predict_v2_pb2 as pb

Facts = dict[str, Any]
"""A reply's fields."""


@dataclass(frozen=True, slots=True)
class Teller:
    """One method. `facts` takes its message and the call's deadline, on the clock of `time.monotonic`.

    `open_to_all`: no key is asked for.
    """

    request: type[Message]
    reply: type[Message]
    facts: Callable[[Any, float | None], Awaitable[Facts]]
    open_to_all: bool = False

    async def tell(self, message: Message, deadline_s: float | None) -> Message:
        """Raises the domain errors of `Catalogue`."""
        return ParseDict(await self.facts(message, deadline_s), self.reply())


def tellers(engine: Engine, catalogue: Catalogue) -> dict[str, Teller]:
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
        return catalogue.statistics(message.name, message.version)

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
        "ServerLive": Teller(pb.ServerLiveRequest, pb.ServerLiveResponse, live, open_to_all=True),
        "ServerReady": Teller(pb.ServerReadyRequest, pb.ServerReadyResponse, ready, open_to_all=True),
        "ServerMetadata": Teller(pb.ServerMetadataRequest, pb.ServerMetadataResponse, metadata),
        "ModelReady": Teller(pb.ModelReadyRequest, pb.ModelReadyResponse, model_ready),
        "ModelMetadata": Teller(pb.ModelMetadataRequest, pb.ModelMetadataResponse, model_metadata),
        "ModelConfig": Teller(pb.ModelConfigRequest, pb.ModelConfigResponse, model_config),
        "ModelStatistics": Teller(pb.ModelStatisticsRequest, pb.ModelStatisticsResponse, statistics),
        "RepositoryIndex": Teller(pb.RepositoryIndexRequest, pb.RepositoryIndexResponse, index),
        "RepositoryModelLoad": Teller(pb.RepositoryModelLoadRequest, pb.RepositoryModelLoadResponse, load),
        "RepositoryModelUnload": Teller(pb.RepositoryModelUnloadRequest, pb.RepositoryModelUnloadResponse, unload),
        "SystemSharedMemoryStatus": Teller(
            pb.SystemSharedMemoryStatusRequest, pb.SystemSharedMemoryStatusResponse, no_regions
        ),
        "CudaSharedMemoryStatus": Teller(
            pb.CudaSharedMemoryStatusRequest, pb.CudaSharedMemoryStatusResponse, no_regions
        ),
    }
