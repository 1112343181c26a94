"""/openapi.json describes the requests and responses of the protocol as they are."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from model.types import Task
from tests.service.frontend.api.oip.oip_client import JSON_LENGTH, OipFrontEnds, encoded_request, http_body
from tests.service.frontend.rest_server import picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = base64.b64encode(picture(7)).decode()
INPUT = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [TEXT]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def document(oip: OipFrontEnds) -> dict[str, Any]:
    return dict((await oip.http.http.get("/openapi.json")).json())


def follows(document: dict[str, Any], value: object, schema: dict[str, Any]) -> bool:
    return bool(Draft202012Validator({**schema, "components": document["components"]}).is_valid(value))


def named(document: dict[str, Any], name: str) -> dict[str, Any]:
    """A schema that a valid value matches and other values do not: it is not empty."""
    Draft202012Validator.check_schema(document["components"]["schemas"][name])
    return {"$ref": f"#/components/schemas/{name}"}


async def test_answers_follow_their_schemas(oip: OipFrontEnds, document: dict[str, Any]) -> None:
    """Responses of every path without a body match their schemas, for each model."""
    paths = [path for path, operations in document["paths"].items() if path.startswith("/v2") and "get" in operations]
    assert len(paths) == 12
    for path in paths:
        schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        for task in Task:
            answer = await oip.http.http.get(path.format(name=f"fake_{task}", version="1"))
            assert answer.status_code == 200
            assert follows(document, answer.json(), schema), (path, answer.json())
            assert not follows(document, {}, schema) or path.endswith("/config"), path
    index = document["paths"]["/v2/repository/index"]["post"]["responses"]["200"]["content"]["application/json"]
    assert follows(document, (await oip.http.http.post("/v2/repository/index")).json(), index["schema"])


@pytest.mark.parametrize("task", Task)
async def test_predictions_follow_their_schemas(oip: OipFrontEnds, document: dict[str, Any], task: Task) -> None:
    """A request that the schema allows gets a response that matches its schema, in JSON and with raw tensors."""
    path = f"/v2/models/fake_{task}/infer"
    asked, answered = (named(document, f"inference_{one}") for one in ("request", "response"))
    request = {"id": "mine", "inputs": [INPUT]}
    assert follows(document, request, asked)
    assert follows(document, (await oip.http.http.post(path, json=request)).json(), answered)
    body, headers = http_body(encoded_request(f"fake_{task}", picture(7)))
    assert follows(document, json.loads(body[: int(headers[JSON_LENGTH])]), asked)
    answer = await oip.http.http.post(path, content=body, headers=headers)
    length = int(answer.headers[JSON_LENGTH])
    assert follows(document, json.loads(answer.content[:length]), answered)
    received = document["paths"]["/v2/models/{name}/infer"]["post"]["responses"]["200"]
    assert {JSON_LENGTH, "Server-Timing"} <= received["headers"].keys()
    assert answer.headers["content-type"] in received["content"]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"inputs": []}, 400),
        ({"inputs": [INPUT, INPUT]}, 400),
        ({"inputs": [{**INPUT, "name": "input"}]}, 400),
        ({"inputs": [{**INPUT, "datatype": "FP32"}]}, 400),
        ({"inputs": [INPUT], "parameters": {"top_k": 0}}, 422),
        ({"inputs": [INPUT], "parameters": {"top_k": 1001}}, 422),
        ({"inputs": [INPUT], "parameters": {"best_of": 5}}, 422),
        ({"inputs": [INPUT], "parameters": {"timeout": -1}}, 422),
        ({"inputs": [INPUT], "outputs": [{"name": "scores", "parameters": {"classification": -1}}]}, 400),
    ],
)
async def test_what_the_schema_forbids_is_refused(
    oip: OipFrontEnds, document: dict[str, Any], request_: dict[str, Any], status: int
) -> None:
    """Values outside the ranges and choices of the schema are errors with a documented status."""
    assert not follows(document, request_, named(document, "inference_request"))
    answer = await oip.http.http.post("/v2/models/fake_classify/infer", json=request_)
    assert answer.status_code == status
    received = document["paths"]["/v2/models/{name}/infer"]["post"]["responses"][str(status)]["content"]
    assert follows(document, answer.json(), received[answer.headers["content-type"]]["schema"])
    assert not follows(document, {}, received[answer.headers["content-type"]]["schema"])
