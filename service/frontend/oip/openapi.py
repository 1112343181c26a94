"""The protocol's part of the OpenAPI document: the routes of `http.py` that do something here."""

from __future__ import annotations

from typing import Any

from service.frontend.oip.http_request import HEADER_LENGTH
from service.frontend.oip.openapi_schemas import COUNT, TEXT, TRUTH, ref, schemas
from service.frontend.oip.request import VERSION
from service.frontend.rest.openapi_parts import (
    BINARY,
    RESPONSE_HEADERS,
    error_answers,
    header_parameters,
    problem_content,
)
from service.settings import Settings

TAG = "open inference protocol"
MODEL = "/v2/models/{name}"
OF_VERSION = f"{MODEL}/versions/{{version}}"
JSON = "application/json"
RAW = "application/octet-stream"
ERROR = {"default": problem_content("An error, as RFC 9457 has it; clients of the protocol read its member `error`")}

Operation = dict[str, Any]


def open_inference_document(settings: Settings) -> dict[str, Any]:
    """`paths`, and the `components` that they refer to."""
    live = {"type": "object", "properties": {"live": TRUTH}, "required": ["live"]}
    ready = {"type": "object", "properties": {"ready": TRUTH, "name": TEXT}, "required": ["ready"]}
    gets = {
        "/v2": ("server_metadata", "What this server is", ref("metadata_server_response")),
        "/v2/health/live": ("live", "This process answers", live),
        "/v2/health/ready": ("ready", "Predictions are answered; 503 with the reason if not", ready),
        "/v2/models/stats": ("statistics", "What was answered, of all models", ref("model_statistics")),
        MODEL: ("model_metadata", "A model's inputs and outputs", ref("metadata_model_response")),
        f"{MODEL}/ready": ("model_ready", "A model answers; 503 with the reason if not", ready),
        f"{MODEL}/config": ("model_config", "A model's configuration", ref("model_configuration")),
        f"{MODEL}/stats": ("model_statistics", "What a model answered", ref("model_statistics")),
    }
    paths: dict[str, dict[str, Operation]] = {}
    for path, (name, summary, schema) in gets.items():
        for place, suffix in _with_version(path):
            answer = {"description": "The answer", "content": {JSON: {"schema": schema}}}
            paths[place] = {"get": _operation(place, name + suffix, summary, answer)}
    for place, suffix in _with_version(f"{MODEL}/infer"):
        paths[place] = {"post": _infer(place, f"infer{suffix}", settings)}
    paths |= _repository()
    return {"paths": paths, "components": {"schemas": schemas(settings.max_images)}}


def _with_version(path: str) -> list[tuple[str, str]]:
    """The places of a path, and what their operations' names end with: a model's version may be named or not."""
    if not path.startswith(MODEL):
        return [(path, "")]
    return [(path, ""), (path.replace(MODEL, OF_VERSION), "_of_version")]


def _operation(path: str, name: str, summary: str, answer: dict[str, Any]) -> Operation:
    parts = {"name": TEXT, "version": {"type": "string", "enum": [VERSION]}}
    return {
        "tags": [TAG],
        "operationId": f"open_inference_{name}",
        "summary": summary,
        "parameters": [
            {"name": part, "in": "path", "required": True, "schema": schema}
            for part, schema in parts.items()
            if f"{{{part}}}" in path
        ],
        "responses": {"200": answer, **ERROR},
    }


def _infer(path: str, name: str, settings: Settings) -> Operation:
    length = {
        "name": HEADER_LENGTH,
        "in": "header",
        "description": "The bytes of JSON that the body begins with; raw tensors follow it. Left out: all of it; 0: "
        "the body is one encoded image.",
        "schema": COUNT,
    }
    operation = _operation(path, name, "Predictions of a model for the images of one tensor", {})
    operation["parameters"] += [length, *header_parameters(settings)]
    operation["requestBody"] = {
        "required": True,
        "description": f"At most {settings.max_request_bytes:,} bytes; compressed with gzip or deflate where "
        "Content-Encoding says so.",
        "content": {JSON: {"schema": ref("inference_request")}, RAW: {"schema": BINARY}},
    }
    told = {"description": "The bytes of JSON, where raw tensors follow it.", "schema": COUNT}
    operation["responses"] = {
        "200": {
            "description": "JSON, and behind it the outputs that were asked for as raw bytes",
            "headers": {**RESPONSE_HEADERS, HEADER_LENGTH: told},
            "content": {JSON: {"schema": ref("inference_response")}, RAW: {"schema": BINARY}},
        },
        **error_answers(),
    }
    return operation


def _repository() -> dict[str, dict[str, Operation]]:
    """What is in the store; and, where the operator allows it, which of it is served."""
    only_ready = {"type": "object", "properties": {"ready": {**TRUTH, "default": False}}}
    listed = {"description": "The answer", "content": {JSON: {"schema": ref("repository_index")}}}
    index = _operation("", "repository_index", "Every model of the store", listed)
    index["requestBody"] = {"content": {JSON: {"schema": only_ready}}}
    paths = {"/v2/repository/index": {"post": index}}
    for verb, summary in (("load", "Serve a model of the store"), ("unload", "Serve a model no more")):
        path = f"/v2/repository/models/{{name}}/{verb}"
        operation = _operation(path, verb, summary, {"description": "Done; the body is empty"})
        operation["requestBody"] = {"content": {JSON: {"schema": {"type": "object"}}}}
        paths[path] = {"post": operation}
    return paths
