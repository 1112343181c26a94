"""The flags that commands which predict share, and what they mean together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

import typer

from service.cli.console import printable
from service.cli.flags import is_given, refuse_flags_of_service

if TYPE_CHECKING:
    from service.cli.printers import Form
    from service.frontend.core.parameters import View

DEFAULT_URL = "http://127.0.0.1:8000"

PARAMETERS, BACKEND, OUTPUT = "Parameters", "Backend", "Output"
"""Panels of the help."""

Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE|DIR",
        help="Image files, folders of them, quoted patterns ('**/*.jpg'), URLs to download; - reads one from stdin.",
    ),
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
FormOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="table: of one image, and a line for each of several; csv: a row for each label, detection or segment; "
        "jsonl: a line of JSON for each image; coco: COCO's data set, of detections or segments. Default: table.",
        rich_help_panel=OUTPUT,
    ),
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
    """`form`, or JSON, or drawings in `save`; `view`: of a segmentation, what is written instead of drawings."""

    form: Form
    as_json: bool
    save: str | None
    view: View | None = None


def output_options(
    form: str | None, as_json: bool, save: str | None, view: str | None = None, *, coco: bool = True
) -> OutputOptions:
    """The options of a command. Raises typer.BadParameter: there is no such form, or two exclude each other.

    `coco`: whether the command's results can be a COCO data set.
    """
    from service.cli.printers import Form

    forms = [known for known in Form if coco or known is not Form.COCO]
    if form is not None and form not in forms:
        raise typer.BadParameter(f"--format {printable(form)} is not one of {', '.join(forms)}")
    given = {"--format": form is not None, "--json": as_json, "--save": save is not None}
    if sum(given.values()) > 1:
        names = [flag for flag, is_set in given.items() if is_set]
        raise typer.BadParameter(f"{' and '.join(names)} exclude each other")
    return OutputOptions(Form(form or Form.TABLE), as_json, save, _view(view, save))


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


def query_string(parameters: Mapping[str, str | float]) -> bytes:
    """As the REST API's query string has them."""
    texts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in parameters.items()}
    return urlencode(texts, errors="replace").encode("ascii")
