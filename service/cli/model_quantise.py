"""`convmlp models quantize`: a model of int8 weights, from one of the store and pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from model.bundle import EMBEDDED_DIR, bundle_names, find_bundle, read_bundle
from model.errors import BundleInvalid
from model.model_name import EXPECTED_NAME, base_name, canonical_name, is_name
from service.cli.console import print_output, printable
from service.cli.model_store import Force, Store, errors_to_exit, print_model, store_or_exit

MINIMUM = 0.99

Progress = Callable[[str, int, int], None]


def quantise_model(
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="Name of the model, which is not changed.")],
    pictures: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            metavar="DIR",
            help="Folder of pictures of the kind that the model will see; a hundred or more; at most 512 are read. "
            "Default: variants of the reference picture, which is enough to try it only.",
        ),
    ] = None,
    as_name: Annotated[
        str | None, typer.Option("--as", metavar="NAME[@VERSION]", help="Name of the new model. Default: NAME_int8.")
    ] = None,
    minimum: Annotated[
        float,
        typer.Option(
            "--min-agreement",
            min=0,
            max=1,
            help="The least agreement with the model's float32 answers: of the first labels (classification), AP50 "
            "(detection), mean IoU (segmentation).",
        ),
    ] = MINIMUM,
    allow: Annotated[bool, typer.Option("--allow", help="Write the model even if its answers agree less.")] = False,
    force: Force = False,
    models_dir: Store = None,
) -> None:
    """Make a model of int8 weights, which is faster on CPUs that have instructions for them.

    Half of the pictures measure the ranges of the layers' inputs, the others how far the answers agree with the
    model's float32 answers. Layers whose rounding costs too much stay float32. It needs no labels.
    """
    store = store_or_exit(models_dir)
    new_name = canonical_name(as_name or f"{base_name(canonical_name(name))}_int8")
    if not is_name(new_name):
        raise typer.BadParameter(f"{new_name!r}: {EXPECTED_NAME}", param_hint="--as")
    with errors_to_exit():
        bundle = read_bundle(find_bundle(name, store))
        if not force and new_name in bundle_names(store):
            folder = find_bundle(new_name, store)
            where = "embedded" if folder.parent == EMBEDDED_DIR else f"in {store}"
            raise BundleInvalid(f"model {new_name} exists already, {where}; --force replaces it in {store}")
        from service.worker.compute_libraries import configure_libraries

        configure_libraries()
        from model.quantisation.pictures import folder_inputs, reference_variants
        from model.quantisation.quantise import quantise

        preprocessing = bundle.config.preprocessing
        inputs = list(reference_variants(preprocessing) if pictures is None else folder_inputs(pictures, preprocessing))
        with _progress() as on_progress:
            made = quantise(bundle, inputs, store, new_name, minimum=minimum, allow=allow, on_progress=on_progress)
        print_model(made)
        found = made.config.quantisation
        assert found is not None
        figures = ", ".join(f"{figure} {value:.4f}" for figure, value in found.agreement.items())
        print_output(f"  agreement with float32: {figures}, on {found.agreement_pictures} pictures")
        wide = f"; float32: {', '.join(found.wide_layers)}" if found.wide_layers else ""
        print_output(printable(f"  int8: {found.layers} layers, ranges measured on {found.pictures} pictures{wide}"))


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar for each stage on a terminal; else a line for each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _print_stage
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, redirect_stdout=False) as bars:
        task = bars.add_task("", total=None)
        yield lambda stage, done, total: bars.update(task, description=stage, completed=done, total=total)


def _print_stage(stage: str, done: int, total: int) -> None:
    if done == total:
        typer.echo(f"{stage}: {total} done", err=True)
