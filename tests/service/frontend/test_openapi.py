from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import msgspec
import pytest
from fastapi.openapi.models import OpenAPI
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from model.types import Task
from service.frontend.api.rest.schemas import RESULT_OF_TASK
from service.frontend.core.parameters import PARAMETERS
from tests.service.frontend.rest_server import Rest, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def document_of(rest: Rest) -> dict[str, Any]:
    return dict((await rest.http.get("/openapi.json")).json())


async def test_document_is_valid(rest: Rest) -> None:
    """The text follows OpenAPI's own schema, and every reference in it leads somewhere."""
    document = await document_of(rest)
    OpenAPI.model_validate(document)
    text = json.dumps(document)
    names = {piece.partition('"')[0] for piece in text.split('"$ref": "#/components/schemas/')[1:]}
    assert names <= set(document["components"]["schemas"])
    assert "HTTPValidationError" not in text


async def test_generators_of_clients_understand_it(rest: Rest) -> None:
    """No schema has a form that openapi-python-client or OpenAPI Generator refuses, or makes wrong code of.

    `make test-clients` runs them.
    """
    document = await document_of(rest)
    assert document["info"]["version"] == version("convmlp-serving")
    for schema in parts_of(document):
        assert "prefixItems" not in schema
        assert not isinstance(schema.get("items"), bool)
        assert "contentMediaType" not in schema or schema["format"] == "binary"
        if "discriminator" in schema:
            name = schema["discriminator"]["propertyName"]
            for reference in schema["discriminator"]["mapping"].values():
                assert name in document["components"]["schemas"][reference.rpartition("/")[2]]["required"]
    for name, schema in document["components"]["schemas"].items():
        items = schema.get("items", {})
        assert f"#/components/schemas/{name}" not in json.dumps(items), "a list of itself"
    for path, operations in document["paths"].items():
        for operation in operations.values():
            media = [*operation.get("requestBody", {}).get("content", {})]
            assert not any("*" in medium for medium in media)
            # The first is what a generated client sends.
            if len(media) > 1 and not path.startswith("/v2"):
                assert media[0] == "application/octet-stream"


def parts_of(node: object) -> Iterator[dict[str, Any]]:
    """Every object in a document."""
    if isinstance(node, dict):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from parts_of(value)


async def test_descriptions_of_models_follow_their_schema(rest: Rest) -> None:
    """/models has what its schema requires, and so has each model."""
    document = await document_of(rest)

    def check(schema: str, answer: object) -> None:
        reference = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
        Draft202012Validator(reference).validate(answer)

    models = (await rest.http.get("/models")).json()
    check("ModelList", models)
    for model in models["models"]:
        check("ModelCard", (await rest.http.get(f"/models/{model['name']}")).json())
    assert len(models["models"]) == len(Task)


async def test_every_path_is_described(rest: Rest) -> None:
    """All of the contract's paths are there, and no page."""
    assert set((await document_of(rest))["paths"]) == {
        *(f"/{task}" for task in Task),
        "/embed",
        "/analyze",
        *(f"/compat/huggingface/{task}" for task in Task),
        *(f"/compat/deepstack/v1/vision/{path}" for path in ("detection", "custom/{model}", "custom/list", "scene")),
        "/compat/roboflow/{project}/{version}",
        *(f"/compat/deepstack/v1/status/{path}" for path in ("ping", "updateavailable")),
        *(f"/compat/labelstudio/{path}" for path in ("health", "predict", "setup", "versions", "webhook")),
        "/models",
        "/models/{name}",
        "/models/{name}/split",
        "/livez",
        "/readyz",
        "/metrics",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/stats",
        "/v2/repository/index",
        *(f"/v2/repository/models/{{name}}/{verb}" for verb in ("load", "unload")),
        *(
            f"/v2/models/{{name}}{version}{what}"
            for version in ("", "/versions/{version}")
            for what in ("", "/ready", "/config", "/stats", "/infer")
        ),
    }


async def test_every_operation_has_a_name_of_its_own(rest: Rest) -> None:
    """Generated clients name their functions by it; and each part of a path is one of its parameters."""
    named: list[str] = []
    for path, operations in (await document_of(rest))["paths"].items():
        for operation in operations.values():
            named.append(operation["operationId"])
            parts = {row["name"] for row in operation.get("parameters", []) if row["in"] == "path"}
            assert parts == {piece.partition("}")[0] for piece in path.split("{")[1:]}
    assert len(named) == len(set(named))


@pytest.mark.parametrize("task", Task)
async def test_parameters_are_those_that_are_read(rest: Rest, task: Task) -> None:
    """Each documented range is the real one: its ends are taken, and what lies beyond is refused."""
    described = (await document_of(rest))["paths"][f"/{task}"]["post"]["parameters"]
    query = {row["name"]: row["schema"] for row in described if row["in"] == "query"}
    assert set(query) == {name for name, parameter in PARAMETERS.items() if task in parameter.tasks}
    beside = {"tile_overlap": {"tiles": "auto"}}
    for name, schema in query.items():
        if "minimum" in schema:
            good, bad = [schema["minimum"], schema["maximum"]], [schema["minimum"] - 1, schema["maximum"] + 1]
        elif "enum" in schema:
            good, bad = schema["enum"], ["other"]
        else:
            good, bad = [], [""]
        for values, status in ((good, 200), (bad, 422)):
            for value in values:
                params = {name: value, **beside.get(name, {})}
                response = await rest.http.post(f"/{task}", params=params, content=picture())
                if name == "threshold":  # in its range, but not a parameter of the fake segmenter
                    assert ("does not apply to fake_segment" in response.text) == (status == 200)
                else:
                    assert response.status_code == status, (name, value, response.text)


@pytest.mark.parametrize("task", Task)
async def test_answers_follow_their_schema(rest: Rest, task: Task) -> None:
    """A real answer decodes strictly into the structs that the schema was made from."""
    for mask_format in ("rle", "png", "polygon", "none") if task is not Task.CLASSIFY else ("",):
        params = {"mask_format": mask_format} if mask_format else {}
        response = await rest.http.post(f"/{task}", params=params, content=picture())
        result = response.json()["results"][0]
        assert msgspec.to_builtins(msgspec.convert(result, RESULT_OF_TASK[task], strict=False)).keys() == result.keys()


@pytest.mark.parametrize("task", Task)
async def test_errors_and_media_are_described(rest: Rest, task: Task) -> None:
    """Every status of the error table and every medium of an answer is documented."""
    operation = (await document_of(rest))["paths"][f"/{task}"]["post"]
    assert set(operation["responses"]) == {
        "200",
        "400",
        "401",
        "404",
        "406",
        "413",
        "415",
        "422",
        "429",
        "500",
        "502",
        "503",
        "504",
    }
    assert set(operation["responses"]["200"]["content"]) == {
        "application/json",
        "image/png",
        "image/jpeg",
        "image/webp",
    }
    assert set(operation["requestBody"]["content"]) >= {"multipart/form-data", "application/json"}
