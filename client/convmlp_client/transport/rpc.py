"""The service over gRPC: unary calls, and a stream where many images have one question."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
import grpc.aio

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1 import vision_pb2_grpc
from convmlp_client.errors import DeadlineExceeded, ProtocolError
from convmlp_client.models import Model
from convmlp_client.questions import Question
from convmlp_client.results import Result, Task
from convmlp_client.transport import CONNECT_S, MAX_ANSWER_BYTES, Call, Setup
from convmlp_client.transport.rpc_errors import error_of_call
from convmlp_client.transport.rpc_messages import TASKS, model_of, request_of, result_of
from convmlp_client.transport.rpc_stream import Metadata, Stream

if TYPE_CHECKING:
    from convmlp.v1.vision_pb2_grpc import VisionAsyncStub

R = TypeVar("R", bound=Result)

DEFAULT_PORTS = {"grpc": 8001, "grpcs": 443}
KEEP_ALIVE_MS = 30_000
"""Between pings, while calls are in hand: below the idle time-outs of common load balancers, 60 s to 350 s. An idle
connection is not pinged, for servers count that against a caller."""
KEEP_ALIVE_TIMEOUT_MS = 10_000
RECONNECT_MS = (200, 2_000)
"""The first pause before another connection is tried, and the longest. gRPC's own go up to two minutes, for which a
service that is back would go unseen."""
SETTLE_S = 0.05
"""gRPC's last events of calls that were withdrawn. Where the event loop is closed before they come, and another one
of the process uses gRPC as well, that one logs errors about them."""
COMPRESSION = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}

HEALTH = "/grpc.health.v1.Health/Check"
SERVING = b"\x08\x01"
"""A HealthCheckResponse whose field 1, `status`, is SERVING. A request about the whole service has no bytes at all."""


class RpcTransport:
    def __init__(self, setup: Setup) -> None:
        """Raises OSError where a certificate or key cannot be read."""
        self._address = setup.address
        self._setup = setup
        self._credentials = _credentials(setup) if setup.secure else None
        self._metadata: Metadata = () if setup.api_key is None else (("authorization", f"Bearer {setup.api_key}"),)
        self._opened: _Methods | None = None

    async def predict(self, question: Question[R], image: bytes, call: Call) -> R:
        request = request_of(question, image, call.request_id)
        result = result_of(await self._ask(self._methods().unary[question.task], request, call))
        assert isinstance(result, question.answer)
        return result

    def session(self, question: Question[R]) -> RpcSession[R]:
        return RpcSession(self, question, Stream(self._methods().streams[question.task], self._metadata, self._address))

    async def models(self, call: Call) -> tuple[Model, ...]:
        listed = await self._ask(self._methods().list_models, pb.ListModelsRequest(), call)
        return tuple(model_of(model) for model in listed.models if model.task in TASKS)

    async def ready(self, call: Call) -> bool:
        status: bytes = await self._ask(self._methods().health, b"", call)
        return status == SERVING

    async def aclose(self) -> None:
        if self._opened is not None:
            await self._opened.channel.close()
            await asyncio.sleep(SETTLE_S)

    async def _ask(self, method: Any, request: Any, call: Call) -> Any:  # noqa: ANN401  (each has its own messages)
        metadata = (*self._metadata, ("x-request-id", call.request_id))
        try:
            response = await method(request, timeout=call.timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, self._address, call.request_id) from error
        if response is None:  # gRPC's word for a message that is none
            raise ProtocolError(f"{self._address} answered something else than this service does")
        return response

    def _methods(self) -> _Methods:
        if self._opened is None:  # not earlier: a channel belongs to the running event loop
            self._opened = _methods(_open_channel(self._setup, self._credentials))
        return self._opened


@dataclass(frozen=True, slots=True)
class _Methods:
    """The service's methods on a channel."""

    channel: grpc.aio.Channel
    unary: Mapping[Task, Any]
    streams: Mapping[Task, Any]
    list_models: Any
    health: Any


def _methods(channel: grpc.aio.Channel) -> _Methods:
    stub: VisionAsyncStub = vision_pb2_grpc.VisionStub(channel)
    return _Methods(
        channel,
        {Task.CLASSIFY: stub.Classify, Task.DETECT: stub.Detect, Task.SEGMENT: stub.Segment},
        {Task.CLASSIFY: stub.ClassifyStream, Task.DETECT: stub.DetectStream, Task.SEGMENT: stub.SegmentStream},
        stub.ListModels,
        channel.unary_unary(HEALTH),
    )


def _open_channel(setup: Setup, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    host = f"[{setup.url.hostname}]" if ":" in (setup.url.hostname or "") else setup.url.hostname
    target = f"{host}:{setup.url.port or DEFAULT_PORTS[setup.url.scheme]}"
    compression = COMPRESSION[setup.compression] if setup.compression is not None else None
    if credentials is None:
        return grpc.aio.insecure_channel(target, _options(setup), compression)
    return grpc.aio.secure_channel(target, credentials, _options(setup), compression)


@dataclass(frozen=True, slots=True)
class RpcSession(Generic[R]):
    """A stream; an image that was in hand when it broke is asked about by a call of its own."""

    transport: RpcTransport
    question: Question[R]
    stream: Stream

    async def predict(self, image: bytes, call: Call) -> R:
        request = request_of(self.question, image, call.request_id)
        try:
            async with asyncio.timeout(call.timeout_s):
                response = await self.stream.ask(request)
        except TimeoutError:
            # A stream has no deadline for one of its messages, so that it is kept here.
            raise DeadlineExceeded(f"no answer within {call.timeout_s:g} s", request_id=call.request_id) from None
        if response is None:
            return await self.transport.predict(self.question, image, call)
        result = result_of(response)
        assert isinstance(result, self.question.answer)
        return result

    async def aclose(self) -> None:
        await self.stream.aclose()


def _options(setup: Setup) -> list[tuple[str, Any]]:
    return [
        # How large an image may be is the service's to say.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        ("grpc.keepalive_time_ms", KEEP_ALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEP_ALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS[0]),
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_S * 1000)),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS[1]),
        ("grpc.primary_user_agent", setup.user_agent),
    ]


def _credentials(setup: Setup) -> grpc.ChannelCredentials:
    def read(path: Any) -> bytes:  # noqa: ANN401
        return Path(path).read_bytes()

    authorities = None if setup.ca_file is None else read(setup.ca_file)
    if setup.client_certificate is None:
        return grpc.ssl_channel_credentials(authorities)
    certificate, key = setup.client_certificate
    return grpc.ssl_channel_credentials(authorities, read(key), read(certificate))
