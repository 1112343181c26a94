"""`convmlp classify|detect|segment IMAGE…`: reads the flags, chooses the backend and the form of the output."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar
from urllib.parse import urlencode

import typer

from model.errors import ConvMLPError
from model.types import Task
from service.cli.console import print_error, printable
from service.cli.flags import is_given, refuse_flags_of_service, settings_or_exit
from service.errors import BadParameter

if TYPE_CHECKING:
    from service.cli.backends import AnalysisBackend, Backend
    from service.cli.inputs import ImageFile
    from service.frontend.core.parameters import View
    from service.settings import Settings

B = TypeVar("B")

DEFAULT_URL = "http://127.0.0.1:8000"

PARAMETERS, BACKEND, OUTPUT = "Parameters", "Backend", "Output"
"""Panels of the help."""

Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE", help="Image files, or URLs that the service fetches. - reads one from stdin."),
]
Model = Annotated[
    str | None, typer.Option(help="Name of the model. Default: the task's default model.", rich_help_panel=PARAMETERS)
]
TopK = Annotated[
    int | None, typer.Option(help="Number of labels, by falling score. Default: 5.", rich_help_panel=PARAMETERS)
]
Threshold = Annotated[
    float | None, typer.Option(help="Minimum score, 0 to 1. Default: the model's own.", rich_help_panel=PARAMETERS)
]
MaxDetections = Annotated[
    int | None, typer.Option(help="Maximum number of detections. Default: 100.", rich_help_panel=PARAMETERS)
]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="A,B,…", help="Names of the only classes to return. Default: all.", rich_help_panel=PARAMETERS
    ),
]
IouThreshold = Annotated[
    float | None,
    typer.Option(
        help="Of two detections that overlap by more, 0 to 1, return the better one. Default: the model's own.",
        rich_help_panel=PARAMETERS,
    ),
]
AgnosticNms = Annotated[
    bool | None,
    typer.Option("--agnostic-nms", help="Compare detections of different classes, too.", rich_help_panel=PARAMETERS),
]
MinArea = Annotated[
    int | None,
    typer.Option(help="Minimum area of a box or a segment, in pixels. Default: 0.", rich_help_panel=PARAMETERS),
]
PixelThreshold = Annotated[
    float | None,
    typer.Option(
        help="Of a model with one output channel: a pixel is of the class if its probability is above, 0.001 to 0.999. "
        "Default: the model's own.",
        rich_help_panel=PARAMETERS,
    ),
]
ConfidenceMap = Annotated[
    bool | None,
    typer.Option(
        "--confidence-map", help="With --json: add the confidence of each pixel, as a PNG.", rich_help_panel=PARAMETERS
    ),
]
Tiles = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Cut large images into windows, and join their answers: auto, 640 or 800x600 (pixels). Default: do not.",
        rich_help_panel=PARAMETERS,
    ),
]
TileOverlap = Annotated[
    float | None,
    typer.Option(
        help="With --tiles: least overlap of neighbours, 0 to 0.8 of a window's side. Default: 0.2.",
        rich_help_panel=PARAMETERS,
    ),
]
Masks = Annotated[
    bool | None, typer.Option("--masks/--no-masks", help="Whether to return masks.", rich_help_panel=PARAMETERS)
]
MaskFormat = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        help="Format of masks in --json: rle, png, polygon or none. Default: rle.",
        rich_help_panel=PARAMETERS,
    ),
]
Url = Annotated[
    str,
    typer.Option(
        envvar="CONVMLP_URL",
        help="The running service: http://HOST:PORT, https://… or grpc://HOST:PORT.",
        rich_help_panel=BACKEND,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="CONVMLP_API_KEY",
        help="API key, if the service requires one. Other users of this machine can read flags; prefer the variable.",
        rich_help_panel=BACKEND,
    ),
]
Local = Annotated[
    bool,
    typer.Option("--local", help="Run the model in this process instead of a service.", rich_help_panel=BACKEND),
]
ModelsDir = Annotated[
    Path | None,
    typer.Option(
        envvar="CONVMLP_MODELS_DIR",
        help="With --local: folder of models, in addition to the embedded ones.",
        rich_help_panel=BACKEND,
    ),
]
TimeoutMs = Annotated[
    int | None,
    typer.Option(min=1, help="Deadline for each image, in milliseconds.", rich_help_panel=BACKEND),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print JSON instead of tables: one REST answer.", rich_help_panel=OUTPUT),
]
Save = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Draw the results instead: into a .png, .jpg or .webp file, or into a folder for several images.",
        rich_help_panel=OUTPUT,
    ),
]

ShownView = Annotated[
    str | None,
    typer.Option(
        "--view",
        metavar="VIEW",
        help="With --save: instead of a drawing a PNG with the class of each pixel (labelmap), or with its confidence, "
        "0 to 255 (confidence).",
        rich_help_panel=OUTPUT,
    ),
]


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """The service at `url`, called with `api_key`; or with `local` this process, with the store at `models_dir`."""

    url: str
    api_key: str | None
    local: bool
    models_dir: Path | None
    timeout_ms: int | None


def backend_options(
    context: typer.Context, url: str, api_key: str | None, local: bool, models_dir: Path | None, timeout_ms: int | None
) -> BackendOptions:
    """The options of a command. Raises typer.BadParameter for one on its command line that has no effect."""
    refuse_flags_of_service(context, local, "timeout_ms")
    if not local and is_given(context, "models_dir"):
        raise typer.BadParameter("--models-dir needs --local; a service has its own models")
    return BackendOptions(url, api_key, local, models_dir, timeout_ms)


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Tables, JSON, or drawings in `save`; `view`: of a segmentation, what is written instead of drawings."""

    as_json: bool
    save: str | None
    view: View | None = None


