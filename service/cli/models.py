"""`convmlp models list|show`: the models of the store.

`store.py` has the commands that change it, `model_control.py` those that change what a service serves.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.bundle import EMBEDDED_DIR, Accuracy, Bundle, Quantisation, bundle_names, find_bundle, read_bundle
from model.errors import BundleInvalid
from service.cli.console import number_column, print_error, print_output, print_table, text_column
from service.cli.flags import settings_or_exit
from service.cli.model_control import add_control_commands
from service.cli.model_store import ModelsDir
from service.cli.store import add_store_commands

if TYPE_CHECKING:
    from model.zoo.catalogue_entry import CatalogueEntry

models_app = typer.Typer(
    no_args_is_help=True,
    help="Manage the model store (the embedded models, and a folder of further ones), and the models of a service.",
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@models_app.command("list")
def list_models(
    models_dir: ModelsDir = None,
    available: Annotated[
        bool, typer.Option("--available", help="List the published models that can be pulled or imported by name.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the models: task, network, size, accuracy. `models show` and --json have more.

    A damaged model is reported on stderr, and the exit status is 1.
    """
    if available:
        _list_available(as_json=as_json)
        return
    store = settings_or_exit(models_dir=models_dir).models_dir
    bundles: list[Bundle] = []
    names = bundle_names(store)
    for name in names:
        try:
            bundles.append(read_bundle(find_bundle(name, store)))
        except BundleInvalid as error:
            print_error(error.detail)
    if as_json:
        _print_json({"models": [_description(bundle) for bundle in bundles]})
    else:
        columns = [text_column("name"), text_column("task"), text_column("network"), number_column("MB")]
        print_table([*columns, text_column("accuracy")], [_row(bundle) for bundle in bundles])
    if len(bundles) < len(names):
        raise typer.Exit(1)


@models_app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="Name of the model.")],
    models_dir: ModelsDir = None,
    as_json: AsJson = False,
) -> None:
    """Show one model: network, labels, pre- and postprocessing, accuracy, source and licence."""
    store = settings_or_exit(models_dir=models_dir).models_dir
    try:
        bundle = read_bundle(find_bundle(name, store))
    except BundleInvalid as error:
        print_error(error.detail)
        raise typer.Exit(1) from None
    if as_json:
        _print_json(_description(bundle))
        return
    config = bundle.config
    print_table(
        [text_column(""), text_column("")],
        [
            ["name", config.name],
            ["task", config.task.value],
            ["network", config.architecture.title],
            ["weights", f"{_megabytes(bundle)} MB, {config.precision}, sha256 {config.weights_sha256}"],
            ["preprocessing", _readable(config.preprocessing.model_dump())],
            ["postprocessing", _readable(config.postprocessing.model_dump(exclude={"task"})) or "-"],
            ["accuracy", _accuracy(config.accuracy)],
            *([] if config.quantisation is None else [["quantisation", _quantisation(config.quantisation)]]),
            ["measured on", _measured_on(config.accuracy)],
            ["source", f"{config.source.description} {config.source.url}".strip()],
            ["licence", config.source.licence],
            ["attribution", config.source.attribution or "-"],
            ["location", _location(bundle)],
            [f"{len(config.labels)} labels", ", ".join(config.labels)],
        ],
        wrap=True,
    )


add_store_commands(models_app)
add_control_commands(models_app)


def _list_available(*, as_json: bool) -> None:
    from model.zoo.catalogue import CATALOGUE

    if as_json:
        _print_json({"models": [_published(entry) for entry in CATALOGUE.values()]})
        return
    columns = [text_column("name"), text_column("task"), text_column("accuracy")]
    print_table(
        [*columns, *map(number_column, ("parameters, M", "GMACs", "MB"))],
        [
            [
                entry.name,
                entry.task.value,
                _headline(entry.accuracy),
                f"{entry.parameters_millions:g}",
                "-" if entry.gmacs is None else f"{entry.gmacs:g}",
                f"{entry.megabytes:.0f}",
            ]
            for entry in CATALOGUE.values()
        ],
    )


def _published(entry: CatalogueEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "task": entry.task.value,
        "architecture": entry.architecture.model_dump(mode="json"),
        "size": entry.architecture.backbone.size,
        "accuracy": entry.accuracy.model_dump(mode="json"),
        "parameters_millions": entry.parameters_millions,
        "gmacs": entry.gmacs,
        "megabytes": round(entry.megabytes, 1),
        "preprocessing": entry.preprocessing.model_dump(mode="json"),
        "source": entry.source.model_dump(mode="json"),
    }


def _row(bundle: Bundle) -> list[str]:
    config = bundle.config
    network = config.architecture.title
    return [config.name, config.task.value, network, _megabytes(bundle), _headline(config.accuracy)]


def _megabytes(bundle: Bundle) -> str:
    return f"{bundle.weights_path.stat().st_size / 1e6:.1f}"


def _accuracy(accuracy: Accuracy | None) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in accuracy.metrics.items()) if accuracy else "-"


def _headline(accuracy: Accuracy | None) -> str:
    """The first of a model's figures."""
    return _accuracy(accuracy).partition(", ")[0]


def _quantisation(made: Quantisation) -> str:
    figures = ", ".join(f"{name} {value:.4f}" for name, value in made.agreement.items())
    wide = f"; {len(made.wide_layers)} others float32" if made.wide_layers else ""
    return (
        f"{made.layers} layers int8{wide}; made from {made.made_from} with {made.pictures} pictures; "
        f"agreement with its float32 answers on {made.agreement_pictures} others: {figures}"
    )


def _measured_on(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "-"
    return accuracy.measured_on + (f"; data sha256 {accuracy.data_sha256}" if accuracy.data_sha256 else "")


def _location(bundle: Bundle) -> str:
    return "embedded" if bundle.folder.parent == EMBEDDED_DIR else str(bundle.folder)


def _readable(parts: dict[str, Any]) -> str:
    return "; ".join(
        f"{name} {_readable(value) if isinstance(value, dict) else value}" for name, value in parts.items()
    ).replace("_", " ")


def _description(bundle: Bundle) -> dict[str, Any]:
    """The bundle's config without the data of its self-check, and its folder."""
    config = bundle.config.model_dump(mode="json", exclude={"format", "reference"})
    return {**config, "folder": str(bundle.folder)}


def _print_json(document: dict[str, Any]) -> None:
    print_output(json.dumps(document, indent=2, ensure_ascii=False))
