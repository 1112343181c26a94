"""`convmlp models pull|import|export`: put models into the store, and write them as checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.bundle import EMBEDDED_DIR, Bundle, bundle_names, find_bundle, read_bundle
from model.errors import BundleInvalid, ConvMLPError
from model.types import Task
from service.cli.console import download_progress, print_error, printable
from service.cli.flags import settings_or_exit

if TYPE_CHECKING:
    from model.zoo.catalogue import CatalogueEntry


class WeightsChoice(StrEnum):
    RAW = "raw"
    EMA = "ema"


class WeightsPrecision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


Store = Annotated[
    Path | None,
    typer.Option(
        envvar="CONVMLP_MODELS_DIR", file_okay=False, help="Folder of the models. It is created if necessary."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]


def add_store_commands(models_app: typer.Typer) -> None:
    models_app.command("pull")(pull_model)
    models_app.command("import")(import_model)
    models_app.command("export")(export_model)


def pull_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a published model, such as convmlp_s_imagenet.")],
    url: Annotated[str | None, typer.Option(help="Download this file instead of the authors' one.")] = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Download from this copy of the authors' folder of checkpoints.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="Expected SHA-256 of the file.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the downloaded checkpoint beside the model.")] = False,
    force: Force = False,
    models_dir: Store = None,
) -> None:
    """Download a pretrained model of ConvMLP's authors. A download that was interrupted resumes."""
    if url is not None and mirror is not None:
        raise typer.BadParameter("--url (a file) and --mirror (a folder of files) exclude each other")
    store = _store(models_dir)
    with _errors_to_exit():
        from model.zoo.catalogue import entry

        published = entry(name)
        if not force and _is_valid(name, store):
            typer.echo(f"{printable(name)} exists: {printable(str(store / name))}; --force downloads it again")
            return
        if mirror is not None:
            url = f"{mirror.rstrip('/')}/{published.path}"
        _print_model(_download(published, store, url or published.url, sha256, keep=keep))


def import_model(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A checkpoint: a file, an index of shards, or a folder with one.")
    ],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="Name of the new model.")],
    task: Annotated[
        Task | None, typer.Option(help="Expected task. The weights determine the task; this only checks it.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File of the class names: text with one per line, JSON, CSV, or COCO's categories."
        ),
    ] = None,
    precision: Annotated[
        WeightsPrecision, typer.Option(help="Precision of the stored weights.")
    ] = WeightsPrecision.FP32,
    weights: Annotated[
        WeightsChoice | None,
        typer.Option(
            help="Where the file has both: the trained weights (raw), or their moving average (ema, the default).",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
    models_dir: Store = None,
) -> None:
    """Convert a trainer's checkpoint into a model: PyTorch or safetensors, whole or in shards, plain or wrapped.

    No code in the file is run. The output lists what the import chose: weights, pipeline and labels.
    """
    store = _store(models_dir)
    with _errors_to_exit():
        if not force and name in bundle_names(store):
            folder = find_bundle(name, store)
            where = "embedded" if folder.parent == EMBEDDED_DIR else f"in {store}"
            raise BundleInvalid(f"model {name} exists already, {where}; --force replaces it in {store}")
        from model.zoo.class_names import read_class_names
        from model.zoo.importer import import_checkpoint

        notes: list[str] = []
        bundle = import_checkpoint(
            file,
            store,
            name,
            task=task,
            labels=None if labels is None else read_class_names(labels),
            precision=precision.value,
            weights=None if weights is None else weights.value,
            on_note=notes.append,
        )
        _print_model(bundle)
        for note in notes:
            typer.echo(printable(f"  {note}"))


def export_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")],
    file: Annotated[Path, typer.Argument(metavar="FILE.pth", help="The checkpoint to write.")],
    force: Force = False,
    models_dir: Store = None,
) -> None:
    """Write a model as a checkpoint with the authors' parameter names, in their toolboxes' format."""
    store = settings_or_exit(models_dir=models_dir).models_dir
    with _errors_to_exit():
        bundle = read_bundle(find_bundle(name, store))
        if file.exists() and not force:
            raise BundleInvalid(f"{file} exists already; --force overwrites it")
        from model.zoo.export import export_checkpoint

        export_checkpoint(bundle, file)
        typer.echo(printable(f"{name} -> {file}"))


def _download(published: CatalogueEntry, store: Path, url: str, sha256: str | None, *, keep: bool) -> Bundle:
    from model.zoo.checkpoint_file import MAX_BYTES
    from model.zoo.download import ExpectedHash, TrustedHashes, download
    from model.zoo.importer import import_checkpoint

    trusted = TrustedHashes(store / "hashes.json")
    expected = ExpectedHash.given(sha256) if sha256 is not None else trusted.get(url)
    file = store / f"{published.name}.pth"
    with download_progress(file.name) as display:
        found = download(
            url,
            file,
            max_bytes=MAX_BYTES,
            progress=display.progress,
            on_retry=display.notice,
            expected=expected,
        )
    try:
        bundle = import_checkpoint(file, store, published.name)
        trusted.record(url, found)  # only now: the hash of a wrong file must not be the expected one from now on
    finally:
        if not keep:
            file.unlink(missing_ok=True)
    return bundle


def _store(models_dir: Path | None) -> Path:
    store = settings_or_exit(models_dir=models_dir).models_dir
    if store is None:
        print_error("set the folder of the models: --models-dir DIR, CONVMLP_MODELS_DIR, or models_dir in convmlp.toml")
        raise typer.Exit(2)
    return store


def _is_valid(name: str, store: Path) -> bool:
    if name not in bundle_names(store):
        return False
    try:
        read_bundle(find_bundle(name, store))
    except BundleInvalid as error:
        print_error(f"{error.detail}; it is downloaded again")
        return False
    return True


def _print_model(bundle: Bundle) -> None:
    config = bundle.config
    facts = [
        config.task.value,
        f"{config.architecture.family} {config.architecture.backbone.size}",
        f"{len(config.labels)} labels",
        f"{bundle.weights_path.stat().st_size / 1e6:.1f} MB",
    ]
    typer.echo(printable(f"{config.name}: {', '.join(facts)} -> {bundle.folder}"))


@contextmanager
def _errors_to_exit() -> Iterator[None]:
    """Turns errors into a message and exit status 1."""
    try:
        yield
    except ConvMLPError as error:
        print_error(error.detail)
    except ModuleNotFoundError as error:
        print_error(f"this command needs {error.name}, which is not installed; install this package's extra `worker`")
    except BrokenPipeError:  # typer ends the command quietly when a reader such as `head` closes the pipe
        raise
    except OSError as error:
        print_error(f"{error.filename or 'the store'} cannot be written: {error.strerror}")
    else:
        return
    raise typer.Exit(1)