def classify(
    context: typer.Context,
    images: Images,
    model: Model = None,
    top_k: TopK = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    local: Local = False,
    models_dir: ModelsDir = None,
    timeout_ms: TimeoutMs = None,
    as_json: AsJson = False,
    save: Save = None,
) -> None:
    """Classify images: print the most probable labels."""
    options = backend_options(context, url, api_key, local, models_dir, timeout_ms)
    output = OutputOptions(as_json, save)
    _predict(Task.CLASSIFY, images, {"model": model, "top_k": top_k}, options, output)


def detect(
    context: typer.Context,
    images: Images,
    model: Model = None,
    score_threshold: Threshold = None,
    max_detections: MaxDetections = None,
    classes: Classes = None,
    iou_threshold: IouThreshold = None,
    agnostic_nms: AgnosticNms = None,
    min_area: MinArea = None,
    tiles: Tiles = None,
    tile_overlap: TileOverlap = None,
    masks: Masks = None,
    mask_format: MaskFormat = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    local: Local = False,
    models_dir: ModelsDir = None,
    timeout_ms: TimeoutMs = None,
    as_json: AsJson = False,
    save: Save = None,
) -> None:
    """Detect objects in images: print labels, scores and boxes."""
    options = backend_options(context, url, api_key, local, models_dir, timeout_ms)
    output = OutputOptions(as_json, save)
    parameters = {
        "model": model,
        "score_threshold": score_threshold,
        "max_detections": max_detections,
        "classes": classes,
        "iou_threshold": iou_threshold,
        "agnostic_nms": agnostic_nms,
        "min_area": min_area,
        "tiles": tiles,
        "tile_overlap": tile_overlap,
        "masks": masks,
        "mask_format": mask_format,
    }
    _predict(Task.DETECT, images, parameters, options, output)


def segment(
    context: typer.Context,
    images: Images,
    model: Model = None,
    classes: Classes = None,
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
    as_json: AsJson = False,
    save: Save = None,
    view: ShownView = None,
) -> None:
    """Segment images: give every pixel a class, and print the classes' areas."""
    options = backend_options(context, url, api_key, local, models_dir, timeout_ms)
    output = OutputOptions(as_json, save, _view(view, save))
    if view == "confidence":
        confidence_map = True
    elif view == "labelmap":  # it has all classes
        classes = min_area = None
    parameters = {
        "model": model,
        "classes": classes,
        "min_area": min_area,
        "threshold": threshold,
        "confidence_map": confidence_map,
        "tiles": tiles,
        "tile_overlap": tile_overlap,
        "masks": masks,
        "mask_format": mask_format,
    }
    _predict(Task.SEGMENT, images, parameters, options, output)


