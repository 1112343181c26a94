"""`convmlp compare A B DATA`: where two models, or two precisions of a model, differ."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from convmlp_client.results import Result
from model.errors import ConvMLPError, ImageTooLarge, ImageUndecodable, NotFinite, UnsupportedFormat
from model.files import replace_file
from service.cli.backends import Backend, NoAnswer
from service.cli.console import image_progress, number_column, print_error, print_output, print_table, text_column
from service.cli.evaluation import DATA, Format, IgnoreLabel, Images, MapFile, Masks
from service.cli.flags import settings_or_exit
from service.cli.model_reference import ModelReference
from service.cli.model_store import ModelsDir
from service.cli.options import OUTPUT, ApiKey
from service.errors import BadParameter
from service.evaluation.comparison import FIRST, SECOND, ComparedPicture, Comparison, Summary, comparison_for
from service.evaluation.comparison_page import PageHead, comparison_page
from service.evaluation.dataset import (
    ClassTruth,
    DataFormat,
    DataInvalid,
    Dataset,
    Sample,
    is_picture,
    require_pictures,
)
from service.evaluation.formats import read_dataset
from service.evaluation.label_matching import class_indices, read_label_map
from service.evaluation.predictions import Manifest, ModelIdentity, PredictionLog, open_log, read_picture
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
Out = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        help="Folder for both models' predictions. A run that was stopped continues from there.",
        rich_help_panel=OUTPUT,
    ),
]
MaxPictures = Annotated[int, typer.Option(min=1, max=500, help="Pictures of the page.", rich_help_panel=OUTPUT)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.", rich_help_panel=OUTPUT)]


References = tuple[ModelReference, ModelReference]
Identities = tuple[ModelIdentity, ModelIdentity]
Logs = tuple[PredictionLog, PredictionLog]


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
    """The pictures to compare, and what was found. `logs`: of each model's predictions, where they are kept."""

    samples: Sequence[Sample]
    truth: Truth | None
    comparison: Comparison
    summary: Summary
    logs: Logs | None

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
    out: Out = None,
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
        models = asyncio.run(_identities(references, api_key, settings))
        if models[0].task is not models[1].task:
            tasks = " and ".join(
                f"{one.text} is for {model.task.value}" for one, model in zip(references, models, strict=True)
            )
            raise BadParameter(f"{tasks}; expected two models of one task")
        dataset, truth = _dataset(source, models)
        with ExitStack() as stack:
            run = Run(
                dataset.samples,
                truth,
                comparison_for(models[0].task, models[0].labels, models[1].labels),
                Summary(max_pictures),
                None if out is None else _logs(out, dataset, references, models, stack),
            )
            with image_progress(len(run.samples)) as advance:
                asyncio.run(_compare(references, models, run, api_key, settings, advance))
        if html is not None:
            palettes = models[0].palette, models[1].palette
            _write_page(html, PageHead(first, second, str(data), _rows(run), palettes), run.summary)
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


async def _identities(references: References, api_key: str | None, settings: Settings) -> Identities:
    first, second = [await reference.identity(api_key, settings) for reference in references]
    return first, second


def _logs(out: Path, dataset: Dataset, references: References, models: Identities, stack: ExitStack) -> Logs:
    """Those of `out`, a folder for each model. Raises DataInvalid: as `open_log`."""
    with image_progress(len(dataset.samples)) as advance:
        data_sha256 = dataset.sha256(advance)
    first, second = [
        stack.enter_context(open_log(out / name, Manifest.of(model, dataset, data_sha256, reference.parameters(model))))
        for name, reference, model in zip((FIRST, SECOND), references, models, strict=True)
    ]
    before = sum(sample.name in first.done and sample.name in second.done for sample in dataset.samples)
    if before:
        print_error(f"{before} of {len(dataset.samples)} pictures were predicted before")
    return first, second


