"""`convmlp train …`: the recipes of the embedded models, and their evaluation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from model.bundle import EMBEDDED_DIR
from service.cli.console import number_column, print_output, print_table, text_column
from service.cli.train_custom import train_custom
from service.cli.train_errors import refuse, train_errors_to_exit

TINY = "tiny"

train_app = typer.Typer(
    no_args_is_help=True,
    help="Train a model on pictures of your own (custom); or the embedded models on the Oxford-IIIT Pet data set, or "
    "such models on other backbones, and evaluate them. Train breed first: heads and outline start from its backbone.",
)

Data = Annotated[
    Path, typer.Option(exists=True, file_okay=False, help="Folder of the data set: index.csv, images/ and masks/.")
]
Out = Annotated[
    Path, typer.Option(file_okay=False, help="Folder for checkpoints, log and bundles. A training found there resumes.")
]
Backbone = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="convmlp, hire_mlp, repmlpnet, cmt or hvt, for breed; convmlp or hire_mlp, for heads and outline. All are "
        "trained by one recipe. Default: the embedded model.",
    ),
]
Size = Annotated[
    str,
    typer.Option(
        help="Size of --backbone: tiny, of about two million parameters, or a published one (ConvMLP: s, m, l; "
        "Hire-MLP: ti, small, base, large; RepMLPNet: t224, …; CMT: ti, xs, s, b; HVT: ti_1, …).",
    ),
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Length of the training. Default: the recipe's.")]
BackboneFrom = Annotated[
    Path | None,
    typer.Option(metavar="BUNDLE", help="Bundle of the breed model to start from. Default: the one in --out."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all.")]
StopAfter = Annotated[int | None, typer.Option(min=0, metavar="STEPS", help="Stop after this total number of steps.")]

# torch is imported by the commands themselves, so that the command line starts without it.


@train_app.command("breed")
def train_breed(
    data: Data,
    out: Out,
    backbone: Backbone = None,
    size: Size = TINY,
    epochs: Epochs = None,
    threads: Threads = None,
    stop_after: StopAfter = None,
) -> None:
    """Train the classifier of 37 breeds. The embedded model's backbone also learns from heads and outlines."""
    _train("breed", data, out, backbone, size, None, epochs, threads, stop_after)


@train_app.command("heads")
def train_heads(
    data: Data,
    out: Out,
    backbone: Backbone = None,
    size: Size = TINY,
    backbone_from: BackboneFrom = None,
    epochs: Epochs = None,
    threads: Threads = None,
    stop_after: StopAfter = None,
) -> None:
    """Train the detector of heads, from the breed model's backbone."""
    _train("heads", data, out, backbone, size, backbone_from, epochs, threads, stop_after)


@train_app.command("outline")
def train_outline(
    data: Data,
    out: Out,
    backbone: Backbone = None,
    size: Size = TINY,
    backbone_from: BackboneFrom = None,
    epochs: Epochs = None,
    threads: Threads = None,
    stop_after: StopAfter = None,
) -> None:
    """Train the segmentation of outlines, from the breed model's backbone."""
    _train("outline", data, out, backbone, size, backbone_from, epochs, threads, stop_after)


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
    """Measure the accuracy of bundles on held-out photographs, with the service's own pipeline, and their cost.

    All bundles that these commands make are measured. `gmacs` are those of one picture;
    `images_per_cpu_second` is the network's speed in fp32, one picture at a time.
    """
    from model.training.report import report

    with train_errors_to_exit():
        rows = [
            [name, metric, f"{value:.4f}"]
            for name, metrics in report(data, bundles, picture).items()
            for metric, value in metrics.items()
        ]
    print_table([text_column("model"), text_column("metric"), number_column("value")], rows)


@train_app.command("held-out")
def held_out(
    data: Data,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for breed.csv, heads.json and outline/.")],
) -> None:
    """Write the held-out photographs' annotations as data sets for `convmlp eval`.

    The photographs stay where they are: `convmlp eval` takes --images DIR/images.
    """
    from model.training.held_out import write_held_out

    with train_errors_to_exit():
        write_held_out(data, out)
    print_output(
        f"wrote {out}; now: convmlp eval --local --model convmlp_pets_breed {out}/breed.csv --images {data}/images"
    )


def _train(
    course: str,
    data: Path,
    out: Path,
    backbone: str | None,
    size: str,
    backbone_from: Path | None,
    epochs: int | None,
    threads: int | None,
    stop_after: int | None,
) -> None:
    import torch

    from model.training.recipes import RECIPES, PetsModel
    from model.training.train import train
    from model.training.variants import find_variant, variant_recipe

    kind = PetsModel(course)
    if backbone is None and size != TINY:
        refuse(f"--size {size} needs --backbone")
    try:
        recipe = RECIPES[kind] if backbone is None else variant_recipe(kind, find_variant(backbone, size))
    except ValueError as error:
        refuse(str(error))
    command = f"convmlp train {course}"
    if backbone is not None:
        command += f" --backbone {backbone} --size {size}"
    if kind is not PetsModel.BREED and backbone_from is None:
        backbone_from = out / "bundles" / recipe.breed_name
    if backbone_from is not None and not (backbone_from / "config.json").is_file():
        first = command.replace(course, "breed")
        refuse(f"no breed model in {backbone_from}; run `{first}` first, or set --backbone-from")
    if epochs is not None:
        command += f" --epochs {epochs}"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if threads is not None:
        torch.set_num_threads(threads)
    with train_errors_to_exit():
        bundle = train(
            kind,
            data,
            out,
            backbone_from=backbone_from,
            recipe=recipe,
            epochs=epochs,
            stop_after=stop_after,
            command=f"{command} --data DIR --out DIR",
        )
    assert bundle.config.accuracy is not None
    print_output(f"wrote {bundle.folder}: {bundle.config.accuracy.metrics}")


train_app.command("custom")(train_custom)
