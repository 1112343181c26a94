"""Credentials and rates over real connections."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from model.types import Task
from service.process import EXIT_CONFIG
from tests.service.frontend.rest_server import Rest, open_rest, picture, problem_of
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "0123456789abcdef"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}
SLOW = pytest.mark.settings(rate_limit_per_s=0.02, rate_limit_burst=2)
"""No third image while a test lasts."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rest]:
    """A front-end that asks for a key."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"partner {KEY}\n", encoding="ascii")
    async with open_rest(api_keys_file=path) as running:
        yield running


PREDICTIONS = [*(f"/{task}" for task in Task), *(f"/compat/huggingface/{task}" for task in Task)]


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_predictions_need_a_key(guarded: Rest, path: str) -> None:
    """Without a good key a prediction is a 401 that names the scheme; with it it is answered."""
    for headers in ({}, {"Authorization": "Bearer fedcba9876543210"}):
        response = await guarded.http.post(path, content=picture(), headers=headers)
        problem = problem_of(response.content)
        assert (response.status_code, problem["type"]) == (401, "/problems/unauthenticated")
        assert response.headers["www-authenticate"] == "Bearer"
        assert problem["instance"] == f"{path}#{response.headers['x-request-id']}"
        assert "Authorization: Bearer KEY" in problem["detail"]
    assert (await guarded.http.post(path, content=picture(), headers=WITH_KEY)).status_code == 200


@pytest.mark.parametrize("path", ["/compat/deepstack/v1/vision/detection", "/compat/roboflow/fake_detect/1"])
async def test_a_key_in_the_query(guarded: Rest, path: str) -> None:
    """Clients that can send no header may have their key in the query string, only where such clients call."""
    for key, status in ((KEY, 200), ("fedcba9876543210", 401), ("", 401)):
        response = await guarded.http.post(path, params={"api_key": key}, content=picture())
        assert response.status_code == status
        assert KEY not in response.text
    wrong_header = {"Authorization": "Bearer fedcba9876543210"}
    response = await guarded.http.post(path, params={"api_key": KEY}, content=picture(), headers=wrong_header)
    assert response.status_code == 401
    assert (await guarded.http.post("/detect", params={"api_key": KEY}, content=picture())).status_code == 401


@pytest.mark.parametrize("path", ["/models", "/models/fake_classify", "/v2", "/v2/models/fake_classify"])
async def test_what_is_served_needs_a_key(guarded: Rest, path: str) -> None:
    """The list of models needs a key."""
    assert (await guarded.http.get(path)).status_code == 401
    assert (await guarded.http.get(path, headers=WITH_KEY)).status_code != 401


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/web/playground/main.js", "/openapi.json", "/livez", "/readyz", "/metrics"]
)
async def test_pages_and_probes_are_open(guarded: Rest, path: str) -> None:
    """Probes, scrapes and pages work without a key."""
    assert (await guarded.http.get(path)).status_code == 200


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
async def test_probes_of_the_open_inference_protocol_are_open(guarded: Rest, path: str) -> None:
    """Neither needs a key."""
    assert (await guarded.http.get(path)).status_code != 401


@pytest.mark.parametrize("path", ["/nowhere", "/web/../models", "//models", "/models/", "/livez/x", "/LIVEZ"])
async def test_everything_else_is_closed(guarded: Rest, path: str) -> None:
    """A path that is not known to be open is closed, in whatever spelling it comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port)
    writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path.encode())
    assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
    writer.close()


