"""`convmlp models pull|import|export`: how models come into the store and out of it."""

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
from service.cli.words import complain, plain, settings_or_exit

if TYPE_CHECKING:
    from model.zoo.catalogue import CatalogueEntry

MAX_LABELS_BYTES = 2**20


class WeightsPrecision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


Store = Annotated[
    Path | None,
    typer.Option(
        envvar="CONVMLP_MODELS_DIR", file_okay=False, help="Where the models are kept; made if it is not there."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def add_store_commands(models_app: typer.Typer) -> None:
    models_app.command("pull")(pull_model)
    models_app.command("import")(import_model)
    models_app.command("export")(export_model)


def pull_model(
    name: Annotated[str, typer.Argument(help="A published model, such as convmlp_s_imagenet.")],
    url: Annotated[str | None, typer.Option(help="Fetch the file from here instead of the authors' site.")] = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Fetch from a copy of the authors' folder of checkpoints.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="What the file's SHA-256 must be.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the authors' file beside the model made of it.")] = False,
    force: Force = False,
    models_dir: Store = None,
) -> None:
    """Fetch one of the authors' pretrained models; one that broke off goes on where it stopped."""
    if url is not None and mirror is not None:
        raise typer.BadParameter("--url names one file, --mirror a folder of them; give one of the two")
    store = _store(models_dir)
    with _told():
        from model.zoo.catalogue import entry

        published = entry(name)
        if not force and _is_sound(name, store):
            typer.echo(f"{plain(name)} is there already: {plain(str(store / name))}; --force fetches it again")
            return
        if mirror is not None:
            url = f"{mirror.rstrip('/')}/{published.path}"
        _say(_pulled(published, store, url or published.url, sha256, keep=keep))


def import_model(
    file: Annotated[Path, typer.Argument(metavar="FILE.pth", help="A checkpoint of the authors', or of your own.")],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="What the model is to be called.")],
    task: Annotated[Task | None, typer.Option(help="Only checked: the weights themselves tell what they do.")] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The classes' names, one a line, in the order of the classes.")
    ] = None,
    precision: Annotated[WeightsPrecision, typer.Option(help="Of the weights as kept.")] = WeightsPrecision.FP32,
    force: Force = False,
    models_dir: Store = None,
) -> None:
    """Make a model of a checkpoint file: a state dict, bare or as mmcv wraps it."""
    store = _store(models_dir)
    with _told():
        if not force and name in bundle_names(store):
            place = find_bundle(name, store)
            where = "embedded" if place.parent == EMBEDDED_DIR else f"in {store}"
            raise BundleInvalid(f"there is a model {name} already, {where}; --force replaces it in {store}")
        from model.zoo.importer import import_checkpoint

        names = None if labels is None else _read_labels(labels)
        _say(import_checkpoint(file, store, name, task=task, labels=names, precision=precision.value))


def export_model(
    name: str,
    file: Annotated[Path, typer.Argument(metavar="FILE.pth", help="Where to write it.")],
    force: Force = False,
    models_dir: Store = None,
) -> None:
    """Write a model as a checkpoint file with the authors' names, wrapped as their toolboxes do it."""
    store = settings_or_exit(models_dir=models_dir).models_dir
    with _told():
        bundle = read_bundle(find_bundle(name, store))
        if file.exists() and not force:
            raise BundleInvalid(f"{file} is there already; --force replaces it")
        from model.zoo.checkpoint import export_checkpoint

        export_checkpoint(bundle, file)
        typer.echo(plain(f"{name} -> {file}"))


def _pulled(published: CatalogueEntry, store: Path, url: str, sha256: str | None, *, keep: bool) -> Bundle:
    from model.zoo.checkpoint import MAX_BYTES
    from model.zoo.download import ExpectedHash, TrustedHashes, download
    from model.zoo.importer import import_checkpoint
    from service.cli.transfer import told_transfer

    trusted = TrustedHashes(store / "hashes.json")
    expected = ExpectedHash.given(sha256) if sha256 is not None else trusted.get(url)
    file = store / f"{published.name}.pth"
    with told_transfer(file.name) as transfer:
        found = download(
            url,
            file,
            max_bytes=MAX_BYTES,
            progress=transfer.progress,
            on_retry=transfer.notice,
            expected=expected,
        )
    try:
        bundle = import_checkpoint(file, store, published.name)
        trusted.record(url, found)  # only now: what is no such model must not be expected ever after
    finally:
        if not keep:
            file.unlink(missing_ok=True)
    return bundle


def _store(models_dir: Path | None) -> Path:
    store = settings_or_exit(models_dir=models_dir).models_dir
    if store is None:
        complain("say where models are to be kept: --models-dir DIR, CONVMLP_MODELS_DIR, or models_dir in convmlp.toml")
        raise typer.Exit(2)
    return store


def _is_sound(name: str, store: Path) -> bool:
    if name not in bundle_names(store):
        return False
    try:
        read_bundle(find_bundle(name, store))
    except BundleInvalid as error:
        complain(f"{error.detail}; it is fetched again")
        return False
    return True


def _read_labels(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LABELS_BYTES + 1)
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_LABELS_BYTES:
        raise BundleInvalid(f"{path} has more than {MAX_LABELS_BYTES:,} bytes; expected a name a line")
    try:
        labels = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise BundleInvalid(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    if "" in labels:
        raise BundleInvalid(f"{path}: line {labels.index('') + 1} is empty; expected a name a line")
    return labels


def _say(bundle: Bundle) -> None:
    config = bundle.config
    words = [
        config.task.value,
        f"{config.architecture.family} {config.architecture.backbone.size}",
        f"{len(config.labels)} labels",
        f"{bundle.weights_path.stat().st_size / 1e6:.1f} MB",
    ]
    typer.echo(plain(f"{config.name}: {', '.join(words)} -> {bundle.folder}"))


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong within is told in words, with exit status 1."""
    try:
        yield
    except ConvMLPError as error:
        complain(error.detail)
    except ModuleNotFoundError as error:
        complain(f"this needs {error.name}, which is not installed; install this package's extra `worker`")
    except BrokenPipeError:  # a reader that had enough, such as `head`, is the framework's to handle
        raise
    except OSError as error:
        complain(f"{error.filename or 'the store'} cannot be written: {error.strerror}")
    else:
        return
    raise typer.Exit(1)
