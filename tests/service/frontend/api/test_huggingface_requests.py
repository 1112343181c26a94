"""Hugging Face's routes below the client: what other programs send, and what exactly they get."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import msgspec
import pytest

from model.types import Task
from service.frontend.api.huggingface_schemas import ELEMENT_OF_TASK
from tests.service.frontend.rest_server import Rest, picture, problem_of
from tests.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLASSIFY = "/compat/huggingface/classify"
BASE64 = base64.b64encode(picture(7)).decode()


@pytest.mark.parametrize("content_type", [None, "image/png", "text/plain", "application/json", "nonsense"])
async def test_content_type_does_not_matter(rest: Rest, content_type: str | None) -> None:
    """Bytes and JSON are distinguished by their first byte, not by the header."""
    headers = {"Content-Type": content_type} if content_type is not None else {}
    for body in (picture(7), json.dumps({"inputs": BASE64}).encode()):
        response = await rest.http.post(CLASSIFY, content=body, headers=headers)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/json"
        assert response.json()[0] == {"label": "grey 7", "score": 0.5}


async def test_no_score_where_there_is_none(rest: Rest) -> None:
    """A semantic segment has no key `score`: `@huggingface/inference` 4.13.30 refuses null."""
    response = await rest.http.post("/compat/huggingface/segment", content=picture(7))
    assert [set(element) for element in response.json()] == [{"label", "mask"}] * 2


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": BASE64, "parameters": {}},
        {"inputs": BASE64, "parameters": None},
        {"inputs": BASE64, "parameters": {"top_k": None, "function_to_apply": None}},
        {"inputs": BASE64, "options": {"wait_for_model": True}},
        {"inputs": f"data:image/png;base64,{BASE64}"},
        {"inputs": "\n".join(BASE64[at : at + 76] for at in range(0, len(BASE64), 76))},
    ],
)
async def test_forms_of_json(rest: Rest, document: dict[str, Any]) -> None:
    """What is left out, null, or meant for Hugging Face's own servers changes nothing."""
    response = await rest.http.post(CLASSIFY, json=document)
    assert response.status_code == 200, response.text
    assert response.json() == (await rest.http.post(CLASSIFY, content=picture(7))).json()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"{", 400, "not valid JSON"),
        (b'{"inputs": "\xff"}', 400, "JSON"),
        (b'{"inputs": "", "options": ' + b"[" * 100_000, 400, "nested"),
        (b"{}", 400, "inputs"),
        (b'{"image": "AAAA"}', 400, "image"),
        (b'{"inputs": 1}', 400, "inputs"),
        (b'{"inputs": ["AAAA"]}', 400, "inputs"),
        (b'{"inputs": "https://example.org/a.jpg"}', 422, "fetch_urls"),
        (b'{"inputs": "data:image/png,abc"}', 400, "base64"),
        (b'{"inputs": ""}', 400, "empty"),
        (b'{"inputs": "AAAA"}', 415, "format"),
        (b'{"inputs": "AAAA", "parameters": []}', 422, "parameters"),
        (b'{"inputs": "AAAA", "parameters": {"topk": 1}}', 422, "top_k"),
        (b'{"inputs": "AAAA", "parameters": {"top_k": "1"}}', 422, "top_k"),
        (b'{"inputs": "AAAA", "parameters": {"top_k": true}}', 422, "top_k"),
        (b"[1]", 415, "JSON"),
    ],
)
async def test_bad_bodies(rest: Rest, body: bytes, status: int, words: str) -> None:
    """Each is a problem with a message, and the service goes on."""
    response = await rest.http.post(CLASSIFY, content=body)
    assert response.status_code == status, response.text
    assert words in problem_of(response.content)["detail"]
    assert (await rest.http.post(CLASSIFY, content=picture())).status_code == 200


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("?model=fake_classify", 200),
        ("?top_k=3", 422),
        ("?model=fake_classify&model=fake_classify", 422),
        ("?model=", 422),
        (f"?model={'x' * 75}", 422),
        ("?model=x", 404),
    ],
)
async def test_the_query_names_a_model(rest: Rest, query: str, status: int) -> None:
    """A model, once, and nothing else; a name of any length costs nothing."""
    assert (await rest.http.post(CLASSIFY + query, content=picture())).status_code == status


