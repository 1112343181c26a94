"""`convmlp batch IN OUT`: scores all pictures of a folder, of shards or of an object store, into files."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.errors import ConvMLPError
from model.types import Task
from service.batch.sinks import OutputFormat
from service.cli.console import counted, print_error, print_output, printable
from service.cli.flags import settings_or_exit
from service.cli.options import Given, backend_flag, output_flag, parameter_flag, query_string, shared_flags
from service.errors import BadParameter

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from service.batch.job import Progress as JobProgress
    from service.batch.plan import Plan
    from service.batch.pool import Pool
    from service.batch.sinks import Results
    from service.batch.sources import Source

source_flag = partial(typer.Option, rich_help_panel="Source")
LINE_INTERVAL_S = 30.0
"""Between two lines of progress where stderr is no terminal."""

In = Annotated[
    str,
    typer.Argument(
        metavar="IN",
        help="A folder, a quoted glob, a text file with a path a line, a tar shard (WebDataset), a Parquet file, or a "
        "folder or object of a store: s3://BUCKET/PREFIX.",
    ),
]
Out = Annotated[
    str,
    typer.Argument(
        metavar="OUT",
        help="Folder for the results, also of a store. A run that was stopped continues from there.",
    ),
]
Tasks = Annotated[
    str | None,
    parameter_flag(
        "--task",
        metavar="TASK,…",
        help="classify, detect, segment, or several, from one decoding of each picture. Default: those of --model.",
    ),
]
Models = Annotated[
    str | None, parameter_flag("--model", metavar="NAME,…", help="Models. Default: each task's default model.")
]
ConfidenceMap = Annotated[
    bool | None, parameter_flag("--confidence-map", help="Add the confidence of each pixel, as a PNG.")
]
MaskFormat = Annotated[
    str | None, parameter_flag(metavar="FORMAT", help="Format of masks: rle, png, polygon or none. Default: rle.")
]
Format = Annotated[
    OutputFormat,
    output_flag(
        "--format",
        help="jsonl: a line for each picture; parquet: a row, with typed columns; coco: one document with all boxes "
        "and masks.",
    ),
]
EndpointUrl = Annotated[
    str | None,
    source_flag(
        envvar="AWS_ENDPOINT_URL",
        help="Of an S3-compatible store, such as http://minio:9000. Credentials and region: the AWS_… variables.",
    ),
]
ImageColumn = Annotated[
    str | None,
    source_flag(
        metavar="NAME",
        help="Parquet's column of pictures: bytes, paths, or structs of them. Default: found by its name.",
    ),
]
IdColumn = Annotated[
    str | None, source_flag(metavar="NAME", help="Parquet's column of unique ids. Default: file and row number.")
]
Precision = Annotated[
    str | None,
    backend_flag(help="exact, fp32, fp16, bf16, int8 or auto (the fastest that agrees with fp32). Default: auto."),
]
Device = Annotated[
    str | None, backend_flag(help="auto (all GPUs, or else the CPU), cpu, cuda or cuda:N. Default: auto.")
]
Processes = Annotated[
    int | None, backend_flag(min=1, max=1024, help="Processes that score. Default: one for each GPU, or 8 cores.")
]
Address = Annotated[
    str | None,
    backend_flag(
        metavar="ADDRESS",
        help="A Ray cluster that reads IN at the same paths: HOST:PORT of its head, auto on one of its nodes, or local "
        "to start Ray here. Default: processes of this machine, without Ray.",
    ),
]
BatchImages = Annotated[
    int | None, backend_flag(min=1, max=1024, help="Largest batch. Default: 8 on a CPU, 32 on a GPU.")
]
ModelsDir = Annotated[
    Path | None, backend_flag(envvar="CONVMLP_MODELS_DIR", help="Folder of models, in addition to the embedded ones.")
]


@shared_flags(
    *("top_k", "score_threshold", "max_detections", "classes", "iou_threshold", "agnostic_nms", "min_area"),
    *("threshold", "confidence_map", "tiles", "tile_overlap", "masks", "mask_format"),
    confidence_map=ConfidenceMap,
    mask_format=MaskFormat,
)
def batch(
    source: In,
    out: Out,
    *,
    tasks: Tasks = None,
    model: Models = None,
    given: Given,
    output_format: Format = OutputFormat.JSONL,
    endpoint_url: EndpointUrl = None,
    image_column: ImageColumn = None,
    id_column: IdColumn = None,
    precision: Precision = None,
    device: Device = None,
    processes: Processes = None,
    address: Address = None,
    batch_images: BatchImages = None,
    models_dir: ModelsDir = None,
) -> None:
    """Score many pictures at rest: a row for each, with the fields of the REST answer, or with its error.

    A run that was stopped or killed continues with the same command; each picture has one row in the end.
    `manifest.json` in OUT has models, parameters and counts. The exit status is 1 if a picture has an error.
    """
    if model is not None:
        given["models"] = model
    settings = settings_or_exit(precision=precision, device=device, models_dir=models_dir)
    from service.batch.plan import read_plan
    from service.batch.pool import LocalPool
    from service.batch.ray_pool import RayPool
    from service.batch.shards import ParquetColumns
    from service.batch.sources import open_source, source_name

    try:
        try:
            plan = read_plan(query_string(given), _tasks(tasks, model), settings, batch_images)
            pool = RayPool(address, processes) if address is not None else LocalPool(processes)
        except BadParameter as error:
            raise typer.BadParameter(error.detail) from None
        found = open_source(source, endpoint_url, ParquetColumns(image_column, id_column))
        sys.exit(_run(source_name(source), found, out, endpoint_url, output_format, plan, pool))
    except ConvMLPError as error:
        print_error(error.detail)
        raise typer.Exit(1) from None


def _tasks(text: str | None, model: str | None) -> list[Task]:
    """Raises typer.BadParameter."""
    if text is None:
        if model is None:
            raise typer.BadParameter(f"name a --task ({', '.join(Task)}), or a --model")
        return []
    names = text.split(",")
    if unknown := [name for name in names if name not in list(Task)]:
        raise typer.BadParameter(f"--task {printable(unknown[0])} is not one of {', '.join(Task)}")
    if len(set(names)) < len(names):
        raise typer.BadParameter(f"--task {printable(text)} has a task twice; name each once")
    return [Task(name) for name in names]


def _run(
    text: str,
    source: Source,
    out: str,
    endpoint_url: str | None,
    output_format: OutputFormat,
    plan: Plan,
    pool: Pool,
) -> int:
    """The exit status. Raises ConvMLPError."""
    from service.batch.coco import require_coco
    from service.batch.job import Job, finish
    from service.batch.manifest import JobEntry
    from service.batch.pool import Stopped
    from service.batch.sinks import open_results
    from service.batch.storage import require_pyarrow

    job = JobEntry.of(text, output_format.value, plan, source.columns.image, source.columns.id)
    try:
        if output_format is OutputFormat.COCO:
            require_coco(job)
    except BadParameter as error:
        raise typer.BadParameter(error.detail) from None
    if output_format is OutputFormat.PARQUET:
        require_pyarrow("--format parquet")
    with ExitStack() as stack:
        results = stack.enter_context(open_results(out, job, endpoint_url))
        manifest = results.manifest
        retried = manifest.transient_errors if manifest.finished else 0
        if manifest.finished and not retried and manifest.listing_sha256 == source.sha256:
            print_error(f"all {manifest.pictures} pictures were scored before; {out} has their results")
            return 1 if manifest.errors else 0
        stopped = stack.enter_context(_signals())
        stack.enter_context(closing(pool))
        if results.done:
            again = f"; {retried} had an error that may pass, and are scored again" if retried else ""
            print_error(f"{len(results.done)} pictures were scored before{again}")
        complete = False
        with suppress(Stopped):
            precisions = pool.start(plan.with_precisions(manifest.job.precisions), lambda: bool(stopped))
            results.begin(precisions, pool.devices)
            with _progress(len(results.done)) as progress:
                complete = Job(source, results, pool, progress).run(lambda: bool(stopped))
        pool.close()
        if not complete:
            print_error(
                f"stopped; {len(results.done)} pictures have rows in {out}; the same command goes on from there"
            )
            return 128 + stopped[0]
        finish(plan, source, results)
        _print_summary(results)
        return 1 if results.errors else 0


def _print_summary(results: Results) -> None:
    errors = results.errors
    failed = ", ".join(f"{count} {code}" for code, count in errors.most_common())
    print_output(
        printable(
            f"{counted(len(results.done), 'picture')} -> {results.folder}"
            + (f"; {counted(errors.total(), 'error')}: {failed}" if errors else "")
        )
    )
    if results.repeats:
        print_error(f"{results.repeats} pictures were left out, because others have their ids")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The numbers of the signals SIGINT and SIGTERM that arrived. A second one ends the process at once."""
    arrived: list[int] = []

    def stop(number: int, _: object) -> None:
        arrived.append(number)
        signal.signal(number, signal.SIG_DFL)

    before: dict[int, Any] = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield arrived
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def _progress(done: int) -> Iterator[JobProgress]:
    """A bar with rate and time left on a terminal, else a line from time to time; both on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _Lines(done)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[errors]}"), console=console, redirect_stdout=False) as bar:
        yield _Bar(bar, bar.add_task("", total=None, completed=done, rate="", errors=""))


class _Bar:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar = bar
        self._task = task

    def update(self, done: int, total: int | None, errors: int) -> None:
        speed = self._bar.tasks[0].speed
        self._bar.update(
            self._task,
            completed=done,
            total=total,
            rate="" if speed is None else f"{speed:.1f}/s",
            errors=counted(errors, "error") if errors else "",
        )


class _Lines:
    """A line each LINE_INTERVAL_S."""

    def __init__(self, done: int) -> None:
        self._last = (time.monotonic(), done)

    def update(self, done: int, total: int | None, errors: int) -> None:
        before_s, before = self._last
        now_s = time.monotonic()
        if now_s - before_s < LINE_INTERVAL_S:
            return
        self._last = (now_s, done)
        rate = (done - before) / (now_s - before_s)
        of_total = f" of {total}" if total is not None else ""
        left = f", {_duration((total - done) / rate)} left" if total is not None and rate else ""
        failed = f", {counted(errors, 'error')}" if errors else ""
        print_error(f"{done}{of_total} pictures, {rate:.1f}/s{left}{failed}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
