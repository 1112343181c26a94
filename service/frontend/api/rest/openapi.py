"""The OpenAPI document of the predictions, made from the tables and structs that the code itself uses.

FastAPI makes the rest. It cannot know bodies and answers, because these are read and encoded by hand.
"""

from __future__ import annotations

from typing import Any

import msgspec

from model.types import Task
from service.frontend.api.rest.query import Medium
from service.frontend.api.rest.schemas import RESULT_OF_TASK, ImageError
from service.frontend.core.parameters import PARAMETERS
from service.frontend.http.openapi import BASE64, BINARY, REF, RESPONSE_HEADERS, error_answers, header_parameters
from service.settings import Settings

SUMMARY = {
    Task.CLASSIFY: "Classify images: labels with scores",
    Task.DETECT: "Detect objects: boxes with labels and scores, and masks if the model has them",
    Task.SEGMENT: "Segment images: the class of each pixel",
}


def prediction_operation(task: Task, settings: Settings) -> dict[str, Any]:
    """The part of the operation `POST /<task>` that FastAPI does not know."""
    return {
        "operationId": task.value,
        "parameters": [*_query_parameters(task), *header_parameters(settings)],
        "requestBody": _body(settings),
        "responses": {"200": _answer(task), **error_answers()},
    }


def _query_parameters(task: Task) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "description": parameter.description, "schema": dict(parameter.schema)}
        for name, parameter in PARAMETERS.items()
        if task in parameter.tasks
    ]


def _body(settings: Settings) -> dict[str, Any]:
    one_or_several = {"type": "array", "items": BINARY, "minItems": 1, "maxItems": settings.max_images}
    form = {"type": "object", "properties": {"image": one_or_several, "file": one_or_several}}
    document = {
        "oneOf": [
            {"type": "object", "properties": {"image": BASE64}, "required": ["image"]},
            {
                "type": "object",
                "properties": {
                    "images": {"type": "array", "items": BASE64, "minItems": 1, "maxItems": settings.max_images}
                },
                "required": ["images"],
            },
        ]
    }
    return {
        "required": True,
        "description": (
            "The bytes of an image, a form with one or more parts named `image` or `file`, or JSON with base64. "
            "JPEG, PNG, WebP, BMP or GIF, detected from the bytes, not from the Content-Type. At most "
            f"{settings.max_image_bytes:,} bytes and {settings.max_image_mpx} megapixels an image, "
            f"{settings.max_request_bytes:,} bytes in all."
        ),
        "content": {
            "image/*": {"schema": BINARY},
            "application/octet-stream": {"schema": BINARY},
            "multipart/form-data": {"schema": form},
            "application/json": {"schema": document},
        },
    }


def _answer(task: Task) -> dict[str, Any]:
    pictures = {medium.value: {"schema": BINARY} for medium in Medium if medium is not Medium.JSON}
    return {
        "description": "JSON, or the image with the result drawn on it if `Accept` prefers that (one image only)",
        "headers": RESPONSE_HEADERS,
        "content": {
            Medium.JSON.value: {"schema": {"$ref": REF.format(name=_answer_name(task))}},
            **pictures,
        },
    }


def prediction_components() -> dict[str, Any]:
    """The schemas that `prediction_operation` refers to, by name."""
    structs = [ImageError, *RESULT_OF_TASK.values()]
    _, components = msgspec.json.schema_components(structs, ref_template=REF)
    for task, result in RESULT_OF_TASK.items():
        items = [{"$ref": REF.format(name=name)} for name in (result.__name__, "ImageError")]
        components[_answer_name(task)] = {
            "title": _answer_name(task),
            "type": "object",
            "properties": {
                "model": {"type": "string"},
                "task": {"const": task.value},
                "results": {
                    "type": "array",
                    "items": {"anyOf": items},
                    "description": "In upload order.",
                },
            },
            "required": ["model", "task", "results"],
        }
    return components


def _answer_name(task: Task) -> str:
    return f"{task.value.capitalize()}Answer"
