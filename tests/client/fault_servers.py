"""Servers that misbehave as they are told to."""

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

ANSWER = {"image": {"width": 4, "height": 3}, "labels": [{"label": "cat", "index": 1, "score": 0.5}]}


def http(
    status: str = "200 OK",
    body: bytes | dict[str, Any] | None = None,
    media_type: str = "application/json",
    headers: Sequence[str] = (),
) -> bytes:
    """An HTTP answer; by default one of the service's about a cat."""
    if body is None:
        body = {"model": "m", "task": "classify", "results": [ANSWER]}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status}", f"content-type: {media_type}", f"content-length: {len(content)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content


def problem(status: str, code: str, detail: str = "words", headers: Sequence[str] = ()) -> bytes:
    """An error as the service tells it."""
    body = {"type": f"/problems/{code}", "title": "", "status": int(status[:3]), "detail": detail, "instance": ""}
    return http(status, body, "application/problem+json", headers)


@dataclass
class Scripted:
    """A server's URL, and what came in."""

    url: str
    heads: list[str] = field(default_factory=list)
    connections: int = 0

    @property
    def asked(self) -> int:
        return len(self.heads)

    def header(self, name: str) -> list[str]:
        """A header's value in each request, empty where it had none."""
        rows = [dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line) for head in self.heads]
        return [row.get(name, "") for row in rows]


@asynccontextmanager
async def scripted_http(*answers: bytes | None) -> AsyncIterator[Scripted]:
    """Gives the answers one after the other, the last one again and again. None: closes the connection instead."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                server.heads.append(head)
                (length,) = server.header("content-length")[-1:]
                await reader.readexactly(int(length or 0))
                answer = answers[min(server.asked, len(answers)) - 1]
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):  # the client left, or the test
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        server = Scripted(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        yield server


Behaviour = Callable[[AsyncIterator[bytes], "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[None]]


@asynccontextmanager
async def scripted_grpc(behaviour: Behaviour, port: int = 0, **options: int) -> AsyncIterator[str]:
    """A gRPC server that does the same for every call: reads messages and writes replies; its URL."""

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


def rich_status(
    code: grpc.StatusCode, reason: str, message: str = "words", retry_after_s: float | None = None
) -> Status:
    """A status as the service tells it."""
    details: list[Message] = [ErrorInfo(reason=reason, domain="convmlp.v1")]
    if retry_after_s is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(round(retry_after_s * 1000))
        details.append(retry)
    status = Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


async def abort(context: grpc.aio.ServicerContext[bytes, bytes], status: Status) -> None:
    """End a call with a rich status."""
    await context.abort_with_status(rpc_status.to_status(status))
