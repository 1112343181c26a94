"""The parameters of the endpoints that are no task: embedding, and several models for one image."""

from __future__ import annotations

from model.types import Task
from service.frontend.core.parameters import (
    MAX_MODELS,
    MODELS_EXPECTED,
    PARAMETERS,
    TASKS_EXPECTED,
    Parameter,
    VectorEncoding,
    boolean,
    distinct,
    one_of,
    split_names,
)

EMBED_PARAMETERS: dict[str, Parameter] = {
    "model": Parameter(
        "Classifier to use. Default: the default model for `classify` (see /models).",
        PARAMETERS["model"].schema,
        str,
    ),
    "normalize": Parameter(
        "Scale the vector to a length of 1, so that a dot product of two is their cosine similarity.",
        {"type": "boolean", "default": False},
        boolean,
    ),
    "encoding": Parameter(
        "Encoding of the vector: an array of numbers, or base64 of its float32 numbers, little-endian, which is a "
        "quarter as long.",
        {"type": "string", "enum": list(VectorEncoding), "default": VectorEncoding.JSON},
        one_of(VectorEncoding),
    ),
}
"""Those of embedding."""


def _tasks(text: str) -> tuple[Task, ...]:
    names = distinct(split_names(text), len(Task))
    if names is None or not set(names) <= set(Task):
        raise ValueError(f"{TASKS_EXPECTED}, separated by commas")
    return tuple(map(Task, names))


def _models(text: str) -> tuple[str, ...]:
    names = distinct(split_names(text), MAX_MODELS)
    if names is None:
        raise ValueError(f"{MODELS_EXPECTED}, separated by commas")
    return names


ANALYZE_PARAMETERS: dict[str, Parameter] = {
    "tasks": Parameter(
        "Tasks, separated by commas; each is done by its default model. Default: all that a model is served for.",
        # Without a `default`: generated clients send it, and `models` excludes it.
        {"type": "string", "minLength": 1},
        _tasks,
    ),
    "models": Parameter(
        "Models instead of tasks, separated by commas (see /models); several may be of one task.",
        {"type": "string"},
        _models,
    ),
    **{name: parameter for name, parameter in PARAMETERS.items() if name not in ("model", "view")},
}
"""Those of an analysis: each task gets its own of them."""
