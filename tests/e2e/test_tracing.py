"""The whole service with its real worker exports one trace per request to a collector."""

from __future__ import annotations

import httpx2

from model.reference import REFERENCE_PICTURE
from tests.e2e.convmlp_process import running_service
from tests.service.observability.collector import collecting
from tests.service.observability.span_capture import IMAGE, caller_trace


async def test_the_whole_service_is_traced() -> None:
    """`convmlp serve --otlp-endpoint URL` turns on tracing in the front-end and the worker."""
    caller = caller_trace()
    with collecting() as collector:
        with running_service("--otlp-endpoint", collector.url, "--models", "convmlp_pets_breed") as service:
            headers = {**caller.headers, "x-request-id": "whole"}
            async with httpx2.AsyncClient(base_url=service.url, timeout=60) as http:
                answer = await http.post("/classify", content=REFERENCE_PICTURE.read_bytes(), headers=headers)
            assert answer.status_code == 200
        tree = await collector.named(caller.trace, "POST /classify", *IMAGE)
        batch = await tree.batch_of(tree["infer"])
    assert tree["predict"].parent == tree["POST /classify"].id
    assert {span.service for span in tree.spans} == {"convmlp-rest", "convmlp-worker"}
    assert batch.links == {(caller.trace, tree["predict"].id)}
    assert batch.attributes["convmlp.batch.size"] == 1
    (line,) = [line for line in service.lines if line.get("request_id") == "whole"]
    assert line["trace_id"] == caller.trace
    assert [line for line in service.lines if line.get("level") in ("warning", "error")] == []
