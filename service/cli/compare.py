"""`convmlp compare A B DATA`: where two models, or two precisions of a model, differ."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from convmlp_client.aio import AsyncClient
from convmlp_client.errors import ClientError
from convmlp_client.results import Task as ClientTask
from model.bundle import find_bundle, read_bundle
from model.errors import ConvMLPError, ImageTooLarge, ImageUndecodable, NotFinite, UnsupportedFormat
from model.files import replace_file
from model.types import Task
from service.cli.backends import Backend, LocalBackend, RemoteBackend
from service.cli.console import image_progress, number_column, print_error, print_table, text_column
from service.cli.flags import settings_or_exit
from service.cli.predict import OUTPUT, ApiKey, ModelsDir, query_string
from service.errors import BadParameter, ModelNotFound
from service.evaluation.comparison import FIRST, SECOND, ComparedPicture, Comparison, Summary, comparison_for
from service.evaluation.comparison_page import PageHead, comparison_page
from service.evaluation.dataset import ClassTruth, DataInvalid, Sample, is_picture
from service.evaluation.formats import read_dataset
from service.evaluation.label_matching import match_labels
from service.evaluation.predictions import read_picture
from service.evaluation.truth_errors import ClassIndices, truth_error
from service.frontend.api.rest.query import read_query
from service.frontend.core.parameters import TOP_K
from service.settings import Settings

PICTURE_ERRORS = (ImageUndecodable, ImageTooLarge, UnsupportedFormat, NotFinite)
"""A picture that has one is left out; every other error ends the command."""
PRECISIONS = ("exact", "fp32", "fp16", "bf16")
URL = re.compile(r"(?P<base>(?:https?|grpc|grpcs)://[^/]+(?:/.*)?)/models/(?P<model>[^/]+)")
MAX_PRINTED = 10
"""Pictures and errors in the terminal."""

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model of the store: NAME, or NAME:PRECISION (exact, fp32, fp16, bf16; exact by default). Or one of a "
        "running service: http://HOST:PORT/models/NAME.",
    ),
]
Data = Annotated[
    Path,
    typer.Argument(
        exists=True, help="A folder of pictures, or a data set as `convmlp eval` takes it, whose truth is then used."
    ),
]
NoTruth = Annotated[bool, typer.Option("--no-truth", help="Take all pictures below DATA, without a truth.")]
Html = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.html",
        dir_okay=False,
        help="Write a page of the pictures that differ most.",
        rich_help_panel=OUTPUT,
    ),
]
MaxPictures = Annotated[int, typer.Option(min=1, max=500, help="Pictures of the page.", rich_help_panel=OUTPUT)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.", rich_help_panel=OUTPUT)]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models, as the user names it: of the store, in a precision, or of the service at `url`."""

    text: str
    model: str
    precision: str = "exact"
    url: str | None = None

    @classmethod
    def of(cls, text: str) -> Side:
        """Raises BadParameter."""
        if "://" in text:
            found = URL.fullmatch(text)
            if found is None:
                raise BadParameter(f"{text!r} names no model; expected http://HOST:PORT/models/NAME")
            return cls(text, found["model"], url=found["base"])
        name, _, precision = text.partition(":")
        if precision and precision not in PRECISIONS:
            raise BadParameter(f"{text!r}: the precision is one of {', '.join(PRECISIONS)}, as in {name}:fp32")
        return cls(text, name, precision or "exact")


@dataclass(frozen=True, slots=True)
class Described:
    """What a side's model is for."""

    task: Task
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Truth:
    """The class indices of the data's labels in each model."""

    first: ClassIndices
    second: ClassIndices


def compare(
    first: Model,
    second: Model,
    data: Data,
    no_truth: NoTruth = False,
    api_key: ApiKey = None,
    models_dir: ModelsDir = None,
    html: Html = None,
    max_pictures: MaxPictures = 50,
    as_json: AsJson = False,
) -> None:
    """Compare two models, or two precisions of one, on pictures: how often they agree, and where they differ most.

    Both have one task. Classes are compared by name. Exit status: 1 if a picture cannot be read.
    """
    settings = settings_or_exit(models_dir=models_dir)
    try:
        sides = Side.of(first), Side.of(second)
        models = asyncio.run(_described(sides, api_key, settings))
        if models[0].task is not models[1].task:
            tasks = " and ".join(
                f"{side.text} is for {one.task.value}" for side, one in zip(sides, models, strict=True)
            )
            raise BadParameter(f"{tasks}; expected two models of one task")
        samples, truth = _samples(data, models, no_truth=no_truth)
        comparison = comparison_for(models[0].task, models[0].labels, models[1].labels)
        summary = Summary(max_pictures)
        with image_progress(len(samples), printing=False) as advance:
            asyncio.run(_compare(sides, models, samples, truth, comparison, summary, api_key, settings, advance))
        rows = _rows(comparison, summary)
        if html is not None:
            with image_progress(len(summary.worst), printing=False) as advance:
                page = comparison_page(PageHead(first, second, str(data), rows), summary.worst, advance)
            replace_file(html, page.encode("utf-8", "replace"), mode=0o644)
        _print((first, second), comparison, summary, rows, as_json=as_json)
    except ConvMLPError as error:
        print_error(error.detail)
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        print_error(
            f"a model of the store needs {error.name}, which is not installed; install this package's extra `worker`"
        )
        raise typer.Exit(1) from None
    except OSError as error:
        print_error(f"{error.filename or html} cannot be written: {error.strerror}")
        raise typer.Exit(1) from None
    if summary.errors:
        raise typer.Exit(1)


