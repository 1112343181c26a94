"""Parts of the OpenAPI document that several APIs share.

FastAPI makes the rest. It cannot know bodies and answers, because these are read and encoded by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fastapi import FastAPI

from service.errors import Forbidden, ModelInvalid
from service.frontend.http.problems import ERROR_TABLE, PROBLEM_MEDIA_TYPE
from service.settings import Settings

REF = "#/components/schemas/{name}"
BINARY = {"type": "string", "contentMediaType": "application/octet-stream"}
BASE64 = {"type": "string", "contentEncoding": "base64", "description": "Base64, or a data: URL."}
RESPONSE_HEADERS = {
    "X-Request-Id": {"description": "The request's own id, or a new one.", "schema": {"type": "string"}},
    "Server-Timing": {
        "description": "Durations in ms: `decode`, `queue`, `infer`, `post` and `total`; with several images, each "
        "stage's slowest.",
        "schema": {"type": "string"},
    },
    "X-Model-Precision": {
        "description": "What the network computed in: `exact`, `fp32`, `bf16` or `fp16`; several where workers differ.",
        "schema": {"type": "string"},
    },
}
_SCHEME = "apiKey"


def add_components(app: FastAPI, documents: Sequence[Mapping[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The app's OpenAPI document, with the `paths` and the schemas of `documents` added."""
    base_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = base_openapi()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for more in documents:
                document["paths"].update(more.get("paths", {}))
                schemas.update(more["components"]["schemas"])
        return app.openapi_schema or document

    return openapi


def header_parameters(settings: Settings) -> list[dict[str, Any]]:
    """The request headers that every prediction reads."""
    most = settings.request_timeout_ms
    return [
        {
            "name": "X-Request-Timeout-Ms",
            "in": "header",
            "description": f"Timeout of the request, in ms from its arrival; values above {most} count as {most}.",
            "schema": {"type": "integer", "minimum": 1, "default": most},
        },
        {
            "name": "X-Request-Id",
            "in": "header",
            "description": "Id of the request: returned in the answer and written to the logs.",
            "schema": {"type": "string", "maxLength": 128, "pattern": "^[ -~]+$"},
        },
    ]


def error_answers(media_type: str = PROBLEM_MEDIA_TYPE) -> dict[str, Any]:
    """A prediction's `responses` for each status of the error table."""
    titles: dict[int, list[str]] = {}
    for kind, row in ERROR_TABLE.items():
        if kind in (Forbidden, ModelInvalid):  # of no prediction, only of changing what is served
            continue
        known = titles.setdefault(row.status, [])
        if row.title not in known:
            known.append(row.title)
    return {str(status): problem_content("; ".join(titles[status]), media_type) for status in sorted(titles)}


def problem_content(description: str, media_type: str = PROBLEM_MEDIA_TYPE) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": description, "content": {media_type: {"schema": schema}}}


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
