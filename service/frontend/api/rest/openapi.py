"""The OpenAPI document of the predictions, made from the tables and structs that the code itself uses.

FastAPI makes the rest. It cannot know bodies and answers, because these are read and encoded by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from model.types import Task
from service.errors import NotAcceptable
from service.frontend.api.rest.query import Medium
from service.frontend.api.rest.schemas import (
    RESULT_OF_TASK,
    DetectionItem,
    Embedding,
    ImageError,
    MaskItem,
    SegmentItem,
    VectorItem,
)
from service.frontend.core.endpoint_parameters import ANALYZE_PARAMETERS, EMBED_PARAMETERS
from service.frontend.core.parameters import ANALYZE, EMBED, PARAMETERS, Parameter
from service.frontend.http.openapi import (
    BASE64,
    BINARY,
    PREDICTION_ERRORS,
    REF,
    RESPONSE_HEADERS,
    error_answers,
    header_parameters,
    query_parameters,
)
from service.settings import Settings

SUMMARY: dict[str, str] = {
    Task.CLASSIFY: "Classify images: labels with scores",
    Task.DETECT: "Detect objects: boxes with labels and scores, and masks if the model has them",
    Task.SEGMENT: "Segment images: the class of each pixel",
    EMBED: "Embed images: a classifier's pooled features, as vectors to search, cluster or train with",
    ANALYZE: "Analyze images: the answers of several tasks or models from one upload",
}

RESULTS: dict[str, type[msgspec.Struct]] = {
    **{task.value: kind for task, kind in RESULT_OF_TASK.items()},
    EMBED: Embedding,
}
"""What the results of each endpoint are."""

DOCUMENT_EXAMPLES = {
    "URLs": {
        "summary": "Pictures that the service fetches, if its operator allows their host",
        "value": {"images": ["https://pictures.example.org/cat.jpg", "https://pictures.example.org/dog.jpg"]},
    }
}

EXAMPLES: dict[str, dict[str, Any]] = {
    EMBED: {
        "model": "convmlp_pets_breed",
        "task": EMBED,
        "results": [{"image": {"width": 500, "height": 375}, "embedding": [0.0125, -0.75, 0.5]}],
    },
    ANALYZE: {
        "task": ANALYZE,
        "models": {"classify": "convmlp_pets_breed", "segment": "convmlp_pets_outline"},
        "results": [
            {
                "image": {"width": 500, "height": 375},
                "answers": {
                    "classify": {
                        "image": {"width": 500, "height": 375},
                        "labels": [{"label": "Persian", "index": 23, "score": 0.92}],
                    },
                    "segment": {
                        "image": {"width": 500, "height": 375},
                        "segments": [{"label": "cat", "index": 1, "area": 118861, "confidence": 0.97}],
                    },
                },
            }
        ],
    },
}
"""Answers, shortened."""

OR_DRAWN = "JSON, or the image with the result drawn on it if `Accept` prefers that (one image only)"
PICTURES = {medium.value: {"schema": BINARY} for medium in Medium if medium is not Medium.JSON}

FORM, DOCUMENT, MASK, VECTOR = "ImageForm", "ImageDocument", "Mask", "Vector"
"""Names of schemas: of a body that is a form or JSON, and of a mask and a vector in whichever format was requested."""


def prediction_operation(task: Task, settings: Settings) -> dict[str, Any]:
    """The part of the operation `POST /<task>` that FastAPI does not know."""
    table = {name: parameter for name, parameter in PARAMETERS.items() if task in parameter.tasks}
    return _operation(task, table, _answer(task, OR_DRAWN, PICTURES), settings)


def embedding_operation(settings: Settings) -> dict[str, Any]:
    """The same of `POST /embed`."""
    return _operation(EMBED, EMBED_PARAMETERS, _answer(EMBED, "JSON", {}), settings)


def analysis_operation(settings: Settings) -> dict[str, Any]:
    """The same of `POST /analyze`."""
    return _operation(ANALYZE, ANALYZE_PARAMETERS, _answer(ANALYZE, OR_DRAWN, PICTURES), settings)


def _operation(name: str, table: Mapping[str, Parameter], answer: dict[str, Any], settings: Settings) -> dict[str, Any]:
    return {
        "operationId": name,
        "parameters": [*query_parameters(table), *header_parameters(settings)],
        "requestBody": _body(settings),
        "responses": {"200": answer, **error_answers((*PREDICTION_ERRORS, NotAcceptable))},
    }


def _body(settings: Settings) -> dict[str, Any]:
    return {
        "required": True,
        "description": (
            "The bytes of an image, a form with one or more parts named `image` or `file`, JSON with base64, or the "
            "base64 or URL of one image. Images are JPEG, PNG, WebP, BMP, GIF, AVIF, HEIC or TIFF. All forms but "
            "multipart are detected from the bytes, not from the Content-Type. "
            f"At most {settings.max_image_bytes:,} bytes and {settings.max_image_mpx} megapixels an image, "
            f"{settings.max_request_bytes:,} bytes in all."
        ),
        "content": {
            "application/octet-stream": {"schema": BINARY},
            "multipart/form-data": {"schema": _ref(FORM)},
            "application/json": {"schema": _ref(DOCUMENT), "examples": DOCUMENT_EXAMPLES},
        },
    }


def _answer(name: str, description: str, pictures: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": _ref(_answer_name(name))}
    if name in EXAMPLES:
        content["example"] = EXAMPLES[name]
    return {
        "description": description,
        "headers": RESPONSE_HEADERS,
        "content": {Medium.JSON.value: content, **pictures},
    }


def prediction_components(settings: Settings) -> dict[str, Any]:
    """The schemas that `prediction_operation` refers to, by name."""
    structs = [ImageError, *RESULTS.values()]
    (mask, vector, *_), components = msgspec.json.schema_components([MaskItem, VectorItem, *structs], ref_template=REF)
    # With names of their own, unions become types of their own in generated clients, which users can replace.
    components[MASK], components[VECTOR] = mask, vector
    components[Embedding.__name__]["properties"]["embedding"] = _ref(VECTOR)
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
        "description": "Images as base64 or as URLs: either one or several.",
        "properties": {"image": BASE64, "images": {**several, "items": BASE64}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    (error,) = components.pop(ImageError.__name__)["properties"].values()
    for name, result in RESULTS.items():
        # One schema, with an error in place of the rest: many generated clients take the first schema of a union.
        schema = components[result.__name__]
        members = schema.pop("required")
        schema["dependentRequired"] = {one: [other for other in members if other != one] for one in members}
        schema["properties"]["error"] = error
        schema["description"] += " Of several images, one that failed has `error` instead."
        components[_answer_name(name)] = {
            "title": _answer_name(name),
            "type": "object",
            "properties": {
                "model": {"type": "string"},
                "task": {"type": "string", "const": str(name)},
                "results": {
                    "type": "array",
                    "items": _ref(result.__name__),
                    "description": "In upload order.",
                },
            },
            "required": ["model", "task", "results"],
        }
    components |= _analysis_components(error)
    return components


def _analysis_components(error: dict[str, Any]) -> dict[str, Any]:
    """The schemas of the answer of `POST /analyze`."""
    results = {task.value: _ref(result.__name__) for task, result in RESULT_OF_TASK.items()}
    answers = {
        "type": "object",
        "description": "By task, or by model where `models` were named; one that failed has `error` instead.",
        "properties": results,
        "additionalProperties": {"anyOf": list(results.values())},
    }
    return {
        "Analysis": {
            "title": "Analysis",
            "type": "object",
            "description": "The answers for an image. Of several images, one that failed has `error` instead.",
            "properties": {"image": _ref("ImageSize"), "answers": answers, "error": error},
            "dependentRequired": {"image": ["answers"], "answers": ["image"]},
        },
        _answer_name(ANALYZE): {
            "title": _answer_name(ANALYZE),
            "type": "object",
            "properties": {
                "task": {"type": "string", "const": ANALYZE},
                "models": {
                    "type": "object",
                    "additionalProperties": {"type": "string"},
                    "description": "The model of each name in `answers`.",
                },
                "results": {"type": "array", "items": _ref("Analysis"), "description": "In upload order."},
            },
            "required": ["task", "models", "results"],
        },
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": REF.format(name=name)}


def _answer_name(name: str) -> str:
    return f"{name.capitalize()}Answer"
