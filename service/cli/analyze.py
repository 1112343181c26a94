"""`convmlp analyze IMAGE…`: the answers of several tasks, or models, for each image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.types import Task
from service.cli.options import (
    DEFAULT_URL,
    PARAMETERS,
    AgnosticNms,
    ApiKey,
    AsJson,
    BackendOptions,
    Classes,
    ConfidenceMap,
    FormOption,
    Images,
    IouThreshold,
    Local,
    MaskFormat,
    Masks,
    MaxDetections,
    MinArea,
    ModelsDir,
    PixelThreshold,
    Save,
    Threshold,
    TileOverlap,
    Tiles,
    TimeoutMs,
    TopK,
    Url,
    backend_options,
    output_options,
    query_string,
)
from service.cli.predict import local_backend, predict_images
from service.errors import BadParameter

if TYPE_CHECKING:
    from service.cli.backends import AnalysisBackend, LocalBackend
    from service.frontend.api.rest.analyze import AnalyzeQuery
    from service.settings import Settings

Tasks = Annotated[
    str | None,
    typer.Option(
        metavar="TASK,…",
        help="Tasks, each by its default model: classify, detect, segment. Default: all that a model is served for.",
        rich_help_panel=PARAMETERS,
    ),
]
Models = Annotated[
    str | None,
    typer.Option(metavar="NAME,…", help="Models instead of tasks.", rich_help_panel=PARAMETERS),
]


def analyze(
    context: typer.Context,
    images: Images,
    tasks: Tasks = None,
    models: Models = None,
    top_k: TopK = None,
    score_threshold: Threshold = None,
    max_detections: MaxDetections = None,
    classes: Classes = None,
    iou_threshold: IouThreshold = None,
    agnostic_nms: AgnosticNms = None,
    min_area: MinArea = None,
    threshold: PixelThreshold = None,
    confidence_map: ConfidenceMap = None,
    tiles: Tiles = None,
    tile_overlap: TileOverlap = None,
    masks: Masks = None,
    mask_format: MaskFormat = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    local: Local = False,
    models_dir: ModelsDir = None,
    timeout_ms: TimeoutMs = None,
    form: FormOption = None,
    as_json: AsJson = False,
    save: Save = None,
) -> None:
    """Analyze images: print the answers of several tasks or models, from one upload of each."""
    options = backend_options(context, url, api_key, local, models_dir, timeout_ms)
    output = output_options(form, as_json, save, coco=False)
    parameters = {
        "tasks": tasks,
        "models": models,
        "top_k": top_k,
        "score_threshold": score_threshold,
        "max_detections": max_detections,
        "classes": classes,
        "iou_threshold": iou_threshold,
        "agnostic_nms": agnostic_nms,
        "min_area": min_area,
        "threshold": threshold,
        "confidence_map": confidence_map,
        "tiles": tiles,
        "tile_overlap": tile_overlap,
        "masks": masks,
        "mask_format": mask_format,
    }
    given = {name: value for name, value in parameters.items() if value is not None}
    predict_images("analyze", images, output, lambda: _open_backend(given, options))


def _open_backend(given: dict[str, Any], options: BackendOptions) -> AnalysisBackend:
    from service.cli.backends import RemoteAnalysis
    from service.frontend.api.rest.analyze import read_analyze_query

    try:
        query = read_analyze_query(query_string(given))
        if not options.local:
            sent: Any = {
                name: value.split(",") if name in ("tasks", "models") else value for name, value in given.items()
            }
            return RemoteAnalysis(options.url, options.api_key, sent, options.timeout_ms)
    except BadParameter as error:
        raise typer.BadParameter(error.detail) from None
    return local_backend(lambda settings: _local(query, settings), options)


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
