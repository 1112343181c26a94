"""`convmlp compare A B DATA`: where two models, or two precisions of a model, differ."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from convmlp_client.results import Result
from model.errors import ConvMLPError, ImageTooLarge, ImageUndecodable, NotFinite, UnsupportedFormat
from model.files import replace_file
from service.cli.console import image_progress, number_column, print_error, print_table, text_column
from service.cli.evaluation import DATA, Format, IgnoreLabel, Images, MapFile, Masks
from service.cli.flags import settings_or_exit
from service.cli.model_reference import ComparedModel, ModelReference
from service.cli.model_store import ModelsDir
from service.cli.options import OUTPUT, ApiKey
from service.errors import BadParameter
from service.evaluation.comparison import FIRST, SECOND, ComparedPicture, Comparison, Summary, comparison_for
from service.evaluation.comparison_page import PageHead, comparison_page
from service.evaluation.dataset import ClassTruth, DataFormat, DataInvalid, Sample, is_picture, require_pictures
from service.evaluation.formats import read_dataset
from service.evaluation.label_matching import class_indices, read_label_map
from service.evaluation.predictions import read_picture
from service.evaluation.truth_errors import ClassIndices, truth_error
from service.settings import Settings

PICTURE_ERRORS = (ImageUndecodable, ImageTooLarge, UnsupportedFormat, NotFinite)
"""A picture that has one is left out; every other error ends the command."""
MAX_PRINTED = 10
"""Pictures and errors in the terminal."""

NAMED = (
    "A model of the store: NAME, or NAME:PRECISION (exact, fp32, fp16, bf16; exact by default). Or one of a running "
    "service: http://HOST:PORT/models/NAME."
)
First = Annotated[str, typer.Argument(metavar="A", help=NAMED)]
Second = Annotated[str, typer.Argument(metavar="B", help="The other model, likewise.")]
Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        exists=True,
        help="A folder of pictures, or a data set as `convmlp eval` takes it, whose truth is then used.",
    ),
]
NoTruth = Annotated[
    bool, typer.Option("--no-truth", help="Take all pictures below DATA, without a truth.", rich_help_panel=DATA)
]
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


References = tuple[ModelReference, ModelReference]


@dataclass(frozen=True, slots=True)
class Source:
    """The pictures, and where their truth is; the flags of `convmlp eval`."""

    data: Path
    no_truth: bool
    data_format: DataFormat | None
    images: Path | None
    masks: Path | None
    label_map: Path | None
    ignore_label: int

    @property
    def is_pictures(self) -> bool:
        """Whether a folder has pictures itself, and no flag makes it a data set: there, they may be masks."""
        flags = (self.data_format, self.images, self.masks, self.label_map)
        return all(flag is None for flag in flags) and any(is_picture(file) for file in self.data.iterdir())


@dataclass(frozen=True, slots=True)
class Truth:
    """The class indices of the data's labels in each model."""

    first: ClassIndices
    second: ClassIndices


@dataclass(frozen=True, slots=True)
class Run:
    """The pictures to compare, and what was found."""

    samples: Sequence[Sample]
    truth: Truth | None
    comparison: Comparison
    summary: Summary

    def add(self, sample: Sample, first: Result, second: Result) -> None:
        """Add a picture's two results. Raises DataInvalid if its truth cannot be read."""
        errors = None
        if self.truth is not None:
            one, other = truth_error(sample, first, self.truth.first), truth_error(sample, second, self.truth.second)
            errors = None if one is None or other is None else (one, other)
        self.summary.add(ComparedPicture(sample, first, second, self.comparison.add(first, second), errors))