@pytest.mark.settings(max_image_bytes=1000, max_request_bytes=5000)
async def test_bodies_are_bounded(fresh_rest: Rest) -> None:
    """A body that is too long for the service is refused, as one image that is too large is."""
    for body in (picture() + bytes(1000), picture() + bytes(5000)):
        assert (await fresh_rest.http.post(CLASSIFY, content=body)).status_code == 413


async def test_a_body_that_does_not_come(fresh_rest: Rest) -> None:
    """A caller's deadline holds for its own upload as well."""
    reader, writer = await asyncio.open_connection("127.0.0.1", fresh_rest.port)
    head = f"POST {CLASSIFY} HTTP/1.1\r\nHost: x\r\nX-Request-Timeout-Ms: 50\r\nContent-Length: 9\r\n\r\n"
    writer.write(head.encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 504 ")
    writer.close()


@pytest.mark.parametrize("task", Task)
async def test_requests_are_counted_and_timed(fresh_rest: Rest, task: Task) -> None:
    """They count as REST's, by task, model and outcome, with their stages as other predictions."""
    path = f"/compat/huggingface/{task}"
    response = await fresh_rest.http.post(path, content=picture(), headers={"X-Request-Id": "abc"})
    assert response.headers["x-request-id"] == "abc"
    assert response.headers["x-model-precision"] == "fp32"
    assert [part.split(";")[0] for part in response.headers["server-timing"].split(", ")] == [
        "decode",
        "queue",
        "infer",
        "post",
        "total",
        "batch",
    ]
    assert (await fresh_rest.http.post(path, content=b"%PDF")).status_code == 415
    for outcome in ("ok", "unsupported-format"):
        labels = f'model="fake_{task}",outcome="{outcome}",task="{task}",transport="rest"'
        assert await fresh_rest.count(f"convmlp_requests_total{{{labels}}}") == 1


@pytest.mark.parametrize("task", Task)
async def test_answers_follow_their_schema(rest: Rest, task: Task) -> None:
    """A real answer has exactly the members of its documented element, and OpenAPI refers to it."""
    rows = (await rest.http.post(f"/compat/huggingface/{task}", content=picture())).json()
    kind = ELEMENT_OF_TASK[task]
    for row in rows:
        assert msgspec.to_builtins(msgspec.convert(row, kind)) == row
    document = (await rest.http.get("/openapi.json")).json()
    operation = document["paths"][f"/compat/huggingface/{task}"]["post"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"type": "array", "items": {"$ref": f"#/components/schemas/{kind.__name__}"}}
    assert set(document["components"]["schemas"][kind.__name__]["required"]) == set(rows[0])
    assert operation["tags"] == ["huggingface"]


async def test_caller_who_leaves_withdraws_its_job(fresh_rest: Rest) -> None:
    """A connection that breaks while its job waits takes the job out of the worker's queue."""
    batches = fresh_rest.worker.runner.batches
    before = len(batches)
    fresh_rest.worker.runner.unblocked.clear()
    held = asyncio.create_task(fresh_rest.http.post(CLASSIFY, content=picture(1)))
    await until(lambda: len(batches) != before)
    body = picture(2)
    _, writer = await asyncio.open_connection("127.0.0.1", fresh_rest.port)
    writer.write(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (CLASSIFY.encode(), len(body)) + body)
    await fresh_rest.until_waiting(1)
    writer.close()
    labels = 'model="fake_classify",outcome="cancelled",task="classify",transport="rest"'
    await fresh_rest.until(f"convmlp_requests_total{{{labels}}}", 1)
    await fresh_rest.until_waiting(0)  # the word of it has come to the worker, who may go on now
    fresh_rest.worker.runner.unblocked.set()
    assert (await held).status_code == 200
    assert batches[before:] == [("fake_classify", 1)]
