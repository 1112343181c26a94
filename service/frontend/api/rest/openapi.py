"""The OpenAPI document of the predictions, made from the tables and structs that the code itself uses.

FastAPI makes the rest. It cannot know bodies and answers, because these are read and encoded by hand.
"""

from __future__ import annotations

from typing import Any

import msgspec

from model.types import Task
from service.frontend.api.rest.query import Medium
from service.frontend.api.rest.schemas import RESULT_OF_TASK, DetectionItem, ImageError, MaskItem, SegmentItem
from service.frontend.core.parameters import PARAMETERS
from service.frontend.http.openapi import BASE64, BINARY, REF, RESPONSE_HEADERS, error_answers, header_parameters
from service.settings import Settings

SUMMARY = {
    Task.CLASSIFY: "Classify images: labels with scores",
    Task.DETECT: "Detect objects: boxes with labels and scores, and masks if the model has them",
    Task.SEGMENT: "Segment images: the class of each pixel",
}

FORM, DOCUMENT, MASK = "ImageForm", "ImageDocument", "Mask"
"""Names of schemas: of a body that is a form or JSON, and of a mask in whichever format was requested."""


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
    return {
        "required": True,
        "description": (
            "The bytes of an image, a form with one or more parts named `image` or `file`, or JSON with base64. "
            "JPEG, PNG, WebP, BMP, GIF, AVIF, HEIC or TIFF, detected from the bytes, not from the Content-Type. "
            f"At most {settings.max_image_bytes:,} bytes and {settings.max_image_mpx} megapixels an image, "
            f"{settings.max_request_bytes:,} bytes in all."
        ),
        "content": {
            "application/octet-stream": {"schema": BINARY},
            "multipart/form-data": {"schema": _ref(FORM)},
            "application/json": {"schema": _ref(DOCUMENT)},
        },
    }


def _answer(task: Task) -> dict[str, Any]:
    pictures = {medium.value: {"schema": BINARY} for medium in Medium if medium is not Medium.JSON}
    return {
        "description": "JSON, or the image with the result drawn on it if `Accept` prefers that (one image only)",
        "headers": RESPONSE_HEADERS,
        "content": {
            Medium.JSON.value: {"schema": _ref(_answer_name(task))},
            **pictures,
        },
    }


def prediction_components(settings: Settings) -> dict[str, Any]:
    """The schemas that `prediction_operation` refers to, by name."""
    structs = [ImageError, *RESULT_OF_TASK.values()]
    (mask, *_), components = msgspec.json.schema_components([MaskItem, *structs], ref_template=REF)
    # With names of their own, unions become types of their own in generated clients, which users can replace.
    components[MASK] = mask
    for item in (DetectionItem, SegmentItem):
        components[item.__name__]["properties"]["mask"] = _ref(MASK)
    several = {"type": "array", "minItems": 1, "maxItems": settings.max_images}
    components[FORM] = {
        "type": "object",
        "description": "Images as parts of a form.",
        "properties": {name: {**several, "items": BINARY} for name in ("image", "file")},
        "minProperties": 1,
    }
    components[DOCUMENT] = {
        "type": "object",
        "description": "Images as base64: either one or several.",
        "properties": {"image": BASE64, "images": {**several, "items": BASE64}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    (error,) = components.pop(ImageError.__name__)["properties"].values()
    for task, result in RESULT_OF_TASK.items():
        # One schema, with an error in place of the rest: many generated clients take the first schema of a union.
        schema = components[result.__name__]
        names = schema.pop("required")
        schema["dependentRequired"] = {name: [other for other in names if other != name] for name in names}
        schema["properties"]["error"] = error
        schema["description"] += " Of several images, one that failed has `error` instead."
        components[_answer_name(task)] = {
            "title": _answer_name(task),
            "type": "object",
            "properties": {
                "model": {"type": "string"},
                "task": {"type": "string", "const": task.value},
                "results": {
                    "type": "array",
                    "items": _ref(result.__name__),
                    "description": "In upload order.",
                },
            },
            "required": ["model", "task", "results"],
        }
    return components


def _ref(name: str) -> dict[str, str]:
    return {"$ref": REF.format(name=name)}


def _answer_name(task: Task) -> str:
    return f"{task.value.capitalize()}Answer"
