"""`convmlp models pull|export|verify|quantize`: put models into the store, write them as files, and check them."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from model.bundle import Bundle, bundle_names, find_bundle, read_bundle
from model.errors import BundleInvalid
from model.model_name import base_name, canonical_name
from service.cli.console import download_progress, print_error, print_output, printable
from service.cli.flags import settings_or_exit
from service.cli.model_import import import_model
from service.cli.model_quantise import quantise_model
from service.cli.model_store import Force, ModelsDir, Store, errors_to_exit, print_model, store_or_exit


class ExportFormat(StrEnum):
    CHECKPOINT = "checkpoint"
    ONNX = "onnx"

    @classmethod
    def of(cls, file: Path) -> ExportFormat:
        """The format that a file's name stands for."""
        return cls.ONNX if file.suffix.lower() == ".onnx" else cls.CHECKPOINT


def add_store_commands(models_app: typer.Typer) -> None:
    models_app.command("pull")(pull_model)
    models_app.command("import")(import_model)
    models_app.command("export")(export_model)
    models_app.command("verify")(verify_model)
    models_app.command("quantize")(quantise_model)


def pull_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Name of a published model, such as convmlp_s_imagenet; with @VERSION it is stored as that version.",
        ),
    ],
    url: Annotated[str | None, typer.Option(help="Download this file instead of the authors' one.")] = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Download from this copy of the authors' folder of checkpoints.")
    ] = None,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="Expected SHA-256 of the file.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the downloaded checkpoint beside the model.")] = False,
    force: Force = False,
    models_dir: Store = None,
) -> None:
    """Download a published model from its authors. A download that was interrupted resumes."""
    if url is not None and mirror is not None:
        raise typer.BadParameter("--url (a file) and --mirror (a folder of files) exclude each other")
    store = store_or_exit(models_dir)
    with errors_to_exit():
        from model.zoo.catalogue import entry

        published, name = entry(base_name(name)), canonical_name(name)
        if not force and _is_valid(name, store):
            print_output(f"{printable(name)} exists: {printable(str(store / name))}; --force downloads it again")
            return
        if mirror is not None:
            url = f"{mirror.rstrip('/')}/{published.path}"
        print_model(_download(name, store, url or published.url, sha256, keep=keep))


def export_model(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="Name of the model.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write, such as NAME.pth or NAME.onnx.")],
    file_format: Annotated[
        ExportFormat | None, typer.Option("--format", help="Format of the file; by default that of its suffix.")
    ] = None,
    force: Force = False,
    models_dir: ModelsDir = None,
) -> None:
    """Write a model as a checkpoint or as an ONNX file.

    checkpoint: with the authors' parameter names, in their toolboxes' format. `models import` reads it back.

    onnx: from pixels to answers, for ONNX Runtime and others; checked with ONNX Runtime before it is written. It takes
    the extra `onnx`.
    """
    store = settings_or_exit(models_dir=models_dir).models_dir
    with errors_to_exit():
        bundle = read_bundle(find_bundle(name, store))
        if file.exists() and not force:
            raise BundleInvalid(f"{file} exists already; --force overwrites it")
        if not file.parent.is_dir():
            raise BundleInvalid(f"{file} cannot be written: there is no folder {file.parent}")
        if file.suffix.lower() == ".safetensors" and file_format is None:
            raise BundleInvalid(
                f"{file}: export writes PyTorch's format or ONNX; expected a name such as NAME.pth or NAME.onnx. "
                f"The model's own weights are safetensors already: {bundle.weights_path}"
            )
        if (file_format or ExportFormat.of(file)) is ExportFormat.ONNX:
            _export_onnx(bundle, file)
            return
        from model.zoo.export import export_checkpoint

        export_checkpoint(bundle, file)
        print_output(printable(f"{name} -> {file}"))


def _export_onnx(bundle: Bundle, file: Path) -> None:
    from model.onnx.export import export_onnx

    differences = export_onnx(bundle, file)
    largest = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.largest.items())
    print_output(printable(f"{bundle.config.name} -> {file}"))
    print_output(f"  checked with ONNX Runtime; largest differences: {largest or 'none, nothing is found'}")


def verify_model(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="Name of the model.")],
    models_dir: ModelsDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Check a model before it serves: files, labels, pipeline, weights, reference answer, precisions.

    One line for each check. Exit status: 0 it can serve; 1 a check failed, or there is no such model.
    """
    store = settings_or_exit(models_dir=models_dir).models_dir
    with errors_to_exit():
        folder = find_bundle(name, store)
        from model.predictor import default_device
        from model.verify import Outcome, verify_bundle

        failed = False
        for check in verify_bundle(folder, default_device()):
            failed |= check.outcome is Outcome.FAILED
            if as_json:
                print_output(json.dumps(asdict(check), ensure_ascii=False))
            else:
                print_output(printable(f"{check.outcome:<7} {check.subject:<10} {check.detail}"))
        if failed:
            raise typer.Exit(1)


def _download(name: str, store: Path, url: str, sha256: str | None, *, keep: bool) -> Bundle:
    from model.zoo.checkpoint_file import MAX_BYTES
    from model.zoo.download import ExpectedHash, TrustedHashes, download
    from model.zoo.importer import import_checkpoint

    trusted = TrustedHashes(store / "hashes.json")
    expected = ExpectedHash.given(sha256) if sha256 is not None else trusted.get(url)
    file = store / f"{name}.pth"
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
        if _is_page(file):
            raise BundleInvalid(
                f"{url} answered with a page instead of the file, as Google Drive does with large files; open the "
                f"address in a browser, save the file, and run: convmlp models import FILE --as {name}"
            )
        bundle = import_checkpoint(file, store, name)
        trusted.record(url, found)  # only now: the hash of a wrong file must not be the expected one from now on
    finally:
        if not keep:
            file.unlink(missing_ok=True)
    return bundle


def _is_page(file: Path) -> bool:
    """Whether a file is HTML: no checkpoint begins with a tag."""
    with file.open("rb") as opened:
        return opened.read(512).lstrip().startswith(b"<")


def _is_valid(name: str, store: Path) -> bool:
    if name not in bundle_names(store):
        return False
    try:
        read_bundle(find_bundle(name, store))
    except BundleInvalid as error:
        print_error(f"{error.detail}; it is downloaded again")
        return False
    return True
