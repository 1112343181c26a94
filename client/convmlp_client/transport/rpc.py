"""The service over gRPC: unary calls, and a stream where many images have one question."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

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

R = TypeVar("R", bound=Result)

DEFAULT_PORTS = {"grpc": 8001, "grpcs": 443}
KEEP_ALIVE_MS = 30_000
"""Between pings, while calls are in hand: below the idle time-outs of common load balancers, 60 s to 350 s. An idle
connection is not pinged, for servers count that against a caller."""
KEEP_ALIVE_TIMEOUT_MS = 10_000
RECONNECT_MS = (200, 2_000)
"""The first pause before another connection is tried, and the longest. gRPC's own go up to two minutes, for which a
service that is back would go unseen."""
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
        self._channel: grpc.aio.Channel | None = None

    async def predict(self, question: Question[R], image: bytes, call: Call) -> R:
        stub = vision_pb2_grpc.VisionStub(self._open_channel())
        method = {Task.CLASSIFY: stub.Classify, Task.DETECT: stub.Detect, Task.SEGMENT: stub.Segment}[question.task]
        response = await self._ask(method, request_of(question, image, call.request_id), call)
        result = result_of(response)
        assert isinstance(result, question.answer)
        return result

    def session(self, question: Question[R]) -> RpcSession[R]:
        stub = vision_pb2_grpc.VisionStub(self._open_channel())
        method = {
            Task.CLASSIFY: stub.ClassifyStream,
            Task.DETECT: stub.DetectStream,
            Task.SEGMENT: stub.SegmentStream,
        }[question.task]
        return RpcSession(self, question, Stream(method, self._metadata, self._address))

    async def models(self, call: Call) -> tuple[Model, ...]:
        stub = vision_pb2_grpc.VisionStub(self._open_channel())
        listed = await self._ask(stub.ListModels, pb.ListModelsRequest(), call)
        return tuple(model_of(model) for model in listed.models if model.task in TASKS)

    async def ready(self, call: Call) -> bool:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._open_channel().unary_unary(HEALTH)
        status: bytes = await self._ask(check, b"", call)
        return status == SERVING

    async def aclose(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    async def _ask(self, method: Any, request: Any, call: Call) -> Any:  # noqa: ANN401  (each has its own messages)
        metadata = (*self._metadata, ("x-request-id", call.request_id))
        try:
            response = await method(request, timeout=call.timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, self._address, call.request_id) from error
        if response is None:  # gRPC's word for a message that is none
            raise ProtocolError(f"{self._address} answered something else than this service does")
        return response

    def _open_channel(self) -> grpc.aio.Channel:
        if self._channel is None:  # not earlier: a channel belongs to the running event loop
            url = self._setup.url
            host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
            target = f"{host}:{url.port or DEFAULT_PORTS[url.scheme]}"
            options = _options(self._setup)
            compression = COMPRESSION[self._setup.compression] if self._setup.compression is not None else None
            self._channel = (
                grpc.aio.insecure_channel(target, options, compression)
                if self._credentials is None
                else grpc.aio.secure_channel(target, self._credentials, options, compression)
            )
        return self._channel


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
