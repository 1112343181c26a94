"""Images that ask for much: refused by the whole service from their structure, or where its front-end has no memory."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator

import grpc
import httpx2
import PIL.Image
import psutil
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from convmlp.v1.vision_pb2 import DetectRequest
from convmlp.v1.vision_pb2_grpc import VisionStub
from model.reference import REFERENCE_PICTURE
from tests.e2e.convmlp_process import RunningService, running_service
from tests.model.picture_files import encoded
from tests.model.test_containers import TOO_MANY, progressive_header
from tests.model.test_decode import png_header

PICTURE = REFERENCE_PICTURE.read_bytes()
SPARE_BYTES = 16 << 20
REFUSED = {
    "memory": (progressive_header(4000, 3000), "bytes of memory"),
    "rows": (png_header(1, 12_000_000), "bytes of memory"),
    "segments": (TOO_MANY["jpeg"], "1,024 segments"),
    "chunks": (TOO_MANY["png"], "16,384 chunks"),
}


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service("--models", "convmlp_pets_heads", "--max-image-mpx", "12") as running:
        yield running


@pytest_asyncio.fixture
async def client(service: RunningService) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=service.url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("name", REFUSED)
async def test_an_image_that_asks_for_much_is_refused_alone(
    name: str, service: RunningService, client: httpx2.AsyncClient
) -> None:
    """Over REST and gRPC the error has the number, the limit and what to do; images beside it get their answers."""
    image, words = REFUSED[name]
    asked = [client.post("/detect", content=content) for content in (PICTURE, image, PICTURE)]
    before, refused, after = await asyncio.gather(*asked)
    assert before.status_code == after.status_code == 200
    assert before.json() == after.json()
    assert refused.status_code == 413
    assert words in refused.json()["detail"]
    assert "; scale it down" in refused.json()["detail"] or "; save it again" in refused.json()["detail"]
    async with grpc.aio.insecure_channel(service.grpc_address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await VisionStub(channel).Detect(DetectRequest(image=image), timeout=60)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details() == refused.json()["detail"]


async def test_too_little_memory_is_reported_as_such(service: RunningService, client: httpx2.AsyncClient) -> None:
    """A front-end without memory for a large image answers 503 with the time to come back, and counts it. It goes on,
    and answers for that image later."""
    image = encoded(PIL.Image.new("RGB", (4000, 3000)), "JPEG")
    assert (await client.post("/detect", content=PICTURE)).status_code == 200
    front_end = psutil.Process(service.pid_of("rest-0"))
    limits = resource.prlimit(front_end.pid, resource.RLIMIT_AS)
    resource.prlimit(front_end.pid, resource.RLIMIT_AS, (front_end.memory_info().vms + SPARE_BYTES, limits[1]))
    try:
        refused = await client.post("/detect", content=image)
        assert (await client.post("/detect", content=PICTURE)).status_code == 200
    finally:
        resource.prlimit(front_end.pid, resource.RLIMIT_AS, limits)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "of memory, which are not available now" in refused.json()["detail"]
    assert (await client.post("/detect", content=image)).status_code == 200
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    counted = {
        sample.labels["reason"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "convmlp_rejected_total"
    }
    assert counted["memory"] == 1
