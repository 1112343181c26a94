"""The gRPC transport: unary calls, and one bidirectional stream for many images with the same parameters."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import grpc
import grpc.aio

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1 import vision_pb2_grpc
from convmlp_client.errors import ClientError, DeadlineExceeded, ProtocolError
from convmlp_client.geometry import ImageSize
from convmlp_client.parameters import PredictParams
from convmlp_client.results import Analysis, Answer, AnyResult, Embedding, Meta, Model, Task
from convmlp_client.transport import (
    CONNECT_TIMEOUT_S,
    DEFAULT_PORTS,
    MAX_RESPONSE_BYTES,
    Attempt,
    StrPath,
    TransportConfig,
)
from convmlp_client.transport.grpc_errors import error_from_call, error_from_status
from convmlp_client.transport.grpc_messages import (
    TASKS,
    Request,
    Response,
    model_from_message,
    request_message,
    result_from_message,
    timings_of,
)

if TYPE_CHECKING:
    from convmlp.v1.vision_pb2_grpc import VisionAsyncStub

R = TypeVar("R", bound=AnyResult)
Metadata = Sequence[tuple[str, str]]

KEEPALIVE_MS: Final = 30_000
"""Between pings while calls are running: shorter than the idle timeouts of common load balancers, 60 s to 350 s.
An idle connection is not pinged, because servers close connections of callers that ping too often."""
KEEPALIVE_TIMEOUT_MS: Final = 10_000
RECONNECT_BACKOFF_MS: Final = (200, 2_000)
"""The first and the longest pause between connection attempts. gRPC's default grows to two minutes, during which a
restarted service stays unnoticed."""
CLOSE_SETTLE_S: Final = 0.05
"""gRPC delivers events of cancelled calls for a moment. If the event loop closes before, another loop of the process
that uses gRPC logs errors about them."""
HALF_CLOSE_TIMEOUT_S: Final = 1.0
"""How long a stream waits for the service to confirm its end, before it is cancelled."""
COMPRESSION: Final = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}

HEALTH_METHOD: Final = "/grpc.health.v1.Health/Check"
SERVING: Final = b"\x08\x01"
"""A serialised HealthCheckResponse with status SERVING. The request for the whole service is empty."""


class GrpcTransport:
    """Implements `Transport` over gRPC."""

    def __init__(self, config: TransportConfig) -> None:
        """Raises OSError if a certificate or key cannot be read."""
        self._address = config.address
        self._config = config
        self._credentials = _credentials(config) if config.secure else None
        self._metadata: Metadata = () if config.api_key is None else (("authorization", f"Bearer {config.api_key}"),)
        self._opened: _Methods | None = None

    async def predict(self, params: PredictParams[R], image: bytes, attempt: Attempt) -> R:
        request = request_message(params, image, attempt.request_id)
        return self.result_of(params, await self._call(self._methods().unary[params.task], request, attempt))

    def result_of(self, params: PredictParams[R], response: Response) -> R:
        """The result in a response without an error."""
        result: AnyResult
        if isinstance(response, pb.AnalyzeResponse):
            names = params.values.get("models") or [TASKS[answer.task].value for answer in response.answers]
            result = _analysis(response, names, self._address)
        else:
            result = result_from_message(response)
        assert isinstance(result, params.result_type)
        return result

    def open_stream(self, params: PredictParams[R]) -> GrpcImageStream[R]:
        return GrpcImageStream(self, params, self._methods().streams[params.task], self._metadata, self._address)

    async def models(self, attempt: Attempt) -> tuple[Model, ...]:
        response = await self._call(self._methods().list_models, pb.ListModelsRequest(), attempt)
        return tuple(model_from_message(model) for model in response.models if model.task in TASKS)

    async def ready(self, attempt: Attempt) -> bool:
        status: bytes = await self._call(self._methods().health, b"", attempt)
        return status == SERVING

    async def aclose(self) -> None:
        if self._opened is not None:
            await self._opened.channel.close()
            await asyncio.sleep(CLOSE_SETTLE_S)

    async def _call(self, method: Any, request: Any, attempt: Attempt) -> Any:  # noqa: ANN401  (each has its messages)
        metadata = (*self._metadata, ("x-request-id", attempt.request_id))
        try:
            response = await method(request, timeout=attempt.timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise error_from_call(error, self._address, attempt.request_id) from error
        if response is None:  # gRPC could not parse the message
            raise ProtocolError(f"the response of {self._address} is not one of this service")
        return response

    def _methods(self) -> _Methods:
        if self._opened is None:  # not in __init__: a channel belongs to the running event loop
            self._opened = _methods(_open_channel(self._config, self._credentials))
        return self._opened


def _analysis(response: pb.AnalyzeResponse, names: Sequence[str], address: str) -> Analysis:
    """The answers in a response, by these names in their order."""
    meta = Meta("", Task.ANALYZE, response.id, timings_of(response))
    answers: dict[str, Answer | ClientError] = {}
    for name, answer in zip(names, response.answers, strict=True):
        kind = answer.WhichOneof("result")
        if kind is None or kind == "error":
            answers[name] = error_from_status(answer.error, address, response.id)
        else:
            result = result_from_message(getattr(answer, kind))
            assert not isinstance(result, Embedding)
            answers[name] = replace(result, meta=replace(meta, model=answer.model, task=TASKS[answer.task]))
    models = {name: answer.model for name, answer in zip(names, response.answers, strict=True)}
    return Analysis(ImageSize(response.image.width, response.image.height), answers, models, meta)


class GrpcImageStream(Generic[R]):
    """Implements `ImageStream`: concurrent requests over one bidirectional stream.

    It opens at the first request, and again after it broke.
    """

    def __init__(
        self,
        transport: GrpcTransport,
        params: PredictParams[R],
        method: Any,  # noqa: ANN401  (each has its messages)
        metadata: Metadata,
        address: str,
    ) -> None:
        self._transport = transport
        self._params = params
        self._method = method
        self._metadata = metadata
        self._address = address
        self._stream: _Stream | None = None

    async def predict(self, image: bytes, attempt: Attempt) -> R:
        request = request_message(self._params, image, attempt.request_id)
        if self._stream is None or self._stream.broken:
            self._stream = _Stream(self._method, self._metadata)
        try:
            async with asyncio.timeout(attempt.timeout_s):
                reply = await self._stream.call(request)
        except TimeoutError:
            # Enforced here, because gRPC has a deadline for a whole stream only.
            detail = f"no reply within {attempt.timeout_s:g} s"
            raise DeadlineExceeded(detail, request_id=attempt.request_id) from None
        if reply is None:  # another image may have broken the stream: this one is sent by a unary call
            return await self._transport.predict(self._params, image, attempt)
        if reply.HasField("error"):
            raise error_from_status(reply.error, self._address, reply.id)
        return self._transport.result_of(self._params, reply)

    async def aclose(self) -> None:
        """End the stream and cancel its requests."""
        if self._stream is not None:
            await self._stream.aclose()


@dataclass(eq=False, slots=True)
class _PendingRequest:
    request: Request
    reply: asyncio.Future[Response | None]


class _Stream:
    """One bidirectional call from its start to its end. Replies are matched to requests by id."""

    def __init__(self, method: Any, metadata: Metadata) -> None:  # noqa: ANN401
        self.broken = False
        self._id = uuid.uuid4().hex
        self._call = method(metadata=(*metadata, ("x-request-id", self._id)))
        # Queue and dict hold no more than the callers' concurrency. None in the queue ends the stream.
        self._unsent: asyncio.Queue[_PendingRequest | None] = asyncio.Queue()
        self._sent: dict[str, _PendingRequest] = {}
        self._unanswered = 0
        """Requests that the service has not answered yet, those that timed out here included."""
        self._writer = asyncio.create_task(self._write())
        self._reader = asyncio.create_task(self._read())

    async def call(self, request: Request) -> Response | None:
        """The reply to a request, whose id this changes; None if the stream broke before the reply."""
        pending = _PendingRequest(request, asyncio.get_running_loop().create_future())
        # The writer task writes, because gRPC ends the whole stream if a write is cancelled.
        self._unsent.put_nowait(pending)
        try:
            return await pending.reply
        finally:
            self._sent.pop(request.id, None)

    async def aclose(self) -> None:
        if not (self.broken or self._unanswered):
            self._unsent.put_nowait(None)
            await asyncio.wait({self._reader}, timeout=HALF_CLOSE_TIMEOUT_S)
        self._call.cancel()
        self._writer.cancel()
        await asyncio.wait({self._writer, self._reader})

    async def _write(self) -> None:
        try:
            written = 0
            while (pending := await self._unsent.get()) is not None:
                if pending.reply.done():  # cancelled by its caller
                    continue
                # The service numbers messages in the same way, and uses this id for a message that it cannot parse.
                pending.request.id = f"{self._id}-{written}"
                self._sent[pending.request.id] = pending
                self._unanswered += 1
                await self._call.write(pending.request)
                written += 1
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, asyncio.CancelledError):
            self._call.cancel()  # the reader ends with the reason

    async def _read(self) -> None:
        try:
            async for reply in self._call:
                if reply is None:  # gRPC could not parse the message
                    break
                self._unanswered -= 1
                pending = self._sent.get(reply.id)
                if pending is not None and not pending.reply.done():
                    pending.reply.set_result(reply)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        finally:
            self.broken = True
            self._call.cancel()
            self._writer.cancel()
            unsent = [self._unsent.get_nowait() for _ in range(self._unsent.qsize())]
            for pending in (*self._sent.values(), *unsent):
                if pending is not None and not pending.reply.done():
                    pending.reply.set_result(None)


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
    unary = {task: getattr(stub, task.capitalize()) for task in Task}  # Classify, Detect and so on
    streams = {task: getattr(stub, f"{task.capitalize()}Stream") for task in Task}
    return _Methods(channel, unary, streams, stub.ListModels, channel.unary_unary(HEALTH_METHOD))


def _open_channel(config: TransportConfig, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    host = f"[{config.url.hostname}]" if ":" in (config.url.hostname or "") else config.url.hostname
    target = f"{host}:{config.url.port or DEFAULT_PORTS[config.url.scheme]}"
    compression = COMPRESSION[config.compression] if config.compression is not None else None
    if credentials is None:
        return grpc.aio.insecure_channel(target, _channel_options(config), compression)
    return grpc.aio.secure_channel(target, credentials, _channel_options(config), compression)


def _channel_options(config: TransportConfig) -> list[tuple[str, Any]]:
    return [
        # No limit on requests: the service decides how large an image may be.
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_BACKOFF_MS[0]),
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_TIMEOUT_S * 1000)),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MS[1]),
        ("grpc.primary_user_agent", config.user_agent),
    ]


def _credentials(config: TransportConfig) -> grpc.ChannelCredentials:
    def read(path: StrPath) -> bytes:
        return Path(path).read_bytes()

    root_certificates = None if config.ca_file is None else read(config.ca_file)
    if config.client_certificate is None:
        return grpc.ssl_channel_credentials(root_certificates)
    certificate, key = config.client_certificate
    return grpc.ssl_channel_credentials(root_certificates, read(key), read(certificate))
