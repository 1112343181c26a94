"""Embeddings over both transports, of a fake classifier and of an embedded one."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio

from convmlp.v1 import vision_pb2 as pb
from model.types import Task
from tests.fakes import fake_bundle
from tests.service.frontend.both_transports import PairAtWork, open_pair
from tests.service.frontend.rest_server import picture, problem_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREY = 77
DIMENSION = fake_bundle(Task.CLASSIFY).config.embedding_dimension


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair() -> AsyncIterator[PairAtWork]:
    async with open_pair() as running:
        yield running


def features(grey: int) -> npt.NDArray[np.float32]:
    """What the fake device answers for a picture of one grey level."""
    assert DIMENSION is not None
    return (grey + np.arange(DIMENSION) / 3).astype(np.float32)


async def embed(pair: PairAtWork, query: str = "", grey: int = GREY) -> npt.NDArray[np.float32]:
    response = await pair.http.post(f"/embed{query}", content=picture(grey))
    answer = response.json()
    assert response.status_code == 200, answer
    assert (answer["model"], answer["task"]) == ("fake_classify", "embed")
    (result,) = answer["results"]
    assert result["image"] == {"width": 80, "height": 60}
    vector = result["embedding"]
    if isinstance(vector, str):
        return np.frombuffer(base64.b64decode(vector), "<f4")
    return np.array(vector, np.float32)


@pytest.mark.parametrize("encoding", ["", "?encoding=json", "?encoding=base64"])
async def test_the_vector_is_the_same_in_every_encoding(pair: PairAtWork, encoding: str) -> None:
    """Numbers and base64 give the network's float32, bit for bit; so does gRPC."""
    assert np.array_equal(await embed(pair, encoding), features(GREY))
    reply = await pair.rpc.stub.Embed(pb.EmbedRequest(id="one", image=picture(GREY)))
    assert np.array_equal(np.array(reply.embedding, np.float32), features(GREY))
    assert (reply.id, reply.model, reply.image.width) == ("one", "fake_classify", 80)
    assert reply.timings.total_ms > 0


async def test_a_normalized_vector_has_length_one(pair: PairAtWork) -> None:
    """Its direction is that of the plain one, over both transports."""
    vector = await embed(pair, "?normalize=true")
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert vector == pytest.approx(features(GREY) / np.linalg.norm(features(GREY)))
    reply = await pair.rpc.stub.Embed(pb.EmbedRequest(image=picture(GREY), normalize=True))
    assert np.array_equal(np.array(reply.embedding, np.float32), vector)


async def test_rows_of_a_batch_do_not_mix(pair: PairAtWork) -> None:
    """Labels and vectors of pictures that wait for the device together are those of each picture alone."""
    pair.worker.runner.unblocked.clear()
    parts = [("image", picture(grey)) for grey in (10, 20, 30)]
    sending = [pair.http.post(path, files=parts) for path in ("/embed", "/classify?top_k=1")]
    import asyncio

    tasks = [asyncio.create_task(one) for one in sending]
    await asyncio.sleep(0)
    pair.worker.runner.unblocked.set()
    embedded, classified = [(await task).json()["results"] for task in tasks]
    assert [row["embedding"][0] for row in embedded] == [10, 20, 30]
    assert [row["labels"][0]["index"] for row in classified] == [10, 20, 30]


async def test_a_bad_image_costs_only_its_place(pair: PairAtWork) -> None:
    """Of several images the bad one has an error, the others their vectors."""
    parts = [("image", picture(10)), ("image", b"no picture"), ("image", picture(30))]
    first, second, third = (await pair.http.post("/embed", files=parts)).json()["results"]
    assert (first["embedding"][0], third["embedding"][0]) == (10, 30)
    assert second["error"]["status"] in (400, 415)


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("?model=nothing", 404, "fake_classify"),
        ("?model=fake_detect", 422, "is for 'detect', not for 'embed'; leave"),
        ("?normalize=yes", 422, "true or false"),
        ("?encoding=hex", 422, "json, base64"),
        ("?top_k=3", 422, "model, normalize, encoding"),
    ],
)
async def test_bad_parameters_are_named(pair: PairAtWork, query: str, status: int, words: str) -> None:
    """The error has what is expected."""
    response = await pair.http.post(f"/embed{query}", content=picture())
    assert response.status_code == status
    assert words in problem_of(response.content)["detail"]


async def test_a_picture_cannot_be_accepted(pair: PairAtWork) -> None:
    """A vector cannot be drawn: only JSON answers."""
    response = await pair.http.post("/embed", content=picture(), headers={"Accept": "image/png"})
    assert response.status_code == 406
    assert "application/json" in problem_of(response.content)["detail"]


async def test_grpc_refuses_a_detector(pair: PairAtWork) -> None:
    """As REST does."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await pair.rpc.stub.Embed(pb.EmbedRequest(image=picture(), model="fake_detect"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_models_have_their_dimension(pair: PairAtWork) -> None:
    """`/models` and ListModels: the length of the vectors of a classifier; nothing for others."""
    cards = (await pair.http.get("/models")).json()["models"]
    assert [card["embedding_dimension"] for card in cards] == [DIMENSION, None, None]
    reply = await pair.rpc.stub.ListModels(pb.ListModelsRequest())
    assert [model.HasField("embedding_dimension") for model in reply.models] == [True, False, False]
    assert reply.models[0].embedding_dimension == DIMENSION


async def test_embeddings_are_counted_as_their_own_task(pair: PairAtWork) -> None:
    """Requests have the task `embed`; refused ones too."""
    await embed(pair)
    await pair.http.post("/embed?encoding=hex", content=picture())
    lines = (await pair.http.get("/metrics")).text
    assert 'convmlp_requests_total{model="fake_classify",outcome="ok",task="embed",transport="rest"}' in lines
    assert 'convmlp_requests_total{model="",outcome="bad-parameter",task="embed",transport="rest"}' in lines
    assert json.loads((await pair.http.get("/openapi.json")).text)["paths"]["/embed"]["post"]["operationId"] == "embed"
