"""`convmlp analyze IMAGE…`: the answers of several tasks, or models, for each image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model.types import Task
from service.cli.options import (
    BackendOptions,
    Given,
    Images,
    OutputOptions,
    parameter_flag,
    shared_flags,
)
from service.cli.predict import open_backend, predict_images

if TYPE_CHECKING:
    from service.cli.backends import AnalysisBackend, LocalBackend
    from service.frontend.api.rest.analyze import AnalyzeQuery
    from service.settings import Settings

Tasks = Annotated[
    str | None,
    parameter_flag(
        metavar="TASK,…",
        help="Tasks, each by its default model: classify, detect, segment. Default: all that a model is served for.",
    ),
]
Models = Annotated[str | None, parameter_flag(metavar="NAME,…", help="Models instead of tasks.")]


@shared_flags(
    *("tasks", "models", "top_k", "score_threshold", "max_detections", "classes", "iou_threshold", "agnostic_nms"),
    *("min_area", "threshold", "confidence_map", "tiles", "tile_overlap", "masks", "mask_format"),
    tasks=Tasks,
    models=Models,
)
def analyze(images: Images, given: Given, backend: BackendOptions, output: OutputOptions) -> None:
    """Analyze images: print the answers of several tasks or models, from one upload of each."""
    predict_images("analyze", images, output, lambda: _open_backend(given, backend))


def _open_backend(given: Given, options: BackendOptions) -> AnalysisBackend:
    from service.cli.backends import RemoteAnalysis
    from service.frontend.api.rest.analyze import read_analyze_query

    for name in given.keys() & {"tasks", "models"}:
        given[name] = given[name].split(",")
    return open_backend(options, "analyze", given, RemoteAnalysis, read_analyze_query, _local)


def _local(query: AnalyzeQuery, settings: Settings) -> AnalysisBackend:
    """Raises as `LocalBackend`."""
    from model.bundle import find_bundle, read_bundle
    from service.cli.backends import LocalAnalysis
    from service.frontend.core.parameters import require_applicable

    def task_of(name: str) -> Task:
        return read_bundle(find_bundle(name, settings.models_dir)).config.task

    asked: dict[str, tuple[str | None, Task]]
    if query.models:
        asked = {name: (name, task_of(name)) for name in query.models}
    else:
        served = {task_of(name) for name in settings.models}
        asked = {task.value: (None, task) for task in query.tasks or [task for task in Task if task in served]}
    require_applicable(query.given, {task for _, task in asked.values()})
    return LocalAnalysis({name: _backend(query, model, task, settings) for name, (model, task) in asked.items()})


def _backend(query: AnalyzeQuery, model: str | None, task: Task, settings: Settings) -> LocalBackend:
    from service.cli.backends import LocalBackend
    from service.frontend.api.rest.query import Query

    of_task = query.params[task]
    asked = Query(model, of_task.params, of_task.mask_format, None, classes=of_task.classes, tiling=of_task.tiling)
    return LocalBackend(asked, task, settings)
