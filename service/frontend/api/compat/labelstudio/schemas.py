"""Label Studio's requests, as far as they are read, and the answers, by structs that are also their JSON Schema."""

from __future__ import annotations

from typing import Annotated

import msgspec

from service.frontend.http.problems import Problem


class Task(msgspec.Struct):
    """A task: its `data` has the picture by the key in the Image's `value`."""

    data: dict[str, msgspec.Raw]
    id: int = 0


class Params(msgspec.Struct):
    """Label Studio's own parameters. `hostname` is its URL."""

    hostname: str | None = None


class PredictBody(msgspec.Struct):
    """Tasks of one project, and its labeling configuration."""

    tasks: list[Task]
    label_config: str
    project: msgspec.Raw = msgspec.Raw(b"null")
    params: Params | None = None


class SetupBody(msgspec.Struct):
    """A project's labeling configuration, and where its files are."""

    schema: str
    project: msgspec.Raw = msgspec.Raw(b"null")
    hostname: str | None = None
    access_token: str | None = None


class WebhookBody(msgspec.Struct):
    action: str = ""


class Prediction(msgspec.Struct, frozen=True):
    """A task's results. `score` is the mean of theirs, 0 without any."""

    result: list[msgspec.Raw]
    score: Annotated[float, msgspec.Meta(ge=0, le=1)]
    model_version: str


class Failure(msgspec.Struct, frozen=True):
    """In the place of a prediction: Label Studio logs it, stores none, and asks for the task again."""

    error: Problem


class Predictions(msgspec.Struct, frozen=True):
    """Predictions or errors, in the order of the tasks."""

    results: list[msgspec.Raw]
    model_version: str


class ModelVersion(msgspec.Struct, frozen=True):
    model_version: str


class Versions(msgspec.Struct, frozen=True):
    versions: list[str]


class Health(msgspec.Struct, frozen=True):
    status: str
    model_class: str
