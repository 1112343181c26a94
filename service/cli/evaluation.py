"""`convmlp eval --model NAME DATA`: a model's accuracy on labelled data."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from convmlp_client.results import Task as ClientTask
from convmlp_client.retry import Retries
from model.bundle import CONFIG_FILE, Bundle, find_bundle, read_bundle, require_writable, write_accuracy
from model.errors import BundleInvalid, ConvMLPError
from model.model_name import base_name, version_of
from model.postprocess.masks import MaskFormat
from model.types import Task
from service.cli.backends import Backend, LocalBackend, NoAnswer, RemoteBackend
from service.cli.console import (
    image_progress,
    number_column,
    print_error,
    print_output,
    print_table,
    printable,
    text_column,
)
from service.cli.flags import refuse_flags_of_service, settings_or_exit
from service.cli.inputs import FORMATS
from service.cli.model_identity import local_identity, served_identity
from service.cli.options import BACKEND, DEFAULT_URL, OUTPUT, PARAMETERS, ApiKey, Local, ModelsDir, Url, query_string
from service.evaluation.coco_ap import require_pycocotools
from service.evaluation.dataset import DataFormat, DataInvalid, Dataset, ObjectsTruth
from service.evaluation.figures import MAX_RANK, Figures, compute_figures
from service.evaluation.formats import read_dataset
from service.evaluation.label_matching import class_indices, read_label_map
from service.evaluation.predictions import (
    SERVICE_ERRORS,
    Manifest,
    ModelIdentity,
    PredictionLog,
    open_log,
    predict_all,
)
from service.evaluation.report import accuracy_entry, confusion_picture, metric_rows, report_json, top_confusions
from service.frontend.api.rest.query import read_query
from service.frontend.core.parameters import TOP_K
from service.settings import Settings

DATA = "Data"
"""Panel of the help."""

PATIENCE = Retries(attempts=20, backoff_limit_s=10.0, longest_wait_s=60.0)
"""An evaluation has time: it waits for a service that is at capacity."""

MAX_DETECTIONS = 100
"""As COCO evaluates."""

ALL_SCORES = "all_scores"
"""Name, among the parameters, of what only this process can predict: the labels below a model's threshold, too."""

MAX_PRINTED_ERRORS = 10

