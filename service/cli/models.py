"""`convmlp models …`: what is in the model store, and how good it is; `store.py` has what changes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from model.bundle import EMBEDDED_DIR, Accuracy, Bundle, BundleConfig, bundle_names, find_bundle, read_bundle
from model.errors import BundleInvalid
from service.cli.store import add_store_commands
from service.cli.table import left, print_rows, right
from service.cli.words import complain, settings_or_exit

models_app = typer.Typer(no_args_is_help=True, help="The model store: the embedded models, and those of a folder.")
add_store_commands(models_app)

ModelsDir = Annotated[
    Path | None,
    typer.Option(
        envvar="CONVMLP_MODELS_DIR", exists=True, file_okay=False, help="Where more models are than the embedded ones."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one document.")]


@models_app.command("list")
def list_models(models_dir: ModelsDir = None, as_json: AsJson = False) -> None:
    """All models of the store. An unsound one is told on stderr, and the exit status is 1."""
    store = settings_or_exit(models_dir=models_dir).models_dir
    bundles: list[Bundle] = []
    names = bundle_names(store)
    for name in names:
        try:
            bundles.append(read_bundle(find_bundle(name, store)))
        except BundleInvalid as error:
            complain(error.detail)
    if as_json:
        _print_json({"models": [_description(bundle) for bundle in bundles]})
    else:
        columns = [left("name"), left("task"), left("network"), right("labels"), right("MB")]
        columns += [left("accuracy"), left("licence", max_width=16), left("place")]
        print_rows(columns, [_row(bundle) for bundle in bundles])
    if len(bundles) < len(names):
        raise typer.Exit(1)


@models_app.command("show")
def show_model(name: str, models_dir: ModelsDir = None, as_json: AsJson = False) -> None:
    """One model: network, labels, pipelines, where it comes from, and how good it was measured to be."""
    store = settings_or_exit(models_dir=models_dir).models_dir
    try:
        bundle = read_bundle(find_bundle(name, store))
    except BundleInvalid as error:
        complain(error.detail)
        raise typer.Exit(1) from None
    if as_json:
        _print_json(_description(bundle))
        return
    config = bundle.config
    print_rows(
        [left(""), left("")],
        [
            ["name", config.name],
            ["task", config.task.value],
            ["network", _network(config)],
            ["weights", f"{_megabytes(bundle)} MB, {config.precision}, sha256 {config.weights_sha256}"],
            ["input", _words(config.preprocessing.model_dump())],
            ["output", _words(config.postprocessing.model_dump(exclude={"task"})) or "-"],
            ["accuracy", _accuracy(config.accuracy)],
            ["measured on", config.accuracy.measured_on if config.accuracy else "-"],
            ["source", f"{config.source.description} {config.source.url}".strip()],
            ["licence", config.source.licence],
            ["attribution", config.source.attribution or "-"],
            ["place", _place(bundle)],
            [f"{len(config.labels)} labels", ", ".join(config.labels)],
        ],
        wrap=True,
    )


def _row(bundle: Bundle) -> list[str]:
    config = bundle.config
    fixed = [config.name, config.task.value, _network(config), str(len(config.labels)), _megabytes(bundle)]
    return [*fixed, _accuracy(config.accuracy), config.source.licence, _place(bundle)]


def _network(config: BundleConfig) -> str:
    return f"{config.architecture.family} {config.architecture.backbone.size}"


def _megabytes(bundle: Bundle) -> str:
    return f"{bundle.weights_path.stat().st_size / 1e6:.1f}"


def _accuracy(accuracy: Accuracy | None) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in accuracy.metrics.items()) if accuracy else "-"


def _place(bundle: Bundle) -> str:
    return "embedded" if bundle.folder.parent == EMBEDDED_DIR else str(bundle.folder)


def _words(parts: dict[str, Any]) -> str:
    return "; ".join(
        f"{name} {_words(value) if isinstance(value, dict) else value}" for name, value in parts.items()
    ).replace("_", " ")


def _description(bundle: Bundle) -> dict[str, Any]:
    """The bundle's config, without what serves only its self-check, and where it lies."""
    config = bundle.config.model_dump(mode="json", exclude={"format", "reference"})
    return {**config, "folder": str(bundle.folder)}


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
