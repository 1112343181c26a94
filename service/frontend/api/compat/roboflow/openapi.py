"""The API's part of the OpenAPI document, made from the table and the structs that the code itself uses."""

from __future__ import annotations

from typing import Any

import msgspec

from model.model_name import VERSION_PATTERN
from service.frontend.api.compat.roboflow.answers import ANSWERS
from service.frontend.api.compat.roboflow.http import JPEG, JSON, PATH
from service.frontend.api.compat.roboflow.parameters import QUERY
from service.frontend.core.parameters import PARAMETERS
from service.frontend.http.openapi import (
    BINARY,
    REF,
    RESPONSE_HEADERS,
    error_answers,
    header_parameters,
    query_parameters,
)
from service.settings import Settings

ANSWER, ERROR, FORM = "RoboflowAnswer", "RoboflowError", "RoboflowForm"
"""Names of schemas."""

EXAMPLE = {
    "inference_id": "8d5e0cf2a31b4f6c9a7e1f0b2c3d4e5f",
    "time": 0.061,
    "image": {"width": 500, "height": 375},
    "predictions": [
        {
            "x": 198.25,
            "y": 164.5,
            "width": 208.5,
            "height": 248.0,
            "confidence": 0.93,
            "class": "cat",
            "class_id": 0,
            "detection_id": "1b671a64-40d5-491e-99b0-da01ff1f3341",
        }
    ],
}


def roboflow_document(settings: Settings) -> dict[str, Any]:
    """`paths`, and the `components` they refer to."""
    _, schemas = msgspec.json.schema_components(ANSWERS, ref_template=REF)
    schemas[ANSWER] = {"anyOf": [{"$ref": REF.format(name=answer.__name__)} for answer in ANSWERS]}
    text = {"type": "string"}
    schemas[ERROR] = {
        "type": "object",
        "description": "An error, with the members of a problem besides.",
        "properties": {"message": text, "error": text},
        "required": ["message", "error"],
    }
    schemas[FORM] = {"type": "object", "properties": {"file": BINARY}, "required": ["file"]}
    in_path = [
        {
            "name": "project",
            "in": "path",
            "required": True,
            "description": "A model's name without its version, see `/models`.",
            "schema": dict(PARAMETERS["model"].schema),
        },
        {
            "name": "version",
            "in": "path",
            "required": True,
            "description": "The model's version: 1 where its name has none.",
            "schema": {"type": "string", "pattern": VERSION_PATTERN},
        },
    ]
    answer = {"schema": {"$ref": REF.format(name=ANSWER)}, "example": EXAMPLE}
    operation = {
        "tags": ["roboflow"],
        "operationId": "roboflow_infer",
        "summary": "For `InferenceHTTPClient.infer` with API v0",
        "parameters": [*in_path, *query_parameters(QUERY), *header_parameters(settings)],
        "requestBody": {
            "description": "The bytes of an image, its base64, or a form; detected from the bytes.",
            "content": {
                "application/octet-stream": {"schema": BINARY},
                "application/x-www-form-urlencoded": {
                    "schema": {"type": "string", "contentEncoding": "base64", "description": "Base64, not a form."}
                },
                "multipart/form-data": {"schema": {"$ref": REF.format(name=FORM)}},
            },
        },
        "responses": {
            "200": {
                "description": "The answer in the form of the model's task",
                "headers": RESPONSE_HEADERS,
                "content": {JSON: answer, JPEG: {"schema": BINARY}},
            },
            **error_answers(media_type=JSON, schema=ERROR),
        },
    }
    return {"paths": {PATH: {"post": operation}}, "components": {"schemas": schemas}}
