"""`convmlp classify|detect|segment IMAGE…`: flags to a question, and who is to answer it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

import typer

from model.errors import ConvMLPError
from model.types import Task
from service.cli.words import complain, settings_or_exit
from service.errors import BadParameter

if TYPE_CHECKING:
    from service.cli.answerer import Answerer
    from service.cli.pictures import Picture

DEFAULT_URL = "http://127.0.0.1:8000"

Images = Annotated[list[str], typer.Argument(metavar="IMAGE", help="Picture files; - reads one from stdin.")]
Model = Annotated[str | None, typer.Option(help="Which model answers; default: the task's default model.")]
TopK = Annotated[int | None, typer.Option(help="How many labels, the best first; default: 5.")]
Threshold = Annotated[float | None, typer.Option(help="Least score of a detection; default: the model's own.")]
MaxDetections = Annotated[int | None, typer.Option(help="At most so many detections; default: 100.")]
Masks = Annotated[bool | None, typer.Option("--masks/--no-masks", help="Whether masks are told and drawn.")]
MaskCoding = Annotated[
    str | None, typer.Option(metavar="FORMAT", help="How --json writes masks: rle, png, polygon or none.")
]
Url = Annotated[
    str, typer.Option(envvar="CONVMLP_URL", help="The running service that is asked: http://HOST:PORT, or grpc://.")
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="CONVMLP_API_KEY", help="For a service that asks for a key; others see a flag, so set the variable."
    ),
]
Local = Annotated[bool, typer.Option("--local", help="Answer in this process instead of asking a service.")]
ModelsDir = Annotated[
    Path | None, typer.Option(envvar="CONVMLP_MODELS_DIR", help="With --local: where more models are.")
]
TimeoutMs = Annotated[int | None, typer.Option(min=1, help="Give up on an image after so long.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the service's JSON answer, one document.")]
Save = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Draw the answer: to a .png, .jpg or .webp file, or for each into a folder."),
]


@dataclass(frozen=True, slots=True)
class Where:
    """Who answers: the service at `url`, by `api_key`, or with `local` this process, from the store at `models_dir`."""

    url: str
    api_key: str | None
    local: bool
    models_dir: Path | None
    timeout_ms: int | None


@dataclass(frozen=True, slots=True)
class Form:
    """How the answer is given: as a table, as JSON, or drawn into `save`."""

    as_json: bool
    save: str | None


def classify(
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
    """Say what each picture shows."""
    where, form = Where(url, api_key, local, models_dir, timeout_ms), Form(as_json, save)
    _predict(Task.CLASSIFY, images, {"model": model, "top_k": top_k}, where, form)


def detect(
    images: Images,
    model: Model = None,
    score_threshold: Threshold = None,
    max_detections: MaxDetections = None,
    masks: Masks = None,
    mask_format: MaskCoding = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    local: Local = False,
    models_dir: ModelsDir = None,
    timeout_ms: TimeoutMs = None,
    as_json: AsJson = False,
    save: Save = None,
) -> None:
    """Find objects in each picture: labels, boxes, and masks where the model has them."""
    where, form = Where(url, api_key, local, models_dir, timeout_ms), Form(as_json, save)
    parameters = {
        "model": model,
        "score_threshold": score_threshold,
        "max_detections": max_detections,
        "masks": masks,
        "mask_format": mask_format,
    }
    _predict(Task.DETECT, images, parameters, where, form)


def segment(
    images: Images,
    model: Model = None,
    masks: Masks = None,
    mask_format: MaskCoding = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    local: Local = False,
    models_dir: ModelsDir = None,
    timeout_ms: TimeoutMs = None,
    as_json: AsJson = False,
    save: Save = None,
) -> None:
    """Give each pixel of each picture its class."""
    where, form = Where(url, api_key, local, models_dir, timeout_ms), Form(as_json, save)
    _predict(Task.SEGMENT, images, {"model": model, "masks": masks, "mask_format": mask_format}, where, form)


def _predict(
    task: Task, images: list[str], parameters: Mapping[str, str | float | None], where: Where, form: Form
) -> None:
    # Imported only now: the other commands, the worker's among them, need none of this.
    from service.cli.pictures import Picture, output_paths

    if images.count("-") > 1:
        raise typer.BadParameter("- is stdin, which can be read once only; give it once")
    if form.as_json and form.save is not None:
        raise typer.BadParameter("--json and --save are two forms of the answer; give one of them")
    if where.local and where.timeout_ms is not None:
        raise typer.BadParameter("--timeout-ms is for a service; leave it out with --local")
    pictures = [Picture(name) for name in images]
    paths = output_paths(form.save, pictures) if form.save is not None else []
    given = {name: value for name, value in parameters.items() if value is not None}
    if task is not Task.CLASSIFY and not form.as_json and given.get("mask_format") != "none":
        if paths:
            given["mask_format"] = "rle"  # --mask-format is for --json; these are the smallest, and exact
        else:
            given.setdefault("mask_format", "none")  # a table has no place for masks
    try:
        answerer = _answerer(task, given, where)
        complete = asyncio.run(_give(answerer, task, pictures, form, paths))
    except ConvMLPError as error:
        complain(error.detail)
        raise typer.Exit(1) from None
    except BrokenPipeError:  # a reader that had enough, such as `head`, is the framework's to handle
        raise
    except OSError as error:
        complain(f"the answer cannot be printed: {error.strerror}")
        raise typer.Exit(1) from None
    if not complete:
        raise typer.Exit(1)


def _answerer(task: Task, given: Mapping[str, str | float], where: Where) -> Answerer:
    from service.cli.remote import Remote
    from service.frontend.api.rest.query import read_query

    query_string = urlencode({name: _text(value) for name, value in given.items()}, errors="replace")
    try:
        # The service's own check of parameters, before anything is read, sent or loaded.
        query = read_query(task, query_string.encode("ascii"))
        if not where.local:
            return Remote(where.url, where.api_key, task, given, where.timeout_ms)
    except BadParameter as error:
        raise typer.BadParameter(error.detail) from None
    settings = settings_or_exit(models_dir=where.models_dir)
    try:
        from service.cli.local import Local
    except ModuleNotFoundError as error:
        complain(f"--local needs {error.name}, which is not installed; install this package's extra `worker`")
        raise typer.Exit(1) from None
    return Local(task, query, settings)


async def _give(answerer: Answerer, task: Task, pictures: Sequence[Picture], form: Form, paths: Sequence[Path]) -> bool:
    from service.cli.ask import draw_all, print_json, print_tables

    async with aclosing(answerer):
        if paths:
            return await draw_all(answerer, pictures, paths)
        if form.as_json:
            return await print_json(answerer, task, pictures)
        return await print_tables(answerer, pictures)


def _text(value: str | float) -> str:
    """As the query string of the REST API writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
