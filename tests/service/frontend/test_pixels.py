"""What a request asks of each pixel: its confidence, and the threshold of a model with one output channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from convmlp.v1 import vision_pb2 as pb
from convmlp_client import AsyncClient
from convmlp_client.errors import BadParameter
from service.settings import Settings
from tests.fakes import fake_binary, fake_worker
from tests.service.frontend.both_transports import Pair, open_pair_at
from tests.service.frontend.rest_server import picture, problem_of
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

IMAGE = picture(78, width=90)


@dataclass(frozen=True)
class Clients:
    """Of the same service over each transport."""

    pair: Pair
    rest: AsyncClient
    grpc: AsyncClient


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients() -> AsyncIterator[Clients]:
    settings = Settings(heartbeat_interval_ms=50)
    async with fake_worker(settings, more=[fake_binary()]) as worker, open_pair_at(worker.address, settings) as pair:
        await until(lambda: pair.ready)
        async with AsyncClient(str(pair.http.base_url)) as rest, AsyncClient(f"grpc://{pair.rpc.address}") as grpc:
            yield Clients(pair, rest, grpc)


@pytest.fixture(params=["rest", "grpc"])
def client(clients: Clients, request: pytest.FixtureRequest) -> AsyncClient:
    chosen: AsyncClient = getattr(clients, request.param)
    return chosen


async def test_a_threshold_decides_pixels_of_one_channel(client: AsyncClient) -> None:
    """The request's threshold reaches the network; without one the model's own decides."""
    segment = partial(client.segment, IMAGE, model="fake_binary")
    areas = [
        {part.label: part.area for part in result.segments}
        for result in (await segment(), await segment(threshold=0.25), await segment(threshold=0.75))
    ]
    assert [of_label["cat"] for of_label in areas] == [45 * 60, 68 * 60, 23 * 60]
    analysed = (await client.analyze(IMAGE, models=["fake_binary", "fake_classify"], threshold=0.25))["fake_binary"]
    assert analysed.to_dict() == (await segment(threshold=0.25)).to_dict()


async def test_a_threshold_needs_one_channel(client: AsyncClient) -> None:
    """Elsewhere the parameter is refused, with the reason; in an analysis by several models, in their place."""
    with pytest.raises(BadParameter, match="fake_segment: it has a channel for each of its 3 classes"):
        await client.segment(IMAGE, threshold=0.25)
    with pytest.raises(BadParameter, match=r"expected a number from 0.001 to 0.999"):
        await client.segment(IMAGE, model="fake_binary", threshold=1)
    analysis = await client.analyze(IMAGE, models=["fake_segment", "fake_binary"], threshold=0.25)
    assert isinstance(analysis.answers["fake_segment"], BadParameter)
    assert "cat" in {part.label for part in analysis["fake_binary"].segments}  # type: ignore[union-attr]


async def test_both_transports_show_the_models_threshold(clients: Clients) -> None:
    """Callers see which models take the parameter."""
    models = (await clients.pair.http.get("/models")).json()["models"]
    thresholds = {model["name"]: model["postprocessing"].get("threshold") for model in models}
    assert thresholds["fake_binary"] == 0.5
    assert thresholds["fake_segment"] is None
    listed = await clients.pair.rpc.stub.ListModels(pb.ListModelsRequest())
    assert {model.name for model in listed.models if model.HasField("threshold")} == {"fake_binary"}


async def test_the_confidence_of_each_pixel_comes_beside_the_segments(clients: Clients, client: AsyncClient) -> None:
    """As an array of the image's size, the same over each transport, in an analysis, and as `view=confidence`."""
    result = await client.segment(IMAGE, confidence_map=True)
    levels = result.confidence_map()
    assert levels.shape == (60, 90)
    assert levels.dtype == np.uint8
    for part in result.segments:
        assert part.mask is not None
        assert levels[part.mask.to_array()].mean() == pytest.approx(255 * part.confidence, abs=0.5)
    assert result.segments == (await client.segment(IMAGE)).segments
    analysed = (await client.analyze(IMAGE, tasks=["segment"], confidence_map=True))["segment"]
    view = await clients.pair.http.post("/segment?view=confidence", content=IMAGE)
    assert result.confidence_png == analysed.confidence_png == view.content  # type: ignore[union-attr]
    document: dict[str, Any] = (await clients.pair.http.post("/segment?confidence_map=true", content=IMAGE)).json()
    assert document["results"] == [result.to_dict()]
    with pytest.raises(ValueError, match="confidence_map=True"):
        (await client.segment(IMAGE)).confidence_map()


async def test_a_drawing_stays_a_drawing(clients: Clients) -> None:
    """`confidence_map` adds to the JSON; a picture is drawn as without it."""
    drawn = [
        (await clients.pair.http.post(f"/segment{query}", content=IMAGE, headers={"Accept": "image/png"})).content
        for query in ("", "?confidence_map=true")
    ]
    assert drawn[0] == drawn[1]
    refused = await clients.pair.http.post("/detect?confidence_map=true", content=IMAGE)
    assert (refused.status_code, problem_of(refused.content)["status"]) == (422, 422)
