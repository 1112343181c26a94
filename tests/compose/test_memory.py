"""The memory limits of the containers under the largest load that the settings allow."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import grpc
import httpx2
import pytest

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1.vision_pb2_grpc import VisionStub
from tests.compose.stack import SERVICES, Stack, running
from tests.service.frontend.largest_load import TIMEOUT_S, largest_picture
from tests.service.frontend.test_largest_load import REQUESTS

LIMITS = {"CONVMLP_FRONTEND_MEMORY": "1g", "CONVMLP_WORKER_MEMORY": "2g"}
"""Half of a front-end's default, and an eighth of a worker's."""
CALLS = 24


@pytest.fixture(scope="module")
def small(images: None) -> Iterator[Stack]:  # noqa: ARG001
    settings = {**LIMITS, "CONVMLP_REQUEST_TIMEOUT_MS": str(int(TIMEOUT_S * 1000))}
    with running(Stack("convmlp-memory", settings=settings), *SERVICES) as up:
        yield up


async def test_the_largest_load_stays_within_the_limits(small: Stack) -> None:
    """While pictures of the largest size for all tasks come over both transports at once, several times as many as fit,
    each is answered or refused for lack of room. No process is killed, by the limits of memory or otherwise."""
    picture = largest_picture()
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    address = small.address("grpc", 8001)

    async def post(http: httpx2.AsyncClient, path: str) -> str:
        return str((await http.post(path, content=picture)).status_code)

    async def call() -> str:
        async with grpc.aio.insecure_channel(address, options) as channel:
            calling = VisionStub(channel).Classify(pb.ClassifyRequest(image=picture), timeout=TIMEOUT_S)
            return (await calling.code()).name

    async with httpx2.AsyncClient(base_url=f"http://{small.address('rest', 8000)}", timeout=TIMEOUT_S) as http:
        ended = Counter(await asyncio.gather(*(post(http, path) for path in REQUESTS), *(call() for _ in range(CALLS))))
        assert set(ended) == {"200", "503", "OK", "RESOURCE_EXHAUSTED"}
        assert (await http.post("/classify", content=picture)).status_code == 200
    assert await call() == "OK"
    for service in SERVICES:
        container = small.container(service)
        assert not container["State"]["OOMKilled"]
        assert container["RestartCount"] == 0
        assert container["State"]["Running"]
