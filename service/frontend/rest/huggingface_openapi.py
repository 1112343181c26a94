"""The OpenAPI text of the routes for Hugging Face's clients, made from the structs that the code itself uses."""

from __future__ import annotations

from typing import Any

import msgspec

from model.types import Task
from service.frontend.parameters import PARAMETERS
from service.frontend.rest.huggingface_schemas import ELEMENT_OF_TASK, PARAMETERS_OF_TASK
from service.frontend.rest.openapi_parts import BASE64, BINARY, REF, RESPONSE_HEADERS, error_answers, header_parameters
from service.settings import Settings

SUMMARY = {
    Task.CLASSIFY: "For `InferenceClient.image_classification`",
    Task.DETECT: "For `InferenceClient.object_detection`",
    Task.SEGMENT: "For `InferenceClient.image_segmentation`",
}


def operation(task: Task, settings: Settings) -> dict[str, Any]:
    """What FastAPI merges into the operation of `POST /compat/huggingface/<task>`."""
    name = PARAMETERS["model"]
    document = {
        "type": "object",
        "properties": {
            "inputs": BASE64,
            "parameters": {"$ref": REF.format(name=PARAMETERS_OF_TASK[task].__name__)},
            "options": {"description": "Taken and not looked at."},
        },
        "required": ["inputs"],
    }
    elements = {"type": "array", "items": {"$ref": REF.format(name=ELEMENT_OF_TASK[task].__name__)}}
    return {
        "operationId": f"huggingface_{task.value}",
        "parameters": [
            {"name": "model", "in": "query", "description": name.description, "schema": dict(name.schema)},
            *header_parameters(settings),
        ],
        "requestBody": {
            "required": True,
            "description": "The bytes of one image, or JSON with base64: told by the bytes, not by the Content-Type.",
            "content": {
                "image/*": {"schema": BINARY},
                "application/octet-stream": {"schema": BINARY},
                "application/json": {"schema": document},
            },
        },
        "responses": {
            "200": {
                "description": "A bare list",
                "headers": RESPONSE_HEADERS,
                "content": {"application/json": {"schema": elements}},
            },
            **error_answers(),
        },
    }


def components() -> dict[str, Any]:
    """The schemas that `operation` refers to, by name."""
    structs = [*PARAMETERS_OF_TASK.values(), *ELEMENT_OF_TASK.values()]
    _, schemas = msgspec.json.schema_components(structs, ref_template=REF)
    return schemas
