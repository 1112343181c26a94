"""`convmlp train …`: the recipe that made the embedded models, and the figures of what it made."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from model.bundle import EMBEDDED_DIR
from model.errors import ConvMLPError
from service.cli.table import left, print_rows, right
from service.cli.words import complain

train_app = typer.Typer(
    no_args_is_help=True,
    help="Train the embedded models on the Oxford-IIIT Pet photographs: breed first, then heads and outline from it.",
)

Data = Annotated[
    Path, typer.Option(exists=True, file_okay=False, help="The photographs: index.csv, images/ and masks/.")
]
Out = Annotated[
    Path, typer.Option(file_okay=False, help="Gets checkpoints, log and bundles. A training found there goes on.")
]
Backbone = Annotated[
    Path | None,
    typer.Option(metavar="BUNDLE", help="The breed model to start from, if not the one in --out."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads, if not all.")]
StopAfter = Annotated[int | None, typer.Option(min=0, metavar="STEPS", help="Stop after so many steps in all.")]

# torch is imported by the commands themselves, so that the command line starts without it.


@train_app.command("breed")
def train_breed(data: Data, out: Out, threads: Threads = None, stop_after: StopAfter = None) -> None:
    """The classifier of 37 breeds; its backbone learns from heads and outlines as well."""
    _train("breed", data, out, None, threads, stop_after)


@train_app.command("heads")
def train_heads(
    data: Data, out: Out, backbone_from: Backbone = None, threads: Threads = None, stop_after: StopAfter = None
) -> None:
    """The detector of heads, from the breed model's backbone."""
    _train("heads", data, out, _breed_bundle(out, backbone_from), threads, stop_after)


@train_app.command("outline")
def train_outline(
    data: Data, out: Out, backbone_from: Backbone = None, threads: Threads = None, stop_after: StopAfter = None
) -> None:
    """The model of outlines, from the breed model's backbone."""
    _train("outline", data, out, _breed_bundle(out, backbone_from), threads, stop_after)


@train_app.command("evaluate")
def evaluate(
    data: Data,
    bundles: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder of bundles.", show_default="the embedded bundles")
    ] = EMBEDDED_DIR,
    picture: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Draw there which breeds are taken for which (PNG or JPEG).")
    ] = None,
) -> None:
    """Measure bundles on the held-out photographs, through the whole path that serves them."""
    from model.training.report import report

    with _told():
        rows = [
            [name, figure, f"{value:.4f}"]
            for name, figures in report(data, bundles, picture).items()
            for figure, value in figures.items()
        ]
    print_rows([left("model"), left("figure"), right("value")], rows)


def _train(
    course: str, data: Path, out: Path, backbone_from: Path | None, threads: int | None, stop_after: int | None
) -> None:
    import torch

    from model.training.recipes import PetsModel
    from model.training.train import train

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if threads is not None:
        torch.set_num_threads(threads)
    command = f"convmlp train {course} --data DIR --out DIR"
    with _told():
        bundle = train(
            PetsModel(course), data, out, backbone_from=backbone_from, stop_after=stop_after, command=command
        )
    assert bundle.config.accuracy is not None
    typer.echo(f"wrote {bundle.folder}: {bundle.config.accuracy.metrics}")


def _breed_bundle(out: Path, given: Path | None) -> Path:
    """Raises typer.Exit with status 2, after saying so, where there is none."""
    found = given if given is not None else out / "bundles" / "convmlp_pets_breed"
    if not (found / "config.json").is_file():
        complain(f"no breed model in {found}; run `convmlp train breed` first, or name one by --backbone-from")
        raise typer.Exit(2)
    return found


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong with data, bundles or weights is said in a line, and the exit status is 1."""
    try:
        yield
    except ConvMLPError as error:
        complain(error.detail)
        raise typer.Exit(1) from None
    except (OSError, ValueError, FloatingPointError) as error:
        complain(str(error))
        raise typer.Exit(1) from None
