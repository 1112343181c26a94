"""The flags that commands which predict share, and what they mean together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
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
parameter_flag = partial(typer.Option, rich_help_panel=PARAMETERS)
backend_flag = partial(typer.Option, rich_help_panel=BACKEND)
output_flag = partial(typer.Option, rich_help_panel=OUTPUT)


# Shells complete these; their modules are imported for that alone.
def _forms() -> list[str]:
    from service.cli.printers import Form

    return list(Form)


def _mask_formats() -> list[str]:
    from model.postprocess.masks import MaskFormat

    return list(MaskFormat)


def _views() -> list[str]:
    from service.frontend.core.parameters import View

    return list(View)


Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE|DIR",
        help="Image files, folders of them, quoted patterns ('**/*.jpg'), URLs to download; - reads one from stdin.",
    ),
]
Model = Annotated[str | None, parameter_flag(help="Name of the model. Default: the task's default model.")]
TopK = Annotated[int | None, parameter_flag(help="Number of labels, by falling score. Default: 5.")]
Threshold = Annotated[float | None, parameter_flag(help="Minimum score, 0 to 1. Default: the model's own.")]
MaxDetections = Annotated[int | None, parameter_flag(help="Maximum number of detections. Default: 100.")]
Classes = Annotated[
    str | None, parameter_flag(metavar="A,B,…", help="Names of the only classes to return. Default: all.")
]
IouThreshold = Annotated[
    float | None,
    parameter_flag(
        help="Of two detections that overlap by more, 0 to 1, return the better one. Default: the model's own."
    ),
]
AgnosticNms = Annotated[
    bool | None, parameter_flag("--agnostic-nms", help="Compare detections of different classes, too.")
]
MinArea = Annotated[int | None, parameter_flag(help="Minimum area of a box or a segment, in pixels. Default: 0.")]
PixelThreshold = Annotated[
    float | None,
    parameter_flag(
        help="Of a model with one output channel: a pixel is of the class if its probability is above, 0.001 to 0.999. "
        "Default: the model's own."
    ),
]
ConfidenceMap = Annotated[
    bool | None, parameter_flag("--confidence-map", help="With --json: add the confidence of each pixel, as a PNG.")
]
Tiles = Annotated[
    str | None,
    parameter_flag(
        metavar="SIZE",
        help="Cut large images into windows, and join their answers: auto, 640 or 800x600 (pixels). Default: do not.",
    ),
]
TileOverlap = Annotated[
    float | None,
    parameter_flag(help="With --tiles: least overlap of neighbours, 0 to 0.8 of a window's side. Default: 0.2."),
]
Masks = Annotated[bool | None, parameter_flag("--masks/--no-masks", help="Whether to return masks.")]
MaskFormat = Annotated[
    str | None,
    parameter_flag(
        metavar="FORMAT",
        autocompletion=_mask_formats,
        help="Format of masks in --json: rle, png, polygon or none. Default: rle.",
    ),
]
Url = Annotated[
    str,
    backend_flag(envvar="CONVMLP_URL", help="The running service: http://HOST:PORT, https://… or grpc://HOST:PORT."),
]
ApiKey = Annotated[
    str | None,
    backend_flag(
        envvar="CONVMLP_API_KEY",
        help="API key, if the service requires one. Other users of this machine can read flags; prefer the variable.",
    ),
]
Local = Annotated[bool, backend_flag("--local", help="Run the model in this process instead of a service.")]
ModelsDir = Annotated[
    Path | None,
    backend_flag(envvar="CONVMLP_MODELS_DIR", help="With --local: folder of models, in addition to the embedded ones."),
]
TimeoutMs = Annotated[int | None, backend_flag(min=1, help="Deadline for each image, in milliseconds.")]
AsJson = Annotated[bool, output_flag("--json", help="Print JSON instead of tables: one REST answer.")]
FormOption = Annotated[
    str | None,
    output_flag(
        "--format",
        metavar="FORMAT",
        autocompletion=_forms,
        help="table: of one image, and a line for each of several; csv: a row for each label, detection or segment; "
        "jsonl: a line of JSON for each image; coco: COCO's data set, of detections or segments. Default: table.",
    ),
]
Save = Annotated[
    str | None,
    output_flag(
        metavar="PATH",
        help="Draw the results instead: into a .png, .jpg or .webp file, or into a folder for several images.",
    ),
]
ShownView = Annotated[
    str | None,
    output_flag(
        "--view",
        metavar="VIEW",
        autocompletion=_views,
        help="With --save: instead of a drawing a PNG with the class of each pixel (labelmap), the same in colours "
        "(colors), or with its confidence, 0 to 255 (confidence).",
    ),
]


PARAMETER_FLAGS = {
    "model": Model,
    "top_k": TopK,
    "score_threshold": Threshold,
    "max_detections": MaxDetections,
    "classes": Classes,
    "iou_threshold": IouThreshold,
    "agnostic_nms": AgnosticNms,
    "min_area": MinArea,
    "threshold": PixelThreshold,
    "confidence_map": ConfidenceMap,
    "tiles": Tiles,
    "tile_overlap": TileOverlap,
    "masks": Masks,
    "mask_format": MaskFormat,
}
"""The parameters of predictions, by their names in the REST API."""
BACKEND_FLAGS = {"url": Url, "api_key": ApiKey, "local": Local, "models_dir": ModelsDir, "timeout_ms": TimeoutMs}
OUTPUT_FLAGS = {"form": FormOption, "as_json": AsJson, "save": Save}
DEFAULTS = {"url": DEFAULT_URL, "local": False, "as_json": False}
"""Of these flags; None is that of the others."""


Command = Callable[..., None]


class Given(dict[str, Any]):
    """The parameters of predictions that a command line has, by their names in the REST API."""


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """The service at `url`, called with `api_key`; or with `local` this process, with the store at `models_dir`."""

    url: str
    api_key: str | None
    local: bool
    models_dir: Path | None
    timeout_ms: int | None


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """`form`, or JSON, or drawings in `save`; `view`: of a segmentation, what is written instead of drawings."""

    form: Form
    as_json: bool
    save: str | None
    view: View | None = None


def shared_flags(*names: str, coco: bool = False, **others: object) -> Callable[[Command], Command]:
    """Gives a command the flags that commands share, in the place of its parameters of these types.

    `Given`: the flags of the parameters `names`, of which `others` are the command's own. `BackendOptions` and
    `OutputOptions`: theirs. `coco`: the results can be a COCO data set. The command raises typer.BadParameter for flags
    that exclude each other, or have no effect.
    """

    def decorate(command: Command) -> Command:
        own = signature(command, eval_str=True).parameters.values()
        kinds: dict[Any, tuple[Mapping[str, Any], Callable[[typer.Context, Mapping[str, Any]], object]]] = {
            Given: ({name: (PARAMETER_FLAGS | others)[name] for name in names}, _given),
            BackendOptions: (BACKEND_FLAGS, _backend_options),
            OutputOptions: (OUTPUT_FLAGS, lambda _, values: _output_options(**values, coco=coco)),
        }

        @wraps(command)
        def run(context: typer.Context, **values: Any) -> None:  # noqa: ANN401
            arguments = {}
            for parameter in own:
                if parameter.annotation in kinds:
                    flags, make = kinds[parameter.annotation]
                    arguments[parameter.name] = make(context, {name: values[name] for name in flags})
                else:
                    arguments[parameter.name] = values[parameter.name]
            command(**arguments)

        def expanded() -> Iterator[Parameter]:
            yield Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
            for one in own:
                flags = kinds[one.annotation][0] if one.annotation in kinds else {one.name: one.annotation}
                for name, annotation in flags.items():
                    default = one.default if annotation is one.annotation else DEFAULTS.get(name)
                    yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

        parameters = list(expanded())
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # typer reads both
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _given(_: typer.Context, values: Mapping[str, Any]) -> Given:
    return Given({name: value for name, value in values.items() if value is not None})


def _backend_options(context: typer.Context, values: Mapping[str, Any]) -> BackendOptions:
    refuse_flags_of_service(context, values["local"], "timeout_ms")
    if not values["local"] and is_given(context, "models_dir"):
        raise typer.BadParameter("--models-dir needs --local; a service has its own models")
    return BackendOptions(**values)


def _output_options(form: str | None, as_json: bool, save: str | None, *, coco: bool) -> OutputOptions:
    from service.cli.printers import Form

    forms = [known for known in Form if coco or known is not Form.COCO]
    if form is not None and form not in forms:
        raise typer.BadParameter(f"--format {printable(form)} is not one of {', '.join(forms)}")
    given = {"--format": form is not None, "--json": as_json, "--save": save is not None}
    if sum(given.values()) > 1:
        names = [flag for flag, is_set in given.items() if is_set]
        raise typer.BadParameter(f"{' and '.join(names)} exclude each other")
    return OutputOptions(Form(form or Form.TABLE), as_json, save)


def read_view(name: str | None, save: str | None) -> View | None:
    """The value of --view. Raises typer.BadParameter: there is no such view, or it is not to be saved as a PNG."""
    from service.frontend.core.parameters import View

    if name is None:
        return None
    if name not in list(View):
        raise typer.BadParameter(f"--view {printable(name)} is not one of {', '.join(View)}")
    if save is None or Path(save).suffix.lower() not in ("", ".png"):
        raise typer.BadParameter(f"--view {name} is written as PNG; name a .png file, or a folder, with --save")
    return View(name)


def query_string(parameters: Mapping[str, str | float | list[str]]) -> bytes:
    """As the REST API's query string has them."""

    def text(value: str | float | list[str]) -> str:
        if isinstance(value, list):
            return ",".join(value)
        return str(value).lower() if isinstance(value, bool) else str(value)

    return urlencode({name: text(value) for name, value in parameters.items()}, errors="replace").encode("ascii")