async def test_refused_before_the_body_came(guarded: Rest) -> None:
    """A 401 does not wait for the body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port)
    writer.write(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
    async with asyncio.timeout(PATIENCE_S):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
    writer.close()


async def test_refusals_are_counted(guarded: Rest) -> None:
    """A refused prediction is counted by its task and by the reason; a refused look-up by the reason alone."""
    labels = 'model="",outcome="unauthenticated",task="detect",transport="rest"'
    requests, rejected = f"convmlp_requests_total{{{labels}}}", 'convmlp_rejected_total{reason="credentials"}'
    before = [await guarded.count(requests), await guarded.count(rejected)]
    await guarded.http.post("/detect", content=picture())
    await guarded.http.post("/compat/huggingface/detect", content=picture())
    await guarded.http.get("/models")
    assert [await guarded.count(requests), await guarded.count(rejected)] == [before[0] + 2, before[1] + 3]


async def test_openapi_has_the_key(guarded: Rest, rest: Rest) -> None:
    """Where keys are set each guarded operation names the scheme and no open one does; else none does."""
    document = (await guarded.http.get("/openapi.json")).json()
    (name,) = document["components"]["securitySchemes"]
    assert document["components"]["securitySchemes"][name]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            closed = (await guarded.http.request(method, path)).status_code == 401
            assert operation.get("security", []) == ([{name: []}] if closed else []), path
    assert "security" not in (await rest.http.get("/openapi.json")).text


@SLOW
async def test_over_the_rate(fresh_rest: Rest) -> None:
    """A caller over its rate gets a 429 with Retry-After; only predictions are limited."""
    for path in ("/classify", "/compat/huggingface/classify"):
        assert (await fresh_rest.http.post(path, content=picture())).status_code == 200
    for path in PREDICTIONS:
        response = await fresh_rest.http.post(path, content=picture())
        assert (response.status_code, problem_of(response.content)["type"]) == (429, "/problems/rate-limited")
        assert 0 < int(response.headers["retry-after"]) <= 50
    assert (await fresh_rest.http.get("/models")).status_code == 200
    assert await fresh_rest.count('convmlp_rejected_total{reason="rate"}') == 6
    labels = 'model="",outcome="rate-limited",task="segment",transport="rest"'
    assert await fresh_rest.count(f"convmlp_requests_total{{{labels}}}") == 2


@SLOW
async def test_rates_of_other_apis(fresh_rest: Rest) -> None:
    """A GET that predicts counts as a POST does; a list of models by POST counts as nothing."""
    detection, roboflow = "/compat/deepstack/v1/vision/detection", "/compat/roboflow/fake_detect/1"
    listing = "/compat/deepstack/v1/vision/custom/list"
    assert (await fresh_rest.http.post(detection, content=picture())).status_code == 200
    assert (await fresh_rest.http.get(roboflow)).status_code == 400
    for response in (
        await fresh_rest.http.get(roboflow),
        await fresh_rest.http.post(roboflow, content=picture()),
        await fresh_rest.http.post(detection, content=picture()),
        await fresh_rest.http.post(f"{listing}ing", content=picture()),
    ):
        assert response.status_code == 429, response.text
        assert response.headers["retry-after"]
    assert (await fresh_rest.http.post(listing)).status_code == 200


@SLOW
async def test_every_image_counts(fresh_rest: Rest) -> None:
    """Images that come in one request use up the rate as if they came one by one."""
    files = [("image", picture())] * 3
    assert (await fresh_rest.http.post("/classify", files=files)).status_code == 200
    response = await fresh_rest.http.post("/classify", content=picture())
    assert response.status_code == 429
    assert 50 < int(response.headers["retry-after"]) <= 100


async def test_callers_with_keys_have_rates_of_their_own(tmp_path: Path) -> None:
    """Behind one address, each key's name has its own rate; two keys of one name share theirs."""
    keys = {name: f"{name}{'0' * 16}" for name in ("a1", "a2", "b1")}
    path = tmp_path / "keys"
    path.write_text("".join(f"{name[0]} {key}\n" for name, key in keys.items()), encoding="ascii")
    async with open_rest(api_keys_file=path, rate_limit_per_s=0.02, rate_limit_burst=1) as rest:
        for name, status in (("a1", 200), ("a2", 429), ("b1", 200), ("b1", 429)):
            headers = {"Authorization": f"Bearer {keys[name]}"}
            assert (await rest.http.post("/classify", content=picture(), headers=headers)).status_code == status


@SLOW
async def test_forwarded_addresses_are_not_believed(fresh_rest: Rest) -> None:
    """A header that anybody can invent gives nobody a new rate."""
    statuses = [
        (
            await fresh_rest.http.post("/classify", content=picture(), headers={"X-Forwarded-For": f"192.0.2.{n}"})
        ).status_code
        for n in range(3)
    ]
    assert statuses == [200, 200, 429]


@pytest.mark.parametrize("text", [None, "", "short\n"])
async def test_a_front_end_without_usable_keys_ends(tmp_path: Path, text: str | None) -> None:
    """With a file of keys that is missing, empty or malformed the process ends at once, and logs the reason."""
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text, encoding="ascii")
    command = [sys.executable, "-m", "service.cli", "rest", "--http-port", "0", "--api-keys-file", str(path)]
    environment = {**os.environ, "CONVMLP_WORKER_ADDRESS": f"ipc://{tmp_path}/worker"}
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == EXIT_CONFIG
    assert "cannot read the API keys" in done.stderr
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
