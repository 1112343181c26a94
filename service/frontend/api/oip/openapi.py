"""The protocol's part of the OpenAPI document: the supported routes of `http.py`, and their JSON.

Schemas that KServe's own document has keep its names.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from model.errors import ConvMLPError
from model.model_name import VERSION_PATTERN
from service.errors import BadRequest, DeadlineExceeded, Forbidden, ModelInvalid, ModelNotFound, Unavailable
from service.frontend.api.oip.http_codec import HEADER_LENGTH
from service.frontend.api.oip.options import OF_TASK, TIMEOUT, WITHOUT_EFFECT
from service.frontend.api.oip.protocol import INPUT, Datatype
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
Operation = dict[str, Any]

TAG = "open inference protocol"
MODEL = "/v2/models/{name}"
OF_VERSION = f"{MODEL}/versions/{{version}}"
JSON = "application/json"
RAW = "application/octet-stream"
OTHER_ERROR = {"default": problem_content("An RFC 9457 problem; clients read its member `error`", JSON)}
READING_ERRORS = (ModelNotFound, Unavailable)
CHANGING_ERRORS = (*READING_ERRORS, BadRequest, DeadlineExceeded, Forbidden, ModelInvalid)

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SHAPE: Schema = {"type": "array", "items": WHOLE, "description": "-1 where it varies."}


def open_inference_document(settings: Settings) -> dict[str, Any]:
    """`paths`, and the `components` they refer to."""
    live = {"type": "object", "properties": {"live": BOOLEAN}, "required": ["live"]}
    ready = {"type": "object", "properties": {"ready": BOOLEAN, "name": TEXT}, "required": ["ready"]}
    gets = {
        "/v2": ("server_metadata", "Server metadata", ref("metadata_server_response")),
        "/v2/health/live": ("live", "Liveness", live),
        "/v2/health/ready": ("ready", "Readiness; 503 with the reason if not ready", ready),
        "/v2/models/stats": ("statistics", "Statistics of all models", ref("model_statistics")),
        MODEL: ("model_metadata", "Model metadata: inputs and outputs", ref("metadata_model_response")),
        f"{MODEL}/ready": ("model_ready", "Model readiness; 503 with the reason if not ready", ready),
        f"{MODEL}/config": ("model_config", "Model configuration", ref("model_configuration")),
        f"{MODEL}/stats": ("model_statistics", "Statistics of a model", ref("model_statistics")),
    }
    paths: dict[str, dict[str, Operation]] = {}
    for path, (name, summary, schema) in gets.items():
        for variant, suffix in _with_version(path):
            answer = {"description": "The response", "content": {JSON: {"schema": schema}}}
            paths[variant] = {"get": _operation(variant, name + suffix, summary, answer)}
    for variant, suffix in _with_version(f"{MODEL}/infer"):
        paths[variant] = {"post": _infer(variant, f"infer{suffix}", settings)}
    paths |= _repository()
    return {"paths": paths, "components": {"schemas": schemas(settings.max_images)}}


def schemas(max_images: int) -> dict[str, Schema]:
    """By name. `max_images`: the limit of one request."""
    length = {
        **COUNT,
        "description": f"Bytes after the JSON, in place of `data`; see `{HEADER_LENGTH}`.",
    }
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
            "description": "Numbers or texts as a flat list, or nested like the shape. Elements of BYTES are text; "
            "encoded images are base64.",
            "type": "array",
            "items": {},  # generators of clients have no recursive lists
        },
        "inference_request": _object(
            {
                "id": TEXT,
                "parameters": _parameters(),
                "inputs": {**many(ref("request_input")), "minItems": 1, "maxItems": 1},
                "outputs": {**many(ref("request_output")), "description": "Default: the model's default outputs."},
            },
            optional=("id", "parameters", "outputs"),
        ),
        "request_input": _object(
            {
                "name": {**TEXT, "const": INPUT},
                "shape": {
                    **many(COUNT),
                    "description": f"BYTES: [N] or [N, 1], UINT8: [N, H, W, 3], with N up to {max_images}.",
                },
                "datatype": {
                    "type": "string",
                    "enum": [Datatype.BYTES.value, Datatype.UINT8.value],
                    "description": "BYTES: encoded images; UINT8: upright RGB pixels.",
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
                        "binary_data": {**BOOLEAN, "description": "Send as raw bytes after the JSON."},
                        "classification": {
                            **COUNT,
                            "description": "So many `score:index:label`, not scores.",
                        },
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
        "model_configuration": {"type": "object", "description": "The fields of Triton's configuration that apply."},
        "model_statistics": _object({"model_stats": many({"type": "object"})}),
        "repository_index": many(
            _object(
                {
                    "name": TEXT,
                    "version": TEXT,
                    "state": {"type": "string", "enum": ["READY", "UNAVAILABLE"]},
                    "reason": TEXT,
                }
            )
        ),
    }


def _object(properties: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _parameters() -> Schema:
    """The parameters of a request."""
    known: dict[str, Schema] = {
        name: {**PARAMETERS[name].schema, "description": PARAMETERS[name].description}
        for name in sorted({name for names in OF_TASK.values() for name in names})
    }
    known[TIMEOUT] = {**COUNT, "description": "Microseconds; can only shorten the service's timeout. 0: no timeout."}
    known |= {name: {"description": "Accepted and ignored."} for name in sorted(WITHOUT_EFFECT)}
    known["binary_data_output"] = {**BOOLEAN, "default": False, "description": "Send all outputs as raw bytes."}
    return {"type": "object", "properties": known, "additionalProperties": False}


def _with_version(path: str) -> list[tuple[str, str]]:
    """The variants of a path, with and without a model's version, each with the suffix of its operation's name."""
    if not path.startswith(MODEL):
        return [(path, "")]
    return [(path, ""), (path.replace(MODEL, OF_VERSION), "_of_version")]


def _operation(
    path: str,
    name: str,
    summary: str,
    answer: dict[str, Any],
    errors: Collection[type[ConvMLPError]] = READING_ERRORS,
) -> Operation:
    parts = {"name": TEXT, "version": {"type": "string", "pattern": f"^{VERSION_PATTERN}$"}}
    return {
        "tags": [TAG],
        "operationId": f"open_inference_{name}",
        "summary": summary,
        "parameters": [
            {"name": part, "in": "path", "required": True, "schema": schema}
            for part, schema in parts.items()
            if f"{{{part}}}" in path
        ],
        "responses": {"200": answer, **error_answers(errors, JSON), **OTHER_ERROR},
    }


def _infer(path: str, name: str, settings: Settings) -> Operation:
    length = {
        "name": HEADER_LENGTH,
        "in": "header",
        "description": "Bytes of JSON at the start of the body; raw tensors follow. Default: all of it. 0: the body "
        "is one encoded image.",
        "schema": COUNT,
    }
    operation = _operation(path, name, "Inference on the images of one tensor", {})
    operation["parameters"] += [length, *header_parameters(settings)]
    operation["requestBody"] = {
        "required": True,
        "description": f"At most {settings.max_request_bytes:,} bytes.",
        "content": {JSON: {"schema": ref("inference_request")}, RAW: {"schema": BINARY}},
    }
    json_bytes = {"description": "Bytes of JSON, if raw tensors follow it.", "schema": COUNT}
    operation["responses"] = {
        "200": {
            "description": "JSON, followed by the outputs requested as raw bytes",
            "headers": {**RESPONSE_HEADERS, HEADER_LENGTH: json_bytes},
            "content": {JSON: {"schema": ref("inference_response")}, RAW: {"schema": BINARY}},
        },
        **error_answers(media_type=JSON),
    }
    return operation


def _repository() -> dict[str, dict[str, Operation]]:
    """The store's models, and loading and unloading them where the operator allows it."""
    only_ready = {"type": "object", "properties": {"ready": {**BOOLEAN, "default": False}}}
    listed = {"description": "The response", "content": {JSON: {"schema": ref("repository_index")}}}
    errors = (*READING_ERRORS, BadRequest, DeadlineExceeded)
    index = _operation("", "repository_index", "List the models of the store", listed, errors)
    index["requestBody"] = {"content": {JSON: {"schema": only_ready}}}
    paths = {"/v2/repository/index": {"post": index}}
    for verb, summary in (("load", "Load a model of the store"), ("unload", "Unload a model")):
        path = f"/v2/repository/models/{{name}}/{verb}"
        operation = _operation(path, verb, summary, {"description": "Done. The body is empty."}, CHANGING_ERRORS)
        operation["requestBody"] = {"content": {JSON: {"schema": {"type": "object"}}}}
        paths[path] = {"post": operation}
    return paths


def ref(name: str) -> Schema:
    return {"$ref": REF.format(name=name)}


def many(items: Schema) -> Schema:
    return {"type": "array", "items": items}
