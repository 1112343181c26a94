"""The JSON of the protocol over HTTP, as schemas of OpenAPI. Those that KServe's own document has keep its names.

The protocol's part of the OpenAPI document: the routes of `http.py` that do something here.
"""

from __future__ import annotations

from typing import Any

from service.frontend.api.oip.http_codec import HEADER_LENGTH
from service.frontend.api.oip.options import OF_TASK, TIMEOUT, WITHOUT_EFFECT
from service.frontend.api.oip.protocol import INPUT, VERSION, Datatype
from service.frontend.core.parameters import PARAMETERS
from service.frontend.http.openapi import (
    BINARY,
    REF,
    RESPONSE_HEADERS,
    error_answers,
    header_parameters,
    problem_content,
)
from service.settings import Settings

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
TRUTH: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SHAPE: Schema = {"type": "array", "items": WHOLE, "description": "-1 where it varies."}


def ref(name: str) -> Schema:
    return {"$ref": REF.format(name=name)}


def many(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def schemas(max_images: int) -> dict[str, Schema]:
    """By name. `max_images`: of one request."""
    length = {**COUNT, "description": f"Its bytes behind the JSON, see `{HEADER_LENGTH}`; then there is no `data`."}
    return {
        "metadata_server_response": _object({"name": TEXT, "version": TEXT, "extensions": many(TEXT)}),
        "metadata_model_response": _object(
            {
                "name": TEXT,
                "versions": many(TEXT),
                "platform": TEXT,
                "inputs": many(ref("metadata_tensor")),
                "outputs": many(ref("metadata_tensor")),
            }
        ),
        "metadata_tensor": _object({"name": TEXT, "datatype": ref("datatype"), "shape": SHAPE}),
        "datatype": {"type": "string", "enum": list(Datatype)},
        "tensor_data": {
            "description": "Elements in one row, or nested as the shape is. Those of BYTES are text; encoded images, "
            "in and out, are base64.",
            "type": "array",
            "items": {"anyOf": [ref("tensor_data"), {"type": "number"}, TEXT]},
        },
        "inference_request": _object(
            {
                "id": TEXT,
                "parameters": _parameters(),
                "inputs": {**many(ref("request_input")), "minItems": 1, "maxItems": 1},
                "outputs": {**many(ref("request_output")), "description": "The model's usual ones if left out."},
            },
            optional=("id", "parameters", "outputs"),
        ),
        "request_input": _object(
            {
                "name": {"const": INPUT},
                "shape": {
                    **many(COUNT),
                    "description": f"BYTES: [N] or [N, 1], UINT8: [N, H, W, 3], with N up to {max_images}.",
                },
                "datatype": {
                    "type": "string",
                    "enum": [Datatype.BYTES.value, Datatype.UINT8.value],
                    "description": "BYTES: an encoded image an element; UINT8: upright RGB pixels.",
                },
                "parameters": _object({"binary_data_size": length}, optional=("binary_data_size",)),
                "data": ref("tensor_data"),
            },
            optional=("parameters", "data"),
        ),
        "request_output": _object(
            {
                "name": TEXT,
                "parameters": _object(
                    {
                        "binary_data": {**TRUTH, "description": "As raw bytes behind the JSON."},
                        "classification": {**COUNT, "description": "So many `score:index:label` in place of scores."},
                    },
                    optional=("binary_data", "classification"),
                ),
            },
            optional=("parameters",),
        ),
        "inference_response": _object(
            {"model_name": TEXT, "model_version": TEXT, "id": TEXT, "outputs": many(ref("response_output"))},
            optional=("id",),
        ),
        "response_output": _object(
            {
                "name": TEXT,
                "datatype": ref("datatype"),
                "shape": many(COUNT),
                "parameters": _object({"binary_data_size": length}),
                "data": ref("tensor_data"),
            },
            optional=("parameters", "data"),
        ),
        "model_configuration": {"type": "object", "description": "Triton's, as far as it means something here."},
        "model_statistics": _object({"model_stats": many({"type": "object"})}),
        "repository_index": many(
            _object({"name": TEXT, "version": TEXT, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": TEXT})
        ),
    }


def _object(properties: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _parameters() -> Schema:
    """What a request asks of each image."""
    known: dict[str, Schema] = {
        name: {**PARAMETERS[name].schema, "description": PARAMETERS[name].description}
        for name in sorted({name for names in OF_TASK.values() for name in names})
    }
    known[TIMEOUT] = {**COUNT, "description": "Microseconds; shortens the service's own deadline. 0 names none."}
    known |= {name: {"description": "Taken, without effect."} for name in sorted(WITHOUT_EFFECT)}
    known["binary_data_output"] = {**TRUTH, "default": False, "description": "All outputs as raw bytes."}
    return {"type": "object", "properties": known, "additionalProperties": False}


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
