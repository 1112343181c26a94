"""The routes' part of the OpenAPI document."""

from __future__ import annotations

from typing import Any

import msgspec

from service.errors import (
    BadParameter,
    BadRequest,
    DeadlineExceeded,
    ModelNotFound,
    Overloaded,
    Unavailable,
    UnsupportedEncoding,
)
from service.frontend.api.compat.labelstudio.http import PREFIX
from service.frontend.api.compat.labelstudio.regions import LabelStudioRegion
from service.frontend.api.compat.labelstudio.schemas import (
    LabelStudioEvent,
    LabelStudioFailure,
    LabelStudioHealth,
    LabelStudioModelVersion,
    LabelStudioPrediction,
    LabelStudioPredictions,
    LabelStudioProject,
    LabelStudioTasks,
    LabelStudioVersions,
)
from service.frontend.http.openapi import REF, RESPONSE_HEADERS, error_answers, header_parameters
from service.settings import Settings

TAG = "label studio"
READING_ERRORS = (BadRequest, UnsupportedEncoding, DeadlineExceeded, Overloaded, Unavailable)
CONFIG = (
    '<View><Image name="img" value="$image"/><RectangleLabels name="box" toName="img">'
    '<Label value="cat"/><Label value="dog"/></RectangleLabels></View>'
)
PREDICT_EXAMPLE = {
    "tasks": [{"id": 1, "data": {"image": "https://example.org/cat.jpg"}}],
    "project": "1.1796041601",
    "label_config": CONFIG,
}
SETUP_EXAMPLE = {
    "project": "1.1796041601",
    "schema": CONFIG,
    "hostname": "https://labels.example.org",
    "access_token": "…",
}


def label_studio_document(settings: Settings) -> dict[str, Any]:
    """`paths`, and the `components` that they refer to."""
    predict = _operation(
        "predict", "Results of the controls of a label config", LabelStudioPredictions, LabelStudioTasks
    )
    predict["requestBody"]["content"]["application/json"]["example"] = PREDICT_EXAMPLE
    predict["parameters"] = header_parameters(settings)
    predict["responses"]["200"]["headers"] = RESPONSE_HEADERS
    setup = _operation("setup", "Check a label config", LabelStudioModelVersion, LabelStudioProject)
    setup["requestBody"]["content"]["application/json"]["example"] = SETUP_EXAMPLE
    paths = {
        "/predict": {"post": predict},
        "/setup": {"post": setup},
        "/webhook": {"post": _operation("webhook", "Ignore an event", LabelStudioHealth, LabelStudioEvent)},
        "/health": {"get": _operation("health", "Readiness", LabelStudioHealth)},
        "/versions": {"get": _operation("versions", "Versions of the models", LabelStudioVersions)},
    }
    return {
        "paths": {PREFIX + path: operations for path, operations in paths.items()},
        "components": {"schemas": _schemas()},
    }


def _schemas() -> dict[str, Any]:
    """By name. The places of raw JSON have the schemas of what stands there."""
    structs = (
        LabelStudioEvent,
        LabelStudioFailure,
        LabelStudioHealth,
        LabelStudioModelVersion,
        LabelStudioPrediction,
        LabelStudioPredictions,
        LabelStudioProject,
        LabelStudioRegion,
        LabelStudioTasks,
        LabelStudioVersions,
    )
    _, schemas = msgspec.json.schema_components(structs, ref_template=REF)
    schemas["LabelStudioTask"]["properties"]["data"] = {
        "type": "object",
        "additionalProperties": True,
        "description": "The picture: base64, a `data:` URL, a URL, or a path in Label Studio.",
    }
    for kind in (LabelStudioTasks, LabelStudioProject):
        schemas[kind.__name__]["properties"]["project"] = {"type": "string"}
    schemas["LabelStudioPrediction"]["properties"]["result"]["items"] = _ref(LabelStudioRegion)
    places = {"anyOf": [_ref(LabelStudioPrediction), _ref(LabelStudioFailure)]}
    schemas["LabelStudioPredictions"]["properties"]["results"]["items"] = places
    return schemas


def _operation(
    name: str, summary: str, answer: type[msgspec.Struct], body: type[msgspec.Struct] | None = None
) -> dict[str, Any]:
    errors = READING_ERRORS if body else (Unavailable,)
    if body in (LabelStudioTasks, LabelStudioProject):
        errors = (*errors, ModelNotFound)
    elif body is LabelStudioEvent:
        errors = (*errors, BadParameter)
    content = {"application/json": {"schema": _ref(answer)}}
    operation: dict[str, Any] = {
        "operationId": f"label_studio_{name}",
        "tags": [TAG],
        "summary": summary,
        "responses": {"200": {"description": "The answer", "content": content}, **error_answers(errors)},
    }
    if body:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(body)}},
        }
    return operation


def _ref(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": REF.format(name=kind.__name__)}
