"""Parts of the OpenAPI document that several APIs share.

FastAPI makes the rest. It cannot know bodies and answers, because these are read and encoded by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fastapi import FastAPI

from model.errors import ConvMLPError
from service.errors import Forbidden, Internal, ModelInvalid, NotAcceptable, RateLimited, Unauthenticated
from service.frontend.core.parameters import Parameter
from service.frontend.http.content_encoding import CODINGS, MAX_CODINGS
from service.frontend.http.problems import ERROR_TABLE, PROBLEM_MEDIA_TYPE, Problem
from service.settings import Settings

REF = "#/components/schemas/{name}"
BINARY = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
"""Bytes. OpenAPI 3.1 has `contentMediaType` for them; generators of clients read 3.0's `format`."""
BASE64 = {
    "type": "string",
    "contentEncoding": "base64",
    "description": "Base64, or a data: URL; an http(s): URL where the service fetches from its host.",
}
RESPONSE_HEADERS = {
    "X-Request-Id": {"description": "The request's own id, or a new one.", "schema": {"type": "string"}},
    "Server-Timing": {
        "description": "Durations in ms: `decode`, `queue`, `infer`, `post` and `total`; with several images, each "
        "stage's slowest. `batch;desc=N`: images in the batch, the largest of several.",
        "schema": {"type": "string"},
    },
    "X-Model-Precision": {
        "description": "What the network computed in: `exact`, `fp32`, `bf16` or `fp16`; several where workers differ.",
        "schema": {"type": "string"},
    },
}
PREDICTION_ERRORS = tuple(kind for kind in ERROR_TABLE if kind not in (Forbidden, ModelInvalid, NotAcceptable))
"""The others are errors of changing what is served, and of endpoints that offer several media types."""
ANY_ERRORS = (Unauthenticated, RateLimited, Internal)
"""Errors that every request may get."""
_SCHEME = "apiKey"


def add_components(app: FastAPI, documents: Sequence[Mapping[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The app's OpenAPI document, with the `paths` and the schemas of `documents` added.

    Its schemas are put so that generators of clients understand them.
    """
    base_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = base_openapi()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            _settle_defaults(schemas)
            for more in documents:
                document["paths"].update(more.get("paths", {}))
                schemas.update(more["components"]["schemas"])
            _plain_arrays(schemas)
        return app.openapi_schema or document

    return openapi


def _plain_arrays(node: object) -> None:
    """Turn tuples, which few generators of clients read, into arrays of as many items, in all schemas of `node`."""
    if isinstance(node, list):
        for item in node:
            _plain_arrays(item)
    elif isinstance(node, dict):
        for value in node.values():
            _plain_arrays(value)
        if (positions := node.pop("prefixItems", None)) is not None:
            kinds = [kind for index, kind in enumerate(positions) if kind not in positions[:index]]
            node["items"] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _settle_defaults(schemas: dict[str, Any]) -> None:
    """Make constant properties required: they distinguish the schemas of a union. Drop lists and objects as defaults.

    FastAPI takes both from the server's own classes, in which each property with a default is optional. Few generators
    of clients read a list or an object as a default, and answers have these properties.
    """
    for schema in schemas.values():
        required = schema.get("required", [])
        for name, described in schema.get("properties", {}).items():
            if "const" in described and name not in required:
                schema["required"] = required = [*required, name]
            if "const" in described or isinstance(described.get("default"), list | dict):
                described.pop("default", None)


def query_parameters(table: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    """The parameters of a query string."""
    return [
        {"name": name, "in": "query", "description": parameter.description, "schema": dict(parameter.schema)}
        for name, parameter in table.items()
    ]


def header_parameters(settings: Settings) -> list[dict[str, Any]]:
    """The request headers that every prediction reads."""
    most = settings.request_timeout_ms
    return [
        {
            "name": "X-Request-Timeout-Ms",
            "in": "header",
            "description": f"Timeout of the request, in ms from its arrival. Default, and at most: {most}.",
            "schema": {"type": "integer", "minimum": 1},
        },
        {
            "name": "X-Request-Id",
            "in": "header",
            "description": "Id of the request: returned in the answer and written to the logs.",
            "schema": {"type": "string", "maxLength": 128, "pattern": "^[ -~]+$"},
        },
        {
            "name": "Content-Encoding",
            "in": "header",
            "description": f"How the body is compressed: {' or '.join(f'`{coding}`' for coding in CODINGS)}, or up to "
            f"{MAX_CODINGS} of them with commas between, in the order in which they were applied. Limits on the body's "
            "bytes apply to it as sent, and decompressed.",
            "schema": {"type": "string", "examples": list(CODINGS)},
        },
    ]


def error_answers(
    kinds: Collection[type[ConvMLPError]] = PREDICTION_ERRORS,
    media_type: str = PROBLEM_MEDIA_TYPE,
    schema: str = Problem.__name__,
) -> dict[int | str, dict[str, Any]]:
    """An operation's `responses` for the statuses of these errors, and of those that any request may get.

    `schema` is the name of that of the body.
    """
    titles: dict[int, list[str]] = {}
    for kind in (*kinds, *ANY_ERRORS):
        row = ERROR_TABLE[kind]
        known = titles.setdefault(row.status, [])
        if row.title not in known:
            known.append(row.title)
    return {str(status): problem_content("; ".join(titles[status]), media_type, schema) for status in sorted(titles)}


def problem_content(
    description: str, media_type: str = PROBLEM_MEDIA_TYPE, schema: str = Problem.__name__
) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": {"$ref": REF.format(name=schema)}}}}


def add_security(app: FastAPI, open_paths: Collection[str]) -> Callable[[], dict[str, Any]]:
    """The app's OpenAPI document, with the API key added to all paths but `open_paths`."""
    base_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        document = base_openapi()
        document["components"]["securitySchemes"] = {
            _SCHEME: {"type": "http", "scheme": "bearer", "description": "An API key of this service."}
        }
        for path, operations in document["paths"].items():
            if path not in open_paths:
                for operation in operations.values():
                    operation["security"] = [{_SCHEME: []}]
        return document

    return openapi