Model = Annotated[str, typer.Option("--model", metavar="NAME", help="Name of the model.", rich_help_panel=PARAMETERS)]
Data = Annotated[
    Path,
    typer.Argument(
        help="A folder with a folder of pictures for each class; CSV of path and label; COCO's instances or panoptic "
        "JSON; or a folder with the folders images and masks.",
    ),
]
Format = Annotated[
    DataFormat | None,
    typer.Option("--data-format", help="Format of DATA. Default: found by its content.", rich_help_panel=DATA),
]
Images = Annotated[
    Path | None,
    typer.Option(
        exists=True, file_okay=False, help="Folder of the pictures. Default: found beside DATA.", rich_help_panel=DATA
    ),
]
Masks = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        file_okay=False,
        help="Folder of the PNGs of COCO's panoptic JSON. Default: named as the JSON.",
        rich_help_panel=DATA,
    ),
]
MapFile = Annotated[
    Path | None,
    typer.Option(
        "--map",
        metavar="FILE",
        help="JSON object or CSV: label of the data → label or class index of the model; null or empty: left out.",
        rich_help_panel=DATA,
    ),
]
IgnoreLabel = Annotated[int, typer.Option(min=0, help="Value of mask pixels that are left out.", rich_help_panel=DATA)]
Threshold = Annotated[
    float,
    typer.Option(
        "--score-threshold",
        min=0.0,
        max=1.0,
        help="Detections up to this score are left out, as in the authors' evaluations.",
        rich_help_panel=PARAMETERS,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(help="With --local: exact, fp32, fp16, bf16 or int8. Default: exact.", rich_help_panel=BACKEND),
]
Concurrency = Annotated[
    int, typer.Option(min=1, max=256, help="Concurrent requests to the service.", rich_help_panel=BACKEND)
]
Out = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        help="Folder for the predictions. A run that was stopped continues from there.",
        rich_help_panel=OUTPUT,
    ),
]
Picture = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.png", dir_okay=False, help="Draw the confusion of a classifier.", rich_help_panel=OUTPUT
    ),
]
Write = Annotated[
    bool,
    typer.Option("--write", help="Write figures and hash of the data into the model's bundle.", rich_help_panel=OUTPUT),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.", rich_help_panel=OUTPUT)]


@dataclass(frozen=True, slots=True)
class Run:
    """What is evaluated: a model on data, with the parameters of its predictions."""

    model: ModelIdentity
    dataset: Dataset
    indices: Mapping[str, int | None]
    parameters: Mapping[str, str | int | float]

    @property
    def all_scores(self) -> bool:
        """Whether a multi-label classifier returns the scores of all classes."""
        return ALL_SCORES in self.parameters


@dataclass(frozen=True, slots=True)
class Service:
    """A running service, and how many requests it gets at once."""

    url: str
    api_key: str | None
    concurrency: int


def evaluate(
    context: typer.Context,
    data: Data,
    model: Model,
    data_format: Format = None,
    images: Images = None,
    masks: Masks = None,
    label_map: MapFile = None,
    ignore_label: IgnoreLabel = 255,
    score_threshold: Threshold = 0.05,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    local: Local = False,
    precision: Precision = None,
    concurrency: Concurrency = 8,
    models_dir: ModelsDir = None,
    out: Out = None,
    as_json: AsJson = False,
    picture: Picture = None,
    write: Write = False,
) -> None:
    """Measure a model's accuracy on labelled data, through a running service or, with --local, in this process.

    Classifiers: top-1, top-5, expected calibration error (ECE, 15 bins of equal width), confusion; multi-label: mAP and
    F1. Detectors: COCO's AP of boxes and masks. Segmenters: mIoU, pixel accuracy, IoU of each class.

    A picture that cannot be read is counted, and the exit status is 1.
    """
    if precision is not None and not local:
        raise typer.BadParameter("--precision needs --local; a service has its own")
    refuse_flags_of_service(context, local, "concurrency")
    settings = settings_or_exit(models_dir=models_dir, precision=precision)
    service = None if local else Service(url, api_key, concurrency)
    try:
        written = _bundle_to_write(model, settings) if write else None
        identity = (
            local_identity(model, settings)
            if service is None
            else asyncio.run(served_identity(model, service.url, service.api_key))
        )
        if written is not None and written.config.weights_sha256 != identity.weights_sha256:
            raise BundleInvalid(
                f"{written.folder} has other weights than the model that {url} serves; --models-dir names its store"
            )
        if picture is not None and picture.suffix.lower() not in FORMATS:
            raise typer.BadParameter(
                f"--picture {printable(str(picture))} does not end with one of {', '.join(FORMATS)}"
            )
        dataset = read_dataset(data, identity.task, data_format=data_format, images=images, masks=masks)
        if picture is not None and (identity.task is not Task.CLASSIFY or dataset.multi_label):
            raise typer.BadParameter("--picture draws the confusion of a classifier whose pictures have one label each")
        if service is not None and dataset.multi_label and identity.score_threshold is None:
            raise DataInvalid(
                f"pictures of {data} have several labels, or none, and {model} has no threshold above which a label "
                "counts; --local measures its average precision"
            )
        labels = read_label_map(label_map) if label_map is not None else None
        run = Run(
            identity,
            dataset,
            class_indices(dataset, identity.labels, labels, ignore_label),
            _parameters(identity, dataset, score_threshold, local=local),
        )
        if identity.task is Task.DETECT:
            require_pycocotools()  # before anything is predicted
        with ExitStack() as stack:
            folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="convmlp-eval-")))
            manifest, figures = _measure(run, folder, settings, service)
        _print(run, manifest, figures, as_json=as_json)
        if picture is not None and figures.confusion is not None:
            _save_picture(picture, figures, identity)
        if written is not None and figures.measured:
            bundle = write_accuracy(written, accuracy_entry(identity, dataset, manifest, figures))
            print_error(f"the figures are in {bundle.folder / CONFIG_FILE}; a service shows them once it has loaded it")
    except ConvMLPError as error:
        print_error(error.detail)
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        print_error(f"--local needs {error.name}, which is not installed; install this package's extra `worker`")
        raise typer.Exit(1) from None
    if figures.errors or not figures.measured:
        raise typer.Exit(1)


def _measure(run: Run, folder: Path, settings: Settings, service: Service | None) -> tuple[Manifest, Figures]:
    """Predict what the folder does not have yet, and compute the figures of all."""
    samples = run.dataset.samples
    with image_progress(len(samples)) as advance:
        data_sha256 = run.dataset.sha256(advance)
    manifest = Manifest.of(run.model, run.dataset, data_sha256, run.parameters)
    with open_log(folder, manifest) as log:
        if log.done:
            print_error(f"{len(log.done)} of {len(samples)} pictures were predicted before")
        pending = len(samples) - len(log.done)
        with image_progress(pending) as advance:
            try:
                if pending:
                    asyncio.run(_predict(run, log, settings, service, advance))
            except (*SERVICE_ERRORS, NoAnswer) as error:
                raise NoAnswer(f"{error.detail}; the run stopped; with --out the same command continues it") from error
        figures = compute_figures(run.dataset, run.model, log.results(), run.indices, all_scores=run.all_scores)
    return manifest, figures


