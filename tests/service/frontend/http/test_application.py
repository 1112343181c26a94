"""What the whole application does on every path: HEAD, protective headers, JSON of any depth, the reserve."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import httpx2
import pytest
import pytest_asyncio

from service.frontend.api.rest.routes import FILES
from service.frontend.http.middleware import PROBES
from tests.service.frontend.rest_server import Rest, picture, problem_of
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

VARYING = {"date", "server-timing", "x-request-id"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def get_paths(rest: Rest) -> AsyncIterator[list[str]]:
    """Every path that answers GET, by the OpenAPI document, and the pages."""
    document = (await rest.http.get("/openapi.json")).json()
    paths = [path for path, operations in document["paths"].items() if "get" in operations]
    yield [*(re.sub(r"\{[^}]*\}", "fake_classify", path) for path in paths), *FILES, "/openapi.json"]


async def test_head_wherever_get_is(rest: Rest, get_paths: list[str]) -> None:
    """HEAD has GET's status and headers, Content-Length included, and no body, also where GET is an error."""
    assert len(get_paths) > 15
    for path in (*get_paths, "/models/none", "/nowhere"):
        got, head = await rest.http.get(path), await rest.http.request("HEAD", path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert set(head.headers) == set(got.headers), path
        varying = VARYING if path != "/metrics" and "error" not in got.text else VARYING | {"content-length"}
        for name in set(got.headers) - varying:
            assert head.headers[name] == got.headers[name], (path, name)
        assert int(head.headers["content-length"]) > 0, path


async def test_head_is_no_way_to_predict(rest: Rest) -> None:
    """A path that only takes POST names it to HEAD as to GET; one that takes GET names HEAD as well."""
    assert (await rest.http.request("HEAD", "/classify")).headers["allow"] == "OPTIONS, POST"
    assert (await rest.http.post("/livez")).headers["allow"] == "GET, HEAD, OPTIONS"


async def test_options_name_the_methods(rest: Rest) -> None:
    """OPTIONS of a path, or of the server, is no error: load balancers check servers with it."""
    for path, allow in (("/", "GET, HEAD, OPTIONS"), ("/v2/models/any/infer", "OPTIONS, POST")):
        answer = await rest.http.request("OPTIONS", path)
        assert (answer.status_code, answer.content, answer.headers["allow"]) == (204, b"", allow)
    reader, writer = await asyncio.open_connection("127.0.0.1", rest.port)
    writer.write(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
    writer.close()
    assert (await rest.http.request("OPTIONS", "/nowhere")).status_code == 404


async def test_a_slash_too_many_is_named(rest: Rest) -> None:
    """Paths have no slash at their end: the error has the path to take, where there is one."""
    for path in ("/classify", "/models", "/v2/health/live", "/compat/huggingface/segment"):
        answer = await rest.http.post(f"{path}/", content=picture())
        assert answer.status_code == 404
        assert f"the path is '{path}'" in answer.json()["detail"]
    assert "the path is" not in (await rest.http.get("/nowhere/")).text


async def test_no_answer_is_sniffed(rest: Rest, get_paths: list[str]) -> None:
    """Every answer has `nosniff` once: a browser must not take JSON with a caller's text for a page."""
    answers = [await rest.http.get(path) for path in (*get_paths, "/nowhere", "/classify")]
    answers += [await rest.http.post("/classify", content=body) for body in (picture(), b"", b"%PDF")]
    for answer in answers:
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"], answer.url


DEEP = "[" * 200_000
"""More than any parser's stack allows, in a small file."""


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/classify", DEEP),
        ("/classify", '{"images": ' + DEEP),
        ("/compat/huggingface/classify", '{"inputs": ' + DEEP),
        ("/compat/huggingface/classify", '{"inputs": "", "parameters": ' + '{"a": ' * 200_000),
        ("/v2/models/fake_classify/infer", DEEP),
        ("/v2/models/fake_classify/infer", '{"inputs": [{"name": "image", "parameters": ' + '{"a": ' * 200_000),
        ("/v2/repository/index", DEEP),
        ("/v2/repository/models/fake_classify/load", '{"parameters": ' + DEEP),
    ],
)
async def test_json_of_any_depth_is_answered(rest: Rest, path: str, body: str) -> None:
    """JSON that is nested deeper than a parser's stack is the caller's fault, on every route that reads JSON."""
    headers = {"Content-Type": "application/json"}
    answer = await rest.http.post(path, content=body.encode(), headers=headers)
    assert answer.status_code in (400, 403, 422), answer.text
    assert (await rest.http.get("/livez")).status_code == 200


@pytest.mark.settings(max_connections=3)
async def test_probes_are_answered_beyond_the_limit(fresh_rest: Rest) -> None:
    """While callers hold all connections, probes are answered, and others are refused with the time to come back."""
    runner, base = fresh_rest.worker.runner, str(fresh_rest.http.base_url)
    runner.unblocked.clear()
    batches = len(runner.batches)
    held = [asyncio.create_task(fresh_rest.http.post("/classify", content=picture(7)))]
    await until(lambda: len(runner.batches) > batches)  # else all three would share a batch, and none would wait
    callers = [httpx2.AsyncClient(base_url=base, timeout=60) for _ in range(2)]
    held += [asyncio.create_task(caller.post("/classify", content=picture(7))) for caller in callers]
    await fresh_rest.until_waiting(2)
    async with httpx2.AsyncClient(base_url=base, timeout=60) as late:
        for path in PROBES:
            answer = await late.get(path)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close"), path
        for refused in (await late.post("/classify", content=picture()), await late.get("/models")):
            problem = problem_of(refused.content)
            assert (refused.status_code, problem["type"]) == (503, "/problems/overloaded")
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["connection"] == "close"
        metrics = (await late.get("/metrics")).text
        assert 'convmlp_rejected_total{reason="connections"} 1.0' in metrics
        assert "convmlp_connections_limit 3.0" in metrics
    runner.unblocked.set()
    assert [answer.status_code for answer in await asyncio.gather(*held)] == [200, 200, 200]
    for caller in callers:
        await caller.aclose()
