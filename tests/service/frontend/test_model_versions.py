"""Versions of a model over each API, with real front-ends and a worker whose device is a fake."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from convmlp.v1 import vision_pb2 as pb
from convmlp_client.client import Client
from model.model_name import version_of
from model.types import Task
from service.frontend.api.oip.generated import grpc_predict_v2_pb2 as oip
from service.frontend.api.oip.generated.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from tests.fakes import fake_bundle, store_bundle
from tests.service.frontend.both_transports import PairAtWork, open_pair
from tests.service.frontend.rest_server import picture
from tests.waiting import until

FIRST, SECOND = "fake_classify", "fake_classify@2"
PICTURE = picture()
IDS = [f"request-{number}" for number in range(400)]
SPLIT = f"/models/{FIRST}/split"


@asynccontextmanager
async def two_versions(split: dict[str, float] | None = None, **settings: Any) -> AsyncIterator[PairAtWork]:  # noqa: ANN401
    """Front-ends of a worker that serves two versions of a classifier."""
    async with open_pair(model_control=True, **settings) as pair:
        store_bundle(pair.worker.store, fake_bundle(Task.CLASSIFY, SECOND))
        (await pair.http.post(f"/v2/repository/models/{SECOND}/load")).raise_for_status()
        if split is not None:
            (await pair.http.put(SPLIT, json=split)).raise_for_status()
        await until(lambda: all_routes(pair, split))
        yield pair


def all_routes(pair: PairAtWork, split: dict[str, float] | None) -> bool:
    """Whether both front-ends have the versions and the split."""
    expected = {version: percent / 100 for version, percent in (split or {"1": 100, "2": 0}).items()}
    for engine in (pair.rest.engine, pair.rpc.front_end.engine):
        found = {version_of(model.config.name): engine.share(model) for model in engine.versions(FIRST)}
        if found != pytest.approx(expected):
            return False
    return True


async def classify(http: httpx2.AsyncClient, request_id: str = "", **query: str) -> str:
    """The model that answered."""
    headers = {"X-Request-Id": request_id} if request_id else {}
    answer = await http.post("/classify", params=query, content=PICTURE, headers=headers)
    answer.raise_for_status()
    model: str = answer.json()["model"]
    return model


async def test_every_api_reaches_a_version_by_its_name() -> None:
    """`NAME@2` is version 2, `NAME@1` is version 1, and the name alone is answered by the first that was served."""
    async with two_versions() as pair:
        names = {None: FIRST, FIRST: FIRST, f"{FIRST}@1": FIRST, SECOND: SECOND}
        for name, expected in names.items():
            assert await classify(pair.http, **({"model": name} if name else {})) == expected
            reply = await pair.rpc.stub.Classify(pb.ClassifyRequest(image=PICTURE, model=name or ""))
            assert reply.model == expected
        answer = await pair.http.post(f"/compat/huggingface/classify?model={SECOND}", content=PICTURE)
        assert answer.status_code == 200
        with await asyncio.to_thread(Client, str(pair.http.base_url)) as client:
            assert (await asyncio.to_thread(client.classify, PICTURE, model=SECOND)).meta.model == SECOND
            listed = {model.name: (model.version, model.share) for model in await asyncio.to_thread(client.models)}
        assert (listed[FIRST], listed[SECOND]) == (("1", 1.0), ("2", 0.0))
        unknown = await pair.http.post(f"/classify?model={FIRST}@3", content=PICTURE)
        assert (unknown.status_code, unknown.json()["detail"]) == (
            404,
            "there is no model 'fake_classify@3'; served: fake_classify, fake_detect, fake_segment, fake_classify@2",
        )


async def test_the_open_inference_protocol_has_versions() -> None:
    """Metadata lists the served versions; a request that names one is answered by it, and the reply has its number."""
    async with two_versions({"1": 0.0001, "2": 99.9999}) as pair:
        metadata = (await pair.http.get(f"/v2/models/{FIRST}")).json()
        assert (metadata["name"], metadata["versions"]) == (FIRST, ["1", "2"])
        stub = GRPCInferenceServiceStub(pair.rpc.channel)
        for path, version in ((f"{FIRST}/versions/1", "1"), (f"{FIRST}/versions/2", "2"), (FIRST, "2"), (SECOND, "2")):
            answer = await pair.http.post(
                f"/v2/models/{path}/infer", content=PICTURE, headers={"Inference-Header-Content-Length": "0"}
            )
            assert (answer.json()["model_name"], answer.json()["model_version"]) == (FIRST, version)
            name, _, wanted = path.partition("/versions/")
            tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
            tensor.contents.bytes_contents.append(PICTURE)
            reply = await stub.ModelInfer(oip.ModelInferRequest(model_name=name, model_version=wanted, inputs=[tensor]))
            assert (reply.model_name, reply.model_version) == (FIRST, version)
        for path, why in (
            (f"{FIRST}/versions/3", "only '1', '2'"),
            (f"{SECOND}/versions/1", "names one version and the request another"),
        ):
            refused = await pair.http.get(f"/v2/models/{path}")
            assert refused.status_code == 404
            assert why in refused.json()["error"]
        statistics = (await pair.http.get(f"/v2/models/{FIRST}/stats")).json()["model_stats"]
        assert [(one["version"], one["inference_count"]) for one in statistics] == [("1", 1), ("2", 3)]
        index = (await pair.http.post("/v2/repository/index")).json()
        assert [one["version"] for one in index if one["name"] == FIRST] == ["1", "2"]


async def test_requests_are_split_by_their_shares() -> None:
    """Of 400 requests over each transport a tenth goes to version 2, the answer names it, and so do the metrics. The
    same ids get the same versions over both."""
    async with two_versions({"1": 90, "2": 10}) as pair:
        over_http = [await classify(pair.http, request_id) for request_id in IDS]
        over_grpc = [
            (await pair.rpc.stub.Classify(pb.ClassifyRequest(image=PICTURE, id=request_id))).model for request_id in IDS
        ]
        assert over_http == over_grpc
        counts = Counter(over_http)
        assert 20 <= counts[SECOND] <= 60  # 40 expected, and more than three standard deviations to each side
        metrics = (await pair.http.get("/metrics")).text
        for model in (FIRST, SECOND):
            labels = f'transport="rest",task="classify",model="{model}",outcome="ok"'
            lines = [line for line in metrics.splitlines() if labels in line or f'model="{model}"' in line]
            assert any(
                line.startswith("convmlp_requests_total") and line.endswith(f" {counts[model]}.0") for line in lines
            )
        cards = {card["name"]: card for card in (await pair.http.get("/models")).json()["models"]}
        described = [(cards[name]["version"], cards[name]["share"], cards[name]["default"]) for name in (FIRST, SECOND)]
        assert described == [("1", 0.9, True), ("2", 0.1, False)]
        assert (await pair.http.get(f"/models/{FIRST}")).json()["version"] == "1"
        listed = {model.name: model for model in (await pair.rpc.stub.ListModels(pb.ListModelsRequest())).models}
        assert (listed[SECOND].version, round(listed[SECOND].share, 6), listed[SECOND].is_default) == ("2", 0.1, False)


async def test_a_version_that_fails_gives_its_share_away() -> None:
    """While it fails its self-check, the others answer for the name, the service stays ready, and a metric counts the
    requests that moved. A request that names the failing version gets the reason."""
    async with two_versions({"1": 50, "2": 50}, self_check_interval_ms=50) as pair:
        (slot,) = [slot for slot, bundle in pair.worker.runner.slots.items() if bundle.config.name == SECOND]
        pair.worker.runner.damaged_slots = frozenset({slot})
        await until(lambda: not all(pair.rest.engine.readiness_of_models().values()))
        assert {await classify(pair.http, request_id) for request_id in IDS[:40]} == {FIRST}
        ready = await pair.http.get("/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (200, f"ready, without {SECOND}")
        moved = pair.rest.registry.get_sample_value("convmlp_rerouted_requests_total", {"model": SECOND})
        assert moved is not None
        assert 8 <= moved <= 32  # of 40
        refused = await pair.http.post(f"/classify?model={SECOND}", content=PICTURE)
        assert refused.status_code == 503
        await until(lambda: not pair.rpc.front_end.engine.readiness_of_models()[SECOND])
        health = {
            name: (await pair.rpc.health.Check(HealthCheckRequest(service=name))).status for name in (FIRST, SECOND, "")
        }
        serving, not_serving = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
        assert health == {FIRST: serving, SECOND: not_serving, "": serving}


async def test_no_request_is_lost_while_versions_change() -> None:
    """Under steady requests over both transports, a version is loaded, gets half of them, then all, is loaded again
    after a change on disk, and the old one is unloaded: every request is answered."""
    async with open_pair(model_control=True) as pair:
        stop = asyncio.Event()
        answered: Counter[str] = Counter()

        async def over_http() -> None:
            while not stop.is_set():
                answered[await classify(pair.http, model=FIRST)] += 1

        async def over_grpc() -> None:
            while not stop.is_set():
                reply = await pair.rpc.stub.Classify(pb.ClassifyRequest(image=PICTURE, model=FIRST))
                answered[reply.model] += 1

        async def until_more(name: str) -> None:
            before = answered[name]
            await until(lambda: answered[name] > before + 20)

        async def post(path: str) -> None:
            (await pair.http.post(path)).raise_for_status()

        asking = [asyncio.create_task(kind()) for kind in (over_http, over_grpc) for _ in range(4)]
        store_bundle(pair.worker.store, fake_bundle(Task.CLASSIFY, SECOND))
        await post(f"/v2/repository/models/{SECOND}/load")
        assert answered[SECOND] == 0
        for split in ({"1": 50, "2": 50}, {"2": 100}):
            (await pair.http.put(SPLIT, json=split)).raise_for_status()
            await until_more(SECOND)
        store_bundle(pair.worker.store, fake_bundle(Task.CLASSIFY, SECOND, weights=b"new"), weights=b"new")
        await post(f"/v2/repository/models/{SECOND}/load")
        await post(f"/v2/repository/models/{FIRST}/unload")
        await until_more(SECOND)
        assert not any(task.done() for task in asking)
        stop.set()
        await asyncio.gather(*asking)
        assert (await pair.http.get("/models")).json()["models"][-1]["share"] == 1.0


REFUSED = (
    (FIRST, b'{"1": 90}', 422, "the percentages sum to 90; expected 100"),
    (FIRST, b'{"1": "most"}', 400, 'such as {"1": 90, "2": 10}'),
    (FIRST, b"1:90,2:10", 400, 'such as {"1": 90, "2": 10}'),
    (FIRST, b'{"1": 90, "3": 10}', 404, "load 'fake_classify@3' first"),
    ("nonesuch", b'{"1": 100}', 404, "there is no model 'nonesuch'"),
    (FIRST, b" " * 5000, 413, "4,096 bytes"),
)


async def test_a_split_over_rest_is_refused() -> None:
    """The answer has what was wrong, and requests go on as before."""
    async with two_versions({"1": 50, "2": 50}) as pair:
        for name, body, status, reason in REFUSED:
            refused = await pair.http.put(f"/models/{name}/split", content=body)
            assert refused.status_code == status
            assert reason in refused.json()["detail"]
        assert all_routes(pair, {"1": 50, "2": 50})


async def test_only_the_operator_lets_callers_split() -> None:
    """Without the setting the answer is 403."""
    async with open_pair() as pair:
        refused = await pair.http.put(SPLIT, json={"1": 100})
        assert refused.status_code == 403
        assert "model_control" in refused.json()["detail"]
