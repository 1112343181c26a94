"""Refusals of REST alone; `test_error_tables.py` has those that both transports share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from model.types import Task
from tests.service.frontend.rest_server import Rest, open_rest, picture, problem_of
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.settings(max_image_bytes=1000, max_request_bytes=10000)
async def test_too_many_bytes(fresh_rest: Rest) -> None:
    """An image above the limit in bytes is a 413 even where the request as a whole is within its own."""
    response = await fresh_rest.http.post("/classify", content=picture() + bytes(1000))
    assert response.status_code == 413
    assert "1,000" in problem_of(response.content)["detail"]


async def test_unknown_path_and_method(rest: Rest) -> None:
    """What the framework refuses has the same form as every other error."""
    for method, path in (
        ("GET", "/classify/extra"),
        ("POST", "/classify%0A"),
        ("POST", "/compat/huggingface/detect%0A"),
    ):
        missing = await rest.http.request(method, path)
        assert (missing.status_code, problem_of(missing.content)["type"]) == (404, "/problems/not-found")
    wrong = await rest.http.get("/classify")
    assert (wrong.status_code, problem_of(wrong.content)["type"]) == (405, "/problems/method-not-allowed")
    assert wrong.headers["allow"] == "OPTIONS, POST"


async def test_deadline_passed(fresh_rest: Rest) -> None:
    """A caller's deadline ends its wait for a busy device with a 504."""
    fresh_rest.worker.runner.unblocked.clear()
    response = await fresh_rest.http.post("/classify", content=picture(), headers={"X-Request-Timeout-Ms": "500"})
    assert (response.status_code, problem_of(response.content)["type"]) == (504, "/problems/deadline-exceeded")


async def test_worker_draining(fresh_rest: Rest) -> None:
    """Without a worker that takes jobs predictions and /readyz are a 503 with Retry-After."""
    fresh_rest.worker.runner.unblocked.clear()
    held = asyncio.create_task(fresh_rest.http.post("/classify", content=picture()))
    await fresh_rest.until("convmlp_in_flight_requests", 1)
    fresh_rest.worker.stop.set()
    await until(lambda: not fresh_rest.engine.readiness().ready)
    for response in (await fresh_rest.http.post("/classify", content=picture()), await fresh_rest.http.get("/readyz")):
        assert (response.status_code, problem_of(response.content)["type"]) == (503, "/problems/unavailable")
        assert int(response.headers["retry-after"]) >= 1
    assert (await fresh_rest.http.get("/livez")).status_code == 200
    fresh_rest.worker.runner.unblocked.set()
    await held


async def test_unexpected_error_has_no_internals() -> None:
    """An error that nobody expected is a 500 with the request's id and without its own words."""

    class Broken(Collector):
        def collect(self) -> Iterator[Metric]:
            raise ValueError("the secret of the house")

    registry = CollectorRegistry()
    registry.register(Broken())
    async with open_rest(registry=registry) as rest:
        response = await rest.http.get("/metrics", headers={"X-Request-Id": "abc"})
        assert (response.status_code, problem_of(response.content)["type"]) == (500, "/problems/internal")
        assert problem_of(response.content)["instance"] == "/metrics#abc"
        assert b"secret" not in response.content
        assert (await rest.http.get("/livez")).status_code == 200


@pytest.mark.parametrize("task", Task)
async def test_outcomes_are_counted(fresh_rest: Rest, task: Task) -> None:
    """/metrics counts good answers and each kind of error apart, and has no label that a caller can invent."""
    await fresh_rest.http.post(f"/{task}", content=picture())
    await fresh_rest.http.post(f"/{task}", content=b"%PDF")
    await fresh_rest.http.post(f"/{task}?model=invented", content=picture())
    text = (await fresh_rest.http.get("/metrics")).text
    for model, outcome in ((f"fake_{task}", "ok"), (f"fake_{task}", "unsupported-format"), ("", "model-not-found")):
        labels = f'model="{model}",outcome="{outcome}",task="{task}",transport="rest"'
        assert f"convmlp_requests_total{{{labels}}} 1.0" in text
    assert "invented" not in text


async def test_a_failure_of_all_images_has_no_stages() -> None:
    """Server-Timing has only the total where no image was answered."""
    async with open_rest() as rest:
        rest.worker.runner.poison = 66
        form = [("image", ("a.png", picture(66), "image/png"))] * 2
        response = await rest.http.post("/classify", files=form)
        assert response.status_code == 500
        assert response.headers["server-timing"].startswith("total;dur=")