def compare(
    first: First,
    second: Second,
    data: Data,
    no_truth: NoTruth = False,
    data_format: Format = None,
    images: Images = None,
    masks: Masks = None,
    label_map: MapFile = None,
    ignore_label: IgnoreLabel = 255,
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
    source = Source(data, no_truth, data_format, images, masks, label_map, ignore_label)
    try:
        references = ModelReference.of(first), ModelReference.of(second)
        models = asyncio.run(_described(references, api_key, settings))
        if models[0].task is not models[1].task:
            tasks = " and ".join(
                f"{one.text} is for {model.task.value}" for one, model in zip(references, models, strict=True)
            )
            raise BadParameter(f"{tasks}; expected two models of one task")
        samples, truth = _samples(source, models)
        run = Run(
            samples,
            truth,
            comparison_for(models[0].task, models[0].labels, models[1].labels),
            Summary(max_pictures),
        )
        with image_progress(len(samples)) as advance:
            asyncio.run(_compare(references, models, run, api_key, settings, advance))
        if html is not None:
            _write_page(html, PageHead(first, second, str(data), _rows(run)), run.summary)
        _print((first, second), run, as_json=as_json)
    except ConvMLPError as error:
        print_error(error.detail)
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        print_error(
            f"a model of the store needs {error.name}, which is not installed; install this package's extra `worker`"
        )
        raise typer.Exit(1) from None
    if run.summary.errors:
        raise typer.Exit(1)


async def _described(
    references: References, api_key: str | None, settings: Settings
) -> tuple[ComparedModel, ComparedModel]:
    first, second = [await reference.described(api_key, settings) for reference in references]
    return first, second


def _samples(source: Source, models: Sequence[ComparedModel]) -> tuple[Sequence[Sample], Truth | None]:
    """The pictures of DATA, and the truth unless there is none.

    Raises:
        DataInvalid: it cannot be read, has no pictures, or its truth is not for the models.
    """
    data = source.data
    try:
        if data.is_dir() and (source.no_truth or source.is_pictures):
            files = sorted(file for file in data.rglob("*") if is_picture(file) and file.is_file())
            samples = [Sample(file.relative_to(data).as_posix(), file, ClassTruth(())) for file in files]
            return require_pictures(data, samples), None
    except OSError as error:
        raise DataInvalid(f"{error.filename or data} cannot be read: {error.strerror}") from error
    try:
        dataset = read_dataset(
            data, models[0].task, data_format=source.data_format, images=source.images, masks=source.masks
        )
        if source.no_truth:
            return dataset.samples, None
        label_map = None if source.label_map is None else read_label_map(source.label_map)
        first, second = (class_indices(dataset, one.labels, label_map, source.ignore_label) for one in models)
    except DataInvalid as error:
        raise DataInvalid(f"{error.detail}; --no-truth takes the pictures alone") from error
    return dataset.samples, Truth(first, second)


async def _compare(
    references: References,
    models: tuple[ComparedModel, ComparedModel],
    run: Run,
    api_key: str | None,
    settings: Settings,
    advance: Callable[[], None],
) -> None:
    """Predict each picture with both models, and add it to the run. Raises ConvMLPError if a model does not answer."""
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(aclosing(reference.backend(model, api_key, settings)))
            for reference, model in zip(references, models, strict=True)
        ]
        pending = iter(run.samples)

        async def compare_pending() -> None:
            for sample in pending:
                try:
                    image = await asyncio.to_thread(read_picture, sample.path)
                    one, other = await asyncio.gather(first.predict(image), second.predict(image))
                except PICTURE_ERRORS as error:
                    run.summary.errors[sample.name] = error.detail
                else:
                    run.add(sample, one, other)
                advance()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(first.concurrency, second.concurrency)):
                    group.create_task(compare_pending())
        except ExceptionGroup as several:  # of a service that is lost, each request has an error
            raise several.exceptions[0] from None


def _write_page(file: Path, head: PageHead, summary: Summary) -> None:
    with image_progress(len(summary.worst)) as advance:
        page = comparison_page(head, summary.worst, advance)
    try:
        replace_file(file, page.encode("utf-8", "replace"), mode=0o644)
    except OSError as error:
        raise BadParameter(f"--html {file} cannot be written: {error.strerror}") from error


def _rows(run: Run) -> list[tuple[str, str]]:
    comparison, summary = run.comparison, run.summary
    rows = [("pictures", str(comparison.pictures)), ("pictures that differ", str(summary.differing))]
    rows += [(metric.name, metric.text) for metric in comparison.metrics()]
    rows += [(f"of those that differ, {name}", str(number)) for name, number in sorted(summary.nearer.items())]
    if summary.errors:
        rows.append(("pictures without results", str(len(summary.errors))))
    return rows


def _print(names: tuple[str, str], run: Run, *, as_json: bool) -> None:
    comparison, summary = run.comparison, run.summary
    for name, detail in islice(summary.errors.items(), MAX_PRINTED):
        print_error(f"{name}: {detail}")
    if as_json:
        document = {
            FIRST: names[0],
            SECOND: names[1],
            "pictures": comparison.pictures,
            "differing": summary.differing,
            "metrics": {metric.name: round(metric.value, 6) for metric in comparison.metrics()},
            "nearer": summary.nearer,
            "errors": summary.errors,
            "worst": [
                {"image": one.sample.name, "differences": one.difference.facts, "truth": one.nearer}
                for one in summary.worst
            ],
        }
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    print_table(
        [text_column("metric"), number_column("value")], _rows(run), title=f"{FIRST} {names[0]}  {SECOND} {names[1]}"
    )
    differing = [one for one in summary.worst if not one.difference.agrees][:MAX_PRINTED]
    if differing:
        typer.echo("")
        columns = [text_column("picture"), text_column("difference"), text_column("truth")]
        print_table(columns, [[one.sample.name, "; ".join(one.difference.facts), one.nearer] for one in differing])
