"""Label Studio's requests, as far as they are read, and the answers, by structs that are also their JSON Schema."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from service.frontend.http.problems import Problem


class LabelStudioTask(msgspec.Struct):
    """A task: its `data` has the picture by the key in the Image's `value`."""

    data: dict[str, msgspec.Raw]
    id: int = 0


class LabelStudioParams(msgspec.Struct):
    """Label Studio's own parameters. `hostname` is its URL."""

    hostname: str | None = None


class LabelStudioTasks(msgspec.Struct):
    """Tasks of one project, and its labeling configuration."""

    tasks: list[LabelStudioTask]
    label_config: str
    project: str | int | dict[str, Any] | None = None
    params: LabelStudioParams | None = None


class LabelStudioProject(msgspec.Struct):
    """A project's labeling configuration, and where its files are."""

    schema: str
    project: str | int | dict[str, Any] | None = None
    hostname: str | None = None
    access_token: str | None = None


class LabelStudioEvent(msgspec.Struct):
    action: str = ""


class LabelStudioPrediction(msgspec.Struct, frozen=True):
    """A task's results. `score` is the mean of theirs, 0 without any."""

    result: list[msgspec.Raw]
    score: Annotated[float, msgspec.Meta(ge=0, le=1)]
    model_version: str


class LabelStudioFailure(msgspec.Struct, frozen=True):
    """In the place of a prediction: Label Studio logs it, stores none, and asks for the task again."""

    error: Problem


class LabelStudioPredictions(msgspec.Struct, frozen=True):
    """LabelStudioPredictions or errors, in the order of the tasks."""

    results: list[msgspec.Raw]
    model_version: str


class LabelStudioModelVersion(msgspec.Struct, frozen=True):
    model_version: str


class LabelStudioVersions(msgspec.Struct, frozen=True):
    versions: list[str]


class LabelStudioHealth(msgspec.Struct, frozen=True):
    status: str
    model_class: str
