"""`convmlp classify|detect|segment IMAGE…`: reads the flags, chooses the backend and the form of the output."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from model.errors import ConvMLPError
from model.types import Task
from service.cli.console import print_error
from service.cli.flags import settings_or_exit
from service.cli.options import (
    BackendOptions,
    Given,
    Images,
    OutputOptions,
    ShownView,
    query_string,
    read_view,
    shared_flags,
)
from service.errors import BadParameter

if TYPE_CHECKING:
    from service.cli.backends import AnalysisBackend, Backend
    from service.cli.inputs import ImageFile
    from service.frontend.api.rest.query import Query
    from service.settings import Settings

B = TypeVar("B")
Q = TypeVar("Q")


@shared_flags("model", "top_k")
def classify(images: Images, given: Given, backend: BackendOptions, output: OutputOptions) -> None:
    """Classify images: print the most probable labels."""
    _predict(Task.CLASSIFY, images, given, backend, output)


@shared_flags(
    *("model", "score_threshold", "max_detections", "classes", "iou_threshold", "agnostic_nms", "min_area"),
    *("tiles", "tile_overlap", "masks", "mask_format"),
    coco=True,
)
def detect(images: Images, given: Given, backend: BackendOptions, output: OutputOptions) -> None:
    """Detect objects in images: print labels, scores and boxes."""
    _predict(Task.DETECT, images, given, backend, output)


@shared_flags(
    *("model", "classes", "min_area", "threshold", "confidence_map"),
    *("tiles", "tile_overlap", "masks", "mask_format"),
    coco=True,
)
def segment(
    images: Images, given: Given, backend: BackendOptions, output: OutputOptions, view: ShownView = None
) -> None:
    """Segment images: give every pixel a class, and print the classes' areas."""
    output = replace(output, view=read_view(view, output.save))
    if view == "confidence":
        given["confidence_map"] = True
    elif view in ("labelmap", "colors"):  # they have all classes
        given.pop("classes", None)
        given.pop("min_area", None)
    _predict(Task.SEGMENT, images, given, backend, output)


def _predict(task: Task, images: list[str], given: Given, options: BackendOptions, output: OutputOptions) -> None:
    from service.cli.printers import Form

    prints_masks = output.as_json or output.form is Form.JSON_LINES
    if task is not Task.CLASSIFY and not prints_masks and given.get("mask_format") != "none":
        if output.form is Form.COCO or (output.save is not None and output.view != "confidence"):
            given["mask_format"] = "rle"  # --mask-format is for JSON; RLE is small and exact
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
        typer.Exit: with status 1, if an image failed; with 130 after Ctrl-C.
        typer.BadParameter: flags that exclude each other.
    """
    from service.cli.inputs import image_files, output_paths

    files = image_files(images)
    paths = output_paths(output.save, files) if output.save is not None else []
    try:
        status = asyncio.run(_run(open_backend(), name, files, output, paths))
    except ConvMLPError as error:
        print_error(error.detail)
        raise typer.Exit(1) from None
    if status:
        raise typer.Exit(status)


def _open_backend(task: Task, given: Given, options: BackendOptions) -> Backend:
    from service.cli.backends import LocalBackend, RemoteBackend
    from service.frontend.api.rest.query import read_query

    def load(query: Query, settings: Settings) -> Backend:
        return LocalBackend(query, task, settings)

    return open_backend(options, task.value, given, RemoteBackend, partial(read_query, task), load)


def open_backend(
    options: BackendOptions,
    endpoint: str,
    given: Given,
    remote: Callable[..., B],
    read: Callable[[bytes], Q],
    load: Callable[[Q, Settings], B],
) -> B:
    """`remote` of the service's `endpoint`, or with --local what `load` makes; `read` is the service's own check of the
    parameters, before anything is read, sent or loaded.

    Raises:
        typer.BadParameter, typer.Exit: a parameter or an option is wrong; torch is not installed.
        ConvMLPError: as `LocalBackend`.
    """
    from convmlp_client.results import Task as ClientTask

    try:
        query = read(query_string(given))
        if not options.local:
            return remote(options.url, options.api_key, ClientTask(endpoint), given, options.timeout_ms)
    except BadParameter as error:
        raise typer.BadParameter(error.detail) from None
    settings = settings_or_exit(models_dir=options.models_dir)
    try:
        return load(query, settings)
    except ModuleNotFoundError as error:
        print_error(f"--local needs {error.name}, which is not installed; install this package's extra `worker`")
        raise typer.Exit(1) from None


async def _run(
    backend: Backend | AnalysisBackend,
    name: str,
    files: Sequence[ImageFile],
    output: OutputOptions,
    paths: Sequence[Path],
) -> int:
    """The exit status."""
    from convmlp_client.results import Task as ClientTask
    from service.cli.output import print_results, save_drawings
    from service.cli.printers import open_printer

    async with aclosing(backend):
        if paths:
            return await save_drawings(backend, files, paths, output.view)
        form = None if output.as_json else output.form
        return await print_results(backend, files, open_printer(form, ClientTask(name), [file.name for file in files]))