async def _predict(
    run: Run, log: PredictionLog, settings: Settings, service: Service | None, advance: Callable[[], None]
) -> None:
    parameters = {name: value for name, value in run.parameters.items() if name != ALL_SCORES}
    query = read_query(run.model.task, query_string({"model": run.model.name, **parameters}))
    backend: Backend
    if service is not None:
        stopping: tuple[type[ConvMLPError], ...] = (*SERVICE_ERRORS, NoAnswer)
        backend = RemoteBackend(
            service.url,
            service.api_key,
            ClientTask(run.model.task),
            # Without a version, a share of the requests may go to other versions.
            {"model": f"{base_name(run.model.name)}@{version_of(run.model.name)}", **parameters},
            None,
            service.concurrency,
            PATIENCE,
        )
    else:
        stopping = ()
        if run.all_scores:
            query = replace(
                query, params=msgspec.structs.replace(query.params, top_k=len(run.model.labels), score_threshold=-1.0)
            )
        backend = LocalBackend(query, run.model.task, settings)
    async with aclosing(backend):
        await predict_all(
            backend.predict,
            run.dataset.samples,
            log,
            concurrency=backend.concurrency,
            stopping=stopping,
            advance=advance,
        )
    if service is not None and await served_identity(run.model.name, service.url, service.api_key) != run.model:
        raise NoAnswer(f"{service.url} changed its model during the run: evaluate again, with another --out")


def _bundle_to_write(name: str, settings: Settings) -> Bundle:
    """The bundle that `--write` changes. Raises BundleInvalid where it cannot."""
    bundle = read_bundle(find_bundle(name, settings.models_dir))
    require_writable(bundle)
    return bundle


def _parameters(
    model: ModelIdentity, dataset: Dataset, threshold: float, *, local: bool
) -> dict[str, str | int | float]:
    match model.task:
        case Task.CLASSIFY if dataset.multi_label:
            # A service returns the labels above the model's threshold only.
            return {"top_k": min(len(model.labels), TOP_K.high), **({ALL_SCORES: 1} if local else {})}
        case Task.CLASSIFY:
            return {"top_k": min(MAX_RANK, len(model.labels))}
        case Task.DETECT:
            truths = (sample.truth for sample in dataset.samples)
            masks = any(isinstance(truth, ObjectsTruth) and truth.has_masks for truth in truths)
            return {
                "score_threshold": threshold,
                "max_detections": MAX_DETECTIONS,
                "mask_format": (MaskFormat.RLE if masks else MaskFormat.NONE).value,
            }
        case Task.SEGMENT:
            return {"mask_format": MaskFormat.RLE.value}


def _print(run: Run, manifest: Manifest, figures: Figures, *, as_json: bool) -> None:
    for name, detail in islice(figures.errors.items(), MAX_PRINTED_ERRORS):
        print_error(f"{name}: {detail}")
    if as_json:
        report = report_json(run.model, run.dataset, manifest, figures)
        print_output(json.dumps(report, indent=2, ensure_ascii=False))
        return
    left_out = f", {figures.left_out} left out" if figures.left_out else ""
    failed = f", {len(figures.errors)} failed" if figures.errors else ""
    title = f"{run.model.name}  {run.model.precision}  {figures.measured} pictures{left_out}{failed}"
    print_table([text_column("metric"), number_column("value")], metric_rows(figures.metrics), title=title)
    if run.model.task is Task.CLASSIFY and figures.confusion is not None:
        columns = [text_column("truth"), text_column("answer"), number_column("pictures"), number_column("share")]
        rows = [
            [one["truth"], one["answer"], str(one["count"]), f"{one['share']:.4f}"]
            for one in top_confusions(figures.confusion, run.model.labels)
        ]
        if rows:
            print_table(columns, rows, title="most frequent confusions")
    print_output(f"data sha256 {manifest.data_sha256}")


def _save_picture(path: Path, figures: Figures, model: ModelIdentity) -> None:
    assert figures.confusion is not None
    try:
        confusion_picture(figures.confusion, model.labels).save(path)
    except (OSError, ValueError) as error:
        raise DataInvalid(f"the picture {path} cannot be written: {error}") from error
