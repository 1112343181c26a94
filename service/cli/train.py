"""`convmlp train …`: the recipes of the embedded models, and their evaluation."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from model.bundle import EMBEDDED_DIR
from model.errors import ConvMLPError
from service.cli.console import number_column, print_error, print_table, text_column

train_app = typer.Typer(
    no_args_is_help=True,
    help="Train the embedded models on the Oxford-IIIT Pet data set, or evaluate them. Train breed first: heads and "
    "outline start from its backbone.",
)

Data = Annotated[
    Path, typer.Option(exists=True, file_okay=False, help="Folder of the data set: index.csv, images/ and masks/.")
]
Out = Annotated[
    Path, typer.Option(file_okay=False, help="Folder for checkpoints, log and bundles. A training found there resumes.")
]
Backbone = Annotated[
    Path | None,
    typer.Option(metavar="BUNDLE", help="Bundle of the breed model to start from. Default: the one in --out."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all.")]
StopAfter = Annotated[int | None, typer.Option(min=0, metavar="STEPS", help="Stop after this total number of steps.")]

# torch is imported by the commands themselves, so that the command line starts without it.


@train_app.command("breed")
def train_breed(data: Data, out: Out, threads: Threads = None, stop_after: StopAfter = None) -> None:
    """Train the classifier of 37 breeds. Its backbone also learns from heads and outlines."""
    _train("breed", data, out, None, threads, stop_after)


@train_app.command("heads")
def train_heads(
    data: Data, out: Out, backbone_from: Backbone = None, threads: Threads = None, stop_after: StopAfter = None
) -> None:
    """Train the detector of heads, from the breed model's backbone."""
    _train("heads", data, out, _breed_bundle(out, backbone_from), threads, stop_after)


@train_app.command("outline")
def train_outline(
    data: Data, out: Out, backbone_from: Backbone = None, threads: Threads = None, stop_after: StopAfter = None
) -> None:
    """Train the segmentation of outlines, from the breed model's backbone."""
    _train("outline", data, out, _breed_bundle(out, backbone_from), threads, stop_after)


@train_app.command("evaluate")
def evaluate(
    data: Data,
    bundles: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder of bundles.", show_default="the embedded bundles")
    ] = EMBEDDED_DIR,
    picture: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="File for a picture of the confusion matrix of the breeds (PNG or JPEG)."),
    ] = None,
) -> None:
    """Measure the accuracy of bundles on held-out photographs, with the service's own pipeline."""
    from model.training.report import report

    with _errors_to_exit():
        rows = [
            [name, metric, f"{value:.4f}"]
            for name, metrics in report(data, bundles, picture).items()
            for metric, value in metrics.items()
        ]
    print_table([text_column("model"), text_column("metric"), number_column("value")], rows)


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
    with _errors_to_exit():
        bundle = train(
            PetsModel(course), data, out, backbone_from=backbone_from, stop_after=stop_after, command=command
        )
    assert bundle.config.accuracy is not None
    typer.echo(f"wrote {bundle.folder}: {bundle.config.accuracy.metrics}")


def _breed_bundle(out: Path, given: Path | None) -> Path:
    """Raises typer.Exit with status 2, after an error message, if there is none."""
    found = given if given is not None else out / "bundles" / "convmlp_pets_breed"
    if not (found / "config.json").is_file():
        print_error(f"no breed model in {found}; run `convmlp train breed` first, or set --backbone-from")
        raise typer.Exit(2)
    return found


@contextmanager
def _errors_to_exit() -> Iterator[None]:
    """Turns errors of data, bundles or weights into a message and exit status 1."""
    try:
        yield
    except ConvMLPError as error:
        print_error(error.detail)
        raise typer.Exit(1) from None
    except (OSError, ValueError, FloatingPointError) as error:
        print_error(str(error))
        raise typer.Exit(1) from None
