from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from model.types import Task
from tests.fakes import fake_bundle
from tests.service.frontend.rest_server import Rest, picture, problem_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_models_are_listed(rest: Rest) -> None:
    """/models lists every served model, in the worker's order, with all fields of the contract."""
    models = (await rest.http.get("/models")).json()["models"]
    assert [model["name"] for model in models] == [f"fake_{task}" for task in Task]
    for model, task in zip(models, Task, strict=True):
        config = fake_bundle(task).config
        assert model["task"] == task
        assert model["default"] is True
        assert model["ready"] is True
        assert tuple(model["labels"]) == config.labels
        assert model["input"] == config.preprocessing.model_dump(mode="json")
        assert model["weights_sha256"] == config.weights_sha256
        assert model["source"] == config.source.model_dump(mode="json")
        assert model["accuracy"] is None
        assert (await rest.http.get(f"/models/{model['name']}")).json() == model


async def test_unknown_model(rest: Rest) -> None:
    """An unknown name is a 404 that lists the known ones."""
    response = await rest.http.get("/models/other")
    problem = problem_of(response.content)
    assert (response.status_code, problem["type"]) == (404, "/problems/model-not-found")
    assert "fake_detect" in problem["detail"]


async def test_probes(rest: Rest) -> None:
    """A live process with a ready worker is live and ready."""
    assert (await rest.http.get("/livez")).json() == {"live": True}
    assert (await rest.http.get("/readyz")).json()["ready"] is True


@pytest.mark.settings(with_worker=False)
async def test_before_a_worker_came(fresh_rest: Rest) -> None:
    """Without a worker the process is alive, not ready, and knows no models; each is a clear 503."""
    assert (await fresh_rest.http.get("/livez")).status_code == 200
    for path in ("/readyz", "/models", "/models/fake_detect"):
        response = await fresh_rest.http.get(path)
        assert (response.status_code, problem_of(response.content)["type"]) == (503, "/problems/unavailable")
        assert int(response.headers["retry-after"]) >= 1
    response = await fresh_rest.http.post("/classify", content=b"x")
    assert (response.status_code, problem_of(response.content)["type"]) == (503, "/problems/unavailable")


async def test_metrics(rest: Rest) -> None:
    """/metrics is Prometheus text with its own media type."""
    response = await rest.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert "convmlp_in_flight_requests 0.0" in response.text


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=1.0.0", "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.2",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
        ),
        ("application/openmetrics-text;version=newest", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
@pytest.mark.parametrize(
    ("accepted", "coding"), [("gzip", "gzip"), ("br, gzip;q=0.5", "gzip"), ("identity", None), ("gzip;q=0", None)]
)
async def test_metrics_are_negotiated(
    rest: Rest, accept: str, media_type: str, accepted: str, coding: str | None
) -> None:
    """/metrics has the form that a scraper asks for, compressed if it accepts that; HEAD has the same headers."""
    await rest.http.post("/classify", content=picture())
    headers = {"Accept": accept, "Accept-Encoding": accepted}
    for response in (
        await rest.http.get("/metrics", headers=headers),
        await rest.http.head("/metrics", headers=headers),
    ):
        assert response.status_code == 200
        assert response.headers["content-type"] == media_type
        assert response.headers.get("content-encoding") == coding
        assert response.headers["vary"] == "Accept, Accept-Encoding"
    text = (await rest.http.get("/metrics", headers=headers)).text
    if "openmetrics" in media_type:
        families = {family.name for family in parse_openmetrics(text)}
        assert text.endswith("# EOF\n")
    else:
        families = {family.name for family in parse_text(text)}
    assert {"convmlp_requests", "convmlp_request_duration_seconds", "process_cpu_seconds"} <= families
