"""The service over gRPC: unary calls, and a stream where many images have one question."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
import grpc.aio

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1 import vision_pb2_grpc
from convmlp_client.errors import DeadlineExceeded, ProtocolError
from convmlp_client.parameters import Question
from convmlp_client.results import Model, Result, Task
from convmlp_client.transport import CONNECT_S, MAX_ANSWER_BYTES, Call, Setup
from convmlp_client.transport.grpc_errors import error_of_call, error_of_status
from convmlp_client.transport.grpc_messages import TASKS, Request, Response, model_of, request_of, result_of

Metadata = Sequence[tuple[str, str]]

LAST_REPLIES_S = 1.0
"""For a stream's end to be confirmed by the service; then it is cancelled."""


class Stream:
    """A stream, opened when it is first asked, and again when it is asked after it broke."""

    def __init__(self, method: Any, metadata: Metadata, address: str) -> None:  # noqa: ANN401  (each has its messages)
        self._method = method
        self._metadata = metadata
        self._address = address
        self._flight: _Flight | None = None

    async def ask(self, request: Request) -> Response | None:
        """The reply to a request, which is given an id of the stream's; None if the stream broke before it came.

        Whoever is told None does well to ask by a call of its own: what broke the stream may have been a neighbour's.

        Raises:
            ClientError: what the service says in the reply.
        """
        if self._flight is None or self._flight.broken:
            self._flight = _Flight(self._method, self._metadata)
        reply = await self._flight.ask(request)
        if reply is not None and reply.HasField("error"):
            raise error_of_status(reply.error, self._address, reply.id)
        return reply

    async def aclose(self) -> None:
        """End the stream; requests in hand are withdrawn."""
        if self._flight is not None:
            await self._flight.end()


@dataclass(eq=False, slots=True)
class _Asked:
    request: Request
    reply: asyncio.Future[Response | None]


class _Flight:
    """One stream, from its opening to its end."""

    def __init__(self, method: Any, metadata: Metadata) -> None:  # noqa: ANN401
        self.broken = False
        self._id = uuid.uuid4().hex
        self._call = method(metadata=(*metadata, ("x-request-id", self._id)))
        # Both hold no more than is being asked, which whoever asks keeps in bounds. None ends the stream.
        self._unsent: asyncio.Queue[_Asked | None] = asyncio.Queue()
        self._sent: dict[str, _Asked] = {}
        self._unanswered = 0
        """Requests that the service has in hand, those that were given up here among them."""
        self._writing = asyncio.create_task(self._write())
        self._reading = asyncio.create_task(self._read())

    async def ask(self, request: Request) -> Response | None:
        asked = _Asked(request, asyncio.get_running_loop().create_future())
        # Not written here: gRPC ends the whole stream when a write is cancelled.
        self._unsent.put_nowait(asked)
        try:
            return await asked.reply
        finally:
            self._sent.pop(request.id, None)

    async def end(self) -> None:
        if not (self.broken or self._unanswered):
            self._unsent.put_nowait(None)
            await asyncio.wait({self._reading}, timeout=LAST_REPLIES_S)
        self._call.cancel()
        self._writing.cancel()
        await asyncio.wait({self._writing, self._reading})

    async def _write(self) -> None:
        try:
            written = 0
            while (asked := await self._unsent.get()) is not None:
                if asked.reply.done():  # whoever asked gave up meanwhile
                    continue
                # As the service counts: it tells by the position what is wrong with a message that it does not read.
                asked.request.id = f"{self._id}-{written}"
                self._sent[asked.request.id] = asked
                self._unanswered += 1
                await self._call.write(asked.request)
                written += 1
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, asyncio.CancelledError):
            self._call.cancel()  # why it ended is what the reader is told

    async def _read(self) -> None:
        try:
            async for reply in self._call:
                if reply is None:  # gRPC's word for a message that is none
                    break
                self._unanswered -= 1
                asked = self._sent.get(reply.id)
                if asked is not None and not asked.reply.done():
                    asked.reply.set_result(reply)
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        finally:
            self.broken = True
            self._call.cancel()
            self._writing.cancel()
            unsent = [self._unsent.get_nowait() for _ in range(self._unsent.qsize())]
            for asked in (*self._sent.values(), *unsent):
                if asked is not None and not asked.reply.done():
                    asked.reply.set_result(None)


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
