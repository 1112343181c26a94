"""`convmlp train custom`: a model for data of one's own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from model.bundle import Bundle, Source, find_bundle, read_bundle
from model.model_name import EXPECTED_NAME, canonical_name, is_name
from model.types import Task
from service.cli.console import image_progress, print_error, print_output
from service.cli.evaluation import IgnoreLabel, Images, MapFile
from service.cli.flags import settings_or_exit
from service.cli.model_store import ModelsDir
from service.cli.train_errors import refuse, train_errors_to_exit

Data = Annotated[
    Path,
    typer.Option(
        exists=True,
        help="A folder of pictures for each class; CSV of path and label; COCO's instances JSON; or folders of images "
        "and masks. Folders `train` and `val` of these, or --validation, have the pictures that are held out.",
    ),
]
Name = Annotated[str, typer.Option("--as", metavar="NAME", help="Name of the model.")]
Out = Annotated[
    Path, typer.Option(file_okay=False, help="Folder for checkpoint, log and bundles/NAME. A training there resumes.")
]
ForTask = Annotated[Task | None, typer.Option(help="Default: by the kind of the data.", show_default=False)]
Validation = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        help="Data to measure and calibrate with. Default: every fifth picture of a class.",
        show_default=False,
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Class names in the order of the model's classes. Default: the data's.",
    ),
]
StartFrom = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="MODEL",
        help="Model of the store to start from: of the task, with its heads, or a classifier, whose backbone is taken.",
    ),
]
Backbone = Annotated[
    str | None, typer.Option(metavar="NAME", help="From scratch: convmlp, hire_mlp, repmlpnet, cmt or hvt.")
]
Size = Annotated[str, typer.Option(help="Size of --backbone: tiny, or a published one.")]
InputSize = Annotated[
    int | None,
    typer.Option(min=32, max=1024, help="Inputs in pixels: a classifier's square; of others the shorter side."),
]
Epochs = Annotated[int | None, typer.Option(min=1, help="Length of the training. Default: the recipe's.")]
Rate = Annotated[
    float | None, typer.Option(min=0, max=1, help="Peak learning rate. Default: the recipe's.", show_default=False)
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all.")]
StopAfter = Annotated[int | None, typer.Option(min=0, metavar="STEPS", help="Stop after this total number of steps.")]


def train_custom(
    data: Data,
    name: Name,
    out: Out,
    task: ForTask = None,
    validation: Validation = None,
    images: Images = None,
    labels: Labels = None,
    label_map: MapFile = None,
    ignore_label: IgnoreLabel = 255,
    start_from: StartFrom = None,
    models_dir: ModelsDir = None,
    backbone: Backbone = None,
    size: Size = "tiny",
    input_size: InputSize = None,
    learning_rate: Rate = None,
    epochs: Epochs = None,
    threads: Threads = None,
    stop_after: StopAfter = None,
) -> None:
    """Train a classifier, detector or segmenter on pictures of your own, from scratch or from a model that you have.

    The result is a model like any other, for `serve`, `classify --local`, `eval`, `models verify` and `export`, with
    --models-dir OUT/bundles. Its figures are of the pictures that were held out.
    """
    if not is_name(name):
        refuse(f"--as {name!r} is not a valid model name; {EXPECTED_NAME}")
    if start_from is not None and backbone is not None:
        refuse("--from and --backbone exclude each other: a model to start from has a backbone")
    if backbone is None and size != "tiny":
        refuse(f"--size {size} needs --backbone")
    store = settings_or_exit(models_dir=models_dir).models_dir
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with train_errors_to_exit():
        import torch

        from model.training.custom import custom_recipe, memory_side
        from model.training.train import TrainingData, train_on
        from model.training.variants import find_variant
        from model.zoo.class_names import read_class_names
        from service.evaluation.label_matching import class_indices, read_label_map
        from service.evaluation.training_data import class_names, every_fifth, parts_of, records_of, task_of

        start = _bundle(start_from, store)
        task = task_of(data) if task is None else task
        learn, held_out = parts_of(data, task, images, validation)
        # A name that cannot be served is refused before the pictures are read.
        variant = None if backbone is None else find_variant(backbone, size)
        custom_recipe(task, name, 1, variant=variant, start=start, input_side=input_size)
        with image_progress(len(learn.samples)) as advance:
            found = class_names(learn, task, advance) if labels is None else tuple(read_class_names(labels))
        given = None if label_map is None else read_label_map(label_map)
        indices = class_indices(learn, found, given, ignore_label)
        with image_progress(len(learn.samples)) as advance:
            records = records_of(learn, indices, fold=1, advance=advance)
        if held_out is None:
            learned, measured = every_fifth(records)
            part = "every fifth picture of a class of"
        else:
            with image_progress(len(held_out.samples)) as advance:
                measured = records_of(
                    held_out, class_indices(held_out, found, given, ignore_label), fold=0, advance=advance
                )
            learned, part = records, "the validation pictures of"
        recipe = custom_recipe(
            *(task, name, len(learned)),
            variant=variant,
            start=start,
            input_side=input_size,
            learning_rate=learning_rate,
        )
        if threads is not None:
            torch.set_num_threads(threads)
        is_backbone = start is not None and start.config.task is not task
        bundle = train_on(
            TrainingData(
                found,
                learned,
                measured,
                _source(start, data),
                f"{len(measured)} pictures: {part} {data.name}; they were held out of the training, and used to "
                "calibrate the scores",
                memory_side(recipe),
            ),
            recipe,
            out,
            name,
            backbone_from=start.folder if start is not None and is_backbone else None,
            start_from=start.folder if start is not None and not is_backbone else None,
            epochs=epochs,
            stop_after=stop_after,
        )
    assert bundle.config.accuracy is not None
    print_output(f"wrote {bundle.folder}: {bundle.config.accuracy.metrics}")
    print_error(f"next: convmlp models verify {name} --models-dir {bundle.folder.parent}")


def _bundle(name: str | None, store: Path | None) -> Bundle | None:
    """Raises BundleInvalid: the store does not have the model."""
    if name is None:
        return None
    return read_bundle(find_bundle(canonical_name(name), store))


def _source(start: Bundle | None, data: Path) -> Source:
    """Weights that started from others have their licence, too."""
    if start is None:
        return Source(
            description=f"trained from scratch on {data.name} by `convmlp train custom`",
            url="",
            licence="unknown",
            attribution="",
        )
    source = start.config.source
    description = f"trained on {data.name} by `convmlp train custom`, from {start.config.name}: {source.description}"
    return source.model_copy(update={"description": description})