def _view(name: str | None, save: str | None) -> View | None:
    """Raises typer.BadParameter: there is no such view, or it is not to be saved as a PNG."""
    from service.frontend.core.parameters import View

    if name is None:
        return None
    if name not in list(View):
        raise typer.BadParameter(f"--view {printable(name)} is not one of {', '.join(View)}")
    if save is None or Path(save).suffix.lower() not in ("", ".png"):
        raise typer.BadParameter(f"--view {name} is written as PNG; name a .png file, or a folder, with --save")
    return View(name)


def _predict(
    task: Task,
    images: list[str],
    parameters: Mapping[str, str | float | None],
    options: BackendOptions,
    output: OutputOptions,
) -> None:
    given = {name: value for name, value in parameters.items() if value is not None}
    if task is not Task.CLASSIFY and not output.as_json and given.get("mask_format") != "none":
        if output.save is not None and output.view != "confidence":
            given["mask_format"] = "rle"  # --mask-format is for --json; RLE is small and exact
        else:
            given.setdefault("mask_format", "none")  # tables show no masks
    predict_images(task.value, images, output, lambda: _open_backend(task, given, options))


def predict_images(
    name: str,
    images: list[str],
    output: OutputOptions,
    open_backend: Callable[[], Backend | AnalysisBackend],
) -> None:
    """Predict each image and print the results. `name` is that of the endpoint.

    Raises:
        typer.Exit: with status 1, if an image failed.
        typer.BadParameter: flags that exclude each other.
    """
    from service.cli.inputs import ImageFile, output_paths

    if images.count("-") > 1:
        raise typer.BadParameter("- is stdin, which can be read only once")
    if output.as_json and output.save is not None:
        raise typer.BadParameter("--json and --save exclude each other")
    files = [ImageFile(path) for path in images]
    if any(file.is_url for file in files) and output.save is not None and output.view is None:
        raise typer.BadParameter("--save draws on the picture, and only the service has that of a URL; download it")
    paths = output_paths(output.save, files) if output.save is not None else []
    try:
        complete = asyncio.run(_run(open_backend(), name, files, output, paths))
    except ConvMLPError as error:
        print_error(error.detail)
        raise typer.Exit(1) from None
    except BrokenPipeError:  # typer ends the command quietly when a reader such as `head` closes the pipe
        raise
    except OSError as error:
        print_error(f"cannot print the result: {error.strerror}")
        raise typer.Exit(1) from None
    if not complete:
        raise typer.Exit(1)


def _open_backend(task: Task, parameters: Mapping[str, str | float], options: BackendOptions) -> Backend:
    from convmlp_client.results import Task as ClientTask
    from service.cli.backends import LocalBackend, RemoteBackend
    from service.frontend.api.rest.query import read_query

    try:
        # The service's own check of the parameters, before anything is read, sent or loaded.
        query = read_query(task, query_string(parameters))
        if not options.local:
            return RemoteBackend(options.url, options.api_key, ClientTask(task), parameters, options.timeout_ms)
    except BadParameter as error:
        raise typer.BadParameter(error.detail) from None
    return local_backend(lambda settings: LocalBackend(query, task, settings), options)


def local_backend(open_backend: Callable[[Settings], B], options: BackendOptions) -> B:
    """Models of the store in this process. Raises typer.Exit where torch is not installed; as `LocalBackend`."""
    settings = settings_or_exit(models_dir=options.models_dir)
    try:
        return open_backend(settings)
    except ModuleNotFoundError as error:
        print_error(f"--local needs {error.name}, which is not installed; install this package's extra `worker`")
        raise typer.Exit(1) from None


async def _run(
    backend: Backend | AnalysisBackend,
    name: str,
    files: Sequence[ImageFile],
    output: OutputOptions,
    paths: Sequence[Path],
) -> bool:
    """Whether all images succeeded."""
    from convmlp_client.results import Task as ClientTask
    from service.cli.output import print_json, print_tables, save_drawings

    async with aclosing(backend):
        if paths:
            return await save_drawings(backend, files, paths, output.view)
        if output.as_json:
            return await print_json(backend, ClientTask(name), files)
        return await print_tables(backend, files)


def query_string(parameters: Mapping[str, str | float]) -> bytes:
    """As the REST API's query string has them."""
    texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in parameters.items()}
    return urlencode(texts, errors="replace").encode("ascii")