async def _described(sides: tuple[Side, Side], api_key: str | None, settings: Settings) -> tuple[Described, Described]:
    first, second = [await _description(side, api_key, settings) for side in sides]
    return first, second


async def _description(side: Side, api_key: str | None, settings: Settings) -> Described:
    if side.url is None:
        config = read_bundle(find_bundle(side.model, settings.models_dir)).config
        return Described(config.task, config.labels)
    try:
        async with AsyncClient(side.url, api_key=api_key) as client:
            models = {model.name: model for model in await client.models()}
    except ValueError as error:
        raise BadParameter(f"{side.text}: {error}") from None
    except ClientError as error:
        raise ModelNotFound(f"{side.text}: {error.detail}") from error
    if side.model not in models:
        raise ModelNotFound(f"{side.url} does not serve {side.model!r}; it serves {', '.join(models) or 'no models'}")
    return Described(Task(models[side.model].task), models[side.model].labels)


def _samples(data: Path, models: Sequence[Described], *, no_truth: bool) -> tuple[Sequence[Sample], Truth | None]:
    """The pictures of DATA, and the truth unless there is none: a folder that has pictures itself is no data set."""
    if data.is_dir() and (no_truth or any(is_picture(file) for file in data.iterdir())):
        files = sorted(file for file in data.rglob("*") if is_picture(file) and file.is_file())
        if not files:
            raise DataInvalid(f"{data} has no pictures")
        return [Sample(file.relative_to(data).as_posix(), file, ClassTruth(())) for file in files], None
    dataset = read_dataset(data, models[0].task)
    if no_truth:
        return dataset.samples, None
    first, second = (match_labels(dataset.labels, one.labels) for one in models)
    return dataset.samples, Truth(first, second)


async def _compare(
    sides: tuple[Side, Side],
    models: tuple[Described, Described],
    samples: Sequence[Sample],
    truth: Truth | None,
    comparison: Comparison,
    summary: Summary,
    api_key: str | None,
    settings: Settings,
    advance: Callable[[], None],
) -> None:
    """Predict each picture with both models; what is kept of it is in `comparison` and `summary`."""
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(aclosing(_backend(side, one, api_key, settings)))
            for side, one in zip(sides, models, strict=True)
        ]
        pending = iter(samples)

        async def compare_pending() -> None:
            for sample in pending:
                try:
                    image = await asyncio.to_thread(read_picture, sample.path)
                    one, other = await asyncio.gather(first.predict(image), second.predict(image))
                except PICTURE_ERRORS as error:
                    summary.errors[sample.name] = error.detail
                else:
                    errors = None
                    if truth is not None:
                        found = truth_error(sample, one, truth.first), truth_error(sample, other, truth.second)
                        errors = None if found[0] is None or found[1] is None else (found[0], found[1])
                    summary.add(ComparedPicture(sample, one, other, comparison.add(one, other), errors))
                advance()

        async with asyncio.TaskGroup() as group:
            for _ in range(min(first.concurrency, second.concurrency)):
                group.create_task(compare_pending())


def _backend(side: Side, model: Described, api_key: str | None, settings: Settings) -> Backend:
    # A service takes no more; of a classifier with more classes the least probable ones are left out.
    parameters = {"top_k": min(len(model.labels), TOP_K.high)} if model.task is Task.CLASSIFY else {}
    named: dict[str, str | float] = {"model": side.model, **parameters}
    if side.url is not None:
        return RemoteBackend(side.url, api_key, ClientTask(model.task), named, None)
    query = read_query(model.task, query_string(named))
    return LocalBackend(query, model.task, settings.with_changes(precision=side.precision))


def _rows(comparison: Comparison, summary: Summary) -> list[tuple[str, str]]:
    rows = [("pictures", str(comparison.pictures)), ("pictures that differ", str(summary.differing))]
    rows += [(metric.name, metric.text) for metric in comparison.metrics()]
    rows += [(f"of those that differ, {name}", str(number)) for name, number in sorted(summary.nearer.items())]
    if summary.errors:
        rows.append(("pictures without results", str(len(summary.errors))))
    return rows


def _print(
    names: tuple[str, str], comparison: Comparison, summary: Summary, rows: list[tuple[str, str]], *, as_json: bool
) -> None:
    for name, detail in islice(summary.errors.items(), MAX_PRINTED):
        print_error(f"{name}: {detail}")
    if as_json:
        document = {
            FIRST: names[0],
            SECOND: names[1],
            "pictures": comparison.pictures,
            "differing": summary.differing,
            "metrics": {metric.name: metric.value for metric in comparison.metrics()},
            "nearer": summary.nearer,
            "errors": summary.errors,
            "worst": [
                {"image": one.sample.name, "differences": one.difference.facts, "truth": one.nearer}
                for one in summary.worst
            ],
        }
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    print_table([text_column("metric"), number_column("value")], rows, title=f"{FIRST} {names[0]}  {SECOND} {names[1]}")
    differing = [one for one in summary.worst if not one.difference.agrees][:MAX_PRINTED]
    if differing:
        typer.echo("")
        columns = [text_column("picture"), text_column("difference"), text_column("truth")]
        print_table(columns, [[one.sample.name, "; ".join(one.difference.facts), one.nearer] for one in differing])
