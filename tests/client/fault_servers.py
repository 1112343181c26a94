"""HTTP and gRPC servers with scripted responses, for faults that a real service does not produce."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from convmlp.v1 import vision_pb2

RESULT = {"image": {"width": 4, "height": 3}, "labels": [{"label": "cat", "index": 1, "score": 0.5}]}


def response(
    status: str = "200 OK",
    body: bytes | dict[str, Any] | None = None,
    media_type: str = "application/json",
    headers: Sequence[str] = (),
) -> bytes:
    """An HTTP response; by default a classification as the service sends it."""
    if body is None:
        body = {"model": "m", "task": "classify", "results": [RESULT]}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status}", f"content-type: {media_type}", f"content-length: {len(content)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content


def problem(status: str, code: str, detail: str = "words", headers: Sequence[str] = ()) -> bytes:
    """An error response as the service sends it."""
    body = {"type": f"/problems/{code}", "title": "", "status": int(status[:3]), "detail": detail, "instance": ""}
    return response(status, body, "application/problem+json", headers)


@dataclass
class FaultServer:
    """The URL of a server, and the requests that it received."""

    url: str
    heads: list[str] = field(default_factory=list)
    connections: int = 0

    @property
    def request_count(self) -> int:
        return len(self.heads)

    def header(self, name: str) -> list[str]:
        """The value of a header in each request, in lower case; empty if the request has none."""
        rows = [dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line) for head in self.heads]
        return [row.get(name, "") for row in rows]


@asynccontextmanager
async def http_server(*responses: bytes | None) -> AsyncIterator[FaultServer]:
    """An HTTP server that sends the responses in turn and repeats the last one. None closes the connection instead."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                server.heads.append(head)
                (length,) = server.header("content-length")[-1:]
                await reader.readexactly(int(length or 0))
                data = responses[min(server.request_count, len(responses)) - 1]
                if data is None:
                    break
                writer.write(data)
                await writer.drain()
        except (
            asyncio.IncompleteReadError,
            ConnectionError,
            asyncio.CancelledError,
        ):
            pass  # the client disconnected, or the test ended
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        server = FaultServer(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        yield server


Behaviour = Callable[[AsyncIterator[bytes], "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[None]]


@asynccontextmanager
async def grpc_server(behaviour: Behaviour, port: int = 0, **options: int) -> AsyncIterator[str]:
    """The URL of a gRPC server that runs `behaviour` for every call: it reads messages and writes replies."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
            return grpc.stream_stream_rpc_method_handler(behaviour)

    server = grpc.aio.server(options=[(f"grpc.{name}", value) for name, value in options.items()])
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)


def status_with_details(
    code: grpc.StatusCode, reason: str, message: str = "words", retry_after_s: float | None = None
) -> Status:
    """A status with details as the service sends it."""
    details: list[Message] = [ErrorInfo(reason=reason, domain="convmlp.v1")]
    if retry_after_s is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(round(retry_after_s * 1000))
        details.append(retry)
    status = Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def cat_reply(request_id: str, label: str = "cat") -> bytes:
    """A serialised ClassifyResponse with one label."""
    labels = [vision_pb2.Label(label=label, index=1, score=0.5)]
    return vision_pb2.ClassifyResponse(id=request_id, model="m", labels=labels).SerializeToString()


def parse_request(message: bytes) -> vision_pb2.ClassifyRequest:
    return vision_pb2.ClassifyRequest.FromString(message)


async def abort(context: grpc.aio.ServicerContext[bytes, bytes], status: Status) -> None:
    """End a call with a status and its details."""
    await context.abort_with_status(rpc_status.to_status(status))
