"""The JSON of the protocol over HTTP, as schemas of OpenAPI. Those that KServe's own document has keep its names."""

from __future__ import annotations

from typing import Any

from service.frontend.oip.http_request import HEADER_LENGTH
from service.frontend.oip.options import OF_TASK, TIMEOUT, WITHOUT_EFFECT
from service.frontend.oip.pictures import INPUT
from service.frontend.oip.tensors import Datatype
from service.frontend.parameters import PARAMETERS
from service.frontend.rest.openapi_parts import REF

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