def _dataset(source: Source, models: Identities) -> tuple[Dataset, Truth | None]:
    """The pictures of DATA, and the truth unless there is none.

    Raises:
        DataInvalid: it cannot be read, has no pictures, or its truth is not for the models.
    """
    data = source.data
    try:
        if data.is_dir() and (source.no_truth or source.is_pictures):
            files = sorted(file for file in data.rglob("*") if is_picture(file) and file.is_file())
            samples = [Sample(file.relative_to(data).as_posix(), file, ClassTruth(())) for file in files]
            return Dataset(data, DataFormat.FOLDERS, (), require_pictures(data, samples)), None
    except OSError as error:
        raise DataInvalid(f"{error.filename or data} cannot be read: {error.strerror}") from error
    try:
        dataset = read_dataset(
            data, models[0].task, data_format=source.data_format, images=source.images, masks=source.masks
        )
        if source.no_truth:
            return dataset, None
        label_map = None if source.label_map is None else read_label_map(source.label_map)
        first, second = (class_indices(dataset, one.labels, label_map, source.ignore_label) for one in models)
    except DataInvalid as error:
        raise DataInvalid(f"{error.detail}; --no-truth takes the pictures alone") from error
    return dataset, Truth(first, second)


async def _compare(
    references: References,
    models: Identities,
    run: Run,
    api_key: str | None,
    settings: Settings,
    advance: Callable[[], None],
) -> None:
    """Predict each picture with both models, and add it to the run. Raises ConvMLPError if a model does not answer."""
    async with AsyncExitStack() as stack:
        backends = [
            await stack.enter_async_context(aclosing(reference.backend(model, api_key, settings)))
            for reference, model in zip(references, models, strict=True)
        ]
        pending = iter(run.samples)

        async def compare_pending() -> None:
            for sample in pending:
                try:
                    first, second = await _predicted(sample, backends, run.logs)
                except PICTURE_ERRORS as error:
                    run.summary.errors[sample.name] = error.detail
                else:
                    run.add(sample, first, second)
                advance()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(backend.concurrency for backend in backends)):
                    group.create_task(compare_pending())
        except ExceptionGroup as several:  # of a service that is lost, each request has an error
            error = several.exceptions[0]
            if run.logs is not None and isinstance(error, ConvMLPError):
                raise NoAnswer(f"{error.detail}; the run stopped; the same command continues it") from error
            raise error from None
    if await _identities(references, api_key, settings) != models:
        raise NoAnswer("a model changed during the run: compare again, with another --out")


async def _predicted(sample: Sample, backends: Sequence[Backend], logs: Logs | None) -> list[Result]:
    """Both results for a picture: from the logs, or else predicted and written to them. An error is not written.

    Raises ConvMLPError.
    """
    found: dict[int, Result] = {}
    for at, log in enumerate(logs or ()):
        outcome = log.outcome(sample.name) if sample.name in log.done else None
        if isinstance(outcome, Result):
            found[at] = outcome
    missing = [at for at in range(len(backends)) if at not in found]
    if missing:
        image = await asyncio.to_thread(read_picture, sample.path)

        async def predict(at: int) -> None:
            found[at] = result = await backends[at].predict(image)
            if logs is not None:
                logs[at].append(sample.name, result)

        for error in await asyncio.gather(*map(predict, missing), return_exceptions=True):
            if error is not None:
                raise error
    return [found[at] for at in range(len(backends))]


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
        print_output(json.dumps(document, indent=2, ensure_ascii=False))
        return
    print_table(
        [text_column("metric"), number_column("value")], _rows(run), title=f"{FIRST} {names[0]}  {SECOND} {names[1]}"
    )
    differing = [one for one in summary.worst if not one.difference.agrees][:MAX_PRINTED]
    if differing:
        print_output("")
        columns = [text_column("picture"), text_column("difference"), text_column("truth")]
        print_table(columns, [[one.sample.name, "; ".join(one.difference.facts), one.nearer] for one in differing])
