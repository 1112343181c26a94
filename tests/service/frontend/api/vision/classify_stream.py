"""A caller of ClassifyStream."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc

from convmlp.v1 import vision_pb2 as pb
from tests.service.frontend.rest_server import picture
from tests.waiting import PATIENCE_S

Stream = grpc.aio.StreamStreamCall[pb.ClassifyRequest, pb.ClassifyResponse]


def request(id: str, grey: int = 100, **parameters: int) -> pb.ClassifyRequest:  # noqa: A002
    return pb.ClassifyRequest(id=id, image=picture(grey), top_k=parameters.get("top_k", 1))


async def send(stream: Stream, requests: Iterable[pb.ClassifyRequest], *, close: bool = True) -> None:
    for one in requests:
        await stream.write(one)
    if close:
        await stream.done_writing()


async def next_of(stream: Stream) -> pb.ClassifyResponse:
    async with asyncio.timeout(PATIENCE_S):
        reply = await stream.read()
    assert isinstance(reply, pb.ClassifyResponse)
    return reply


async def rest_of(stream: Stream) -> list[pb.ClassifyResponse]:
    replies = []
    async with asyncio.timeout(60):
        while isinstance(reply := await stream.read(), pb.ClassifyResponse):
            replies.append(reply)
    return replies


async def status_of(stream: Stream) -> grpc.StatusCode:
    async with asyncio.timeout(PATIENCE_S):
        return await stream.code()
