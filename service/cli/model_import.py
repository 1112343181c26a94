"""`convmlp models import`: a trainer's checkpoint becomes a model of the store."""

from __future__ import annotations

import re
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.bundle import EMBEDDED_DIR, bundle_names, find_bundle, read_bundle
from model.errors import BundleInvalid
from model.model_name import SEPARATOR, base_name, canonical_name, version_of, versioned_name
from model.types import Task
from model.zoo.pipeline import Pipeline, PipelineParts, grey_levels
from service.cli.console import print_output, printable
from service.cli.model_store import Force, Store, errors_to_exit, print_model, store_or_exit

if TYPE_CHECKING:
    from model.zoo.pipeline import Channels

_SIZE = re.compile(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?")


class WeightsPrecision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class WeightsChoice(StrEnum):
    RAW = "raw"
    EMA = "ema"


class Activation(StrEnum):
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class Interpolation(StrEnum):
    BICUBIC = "bicubic"
    BILINEAR = "bilinear"


def import_model(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A checkpoint: a file, an index of shards, or a folder with one.")
    ],
    name: Annotated[
        str, typer.Option("--as", metavar="NAME[@VERSION]", help="Name of the new model. Without a version: version 1.")
    ],
    version: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Version of the model: --as NAME --version 2 is --as NAME@2."),
    ] = None,
    task: Annotated[
        Task | None, typer.Option(help="Expected task. The weights determine the task; this only checks it.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File of the class names: text with one per line, JSON, CSV, or COCO's categories."
        ),
    ] = None,
    palette: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of a colour for each class: text with one per line (255,0,0 or #ff0000), JSON, or COCO's "
            "categories.",
        ),
    ] = None,
    precision: Annotated[
        WeightsPrecision | None,
        typer.Option(
            help="Precision of the stored weights. Default: as exported, or fp32 where the file is a trainer's.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        WeightsChoice | None,
        typer.Option(
            help="Where the file has both: the trained weights (raw), or their moving average (ema, the default).",
            show_default=False,
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Take the pipeline of this model: one of the store, or a published one."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Take the pipeline of this training's configuration: mmcv's or mmengine's, or timm's or transformers' "
            "JSON.",
        ),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(
            metavar="N|LONGxSHORT",
            help="Input in pixels: a classifier's square, or the bounds of the longer and the shorter side.",
        ),
    ] = None,
    keep_ratio: Annotated[
        bool | None,
        typer.Option(
            "--keep-ratio/--no-keep-ratio",
            help="Whether resizing keeps the ratio of the sides. With --no-keep-ratio, --input-size is a classifier's "
            "square, or WIDTHxHEIGHT.",
            show_default=False,
        ),
    ] = None,
    resize: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Classifiers: the shorter side after resizing, in pixels.")
    ] = None,
    crop: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Classifiers: the side of the central square, in pixels.")
    ] = None,
    interpolation: Annotated[
        Interpolation | None, typer.Option(help="Classifiers: Pillow's filter for resizing.", show_default=False)
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="Mean of the channels: 123.7,116.3,103.5, or as fractions of 255."),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="Standard deviation of the channels; with --mean, in the same unit."),
    ] = None,
    activation: Annotated[
        Activation | None,
        typer.Option(
            help="Classifiers: what makes scores; sigmoid is for multi-label ones, which return any number of labels.",
            show_default=False,
        ),
    ] = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0,
            max=1,
            help="The score above which detections or multi-label classes are returned, or pixels of a single output "
            "channel are of its class.",
        ),
    ] = None,
    force: Force = False,
    models_dir: Store = None,
) -> None:
    """Convert a trainer's checkpoint into a model: PyTorch or safetensors, whole or in shards, plain or wrapped.

    No code in the file is run. The pipeline is read from the file where the trainer stored it; flags replace its parts.
    The output lists what the import chose: pipeline, labels and weights, and where each is from.
    """
    store = store_or_exit(models_dir)
    flags = _flags(input_size, keep_ratio, resize, crop, interpolation, mean, std, score_threshold)
    flags = replace(flags, activation=None if activation is None else activation.value)
    if version is not None and SEPARATOR in name and version_of(name) != str(version):
        raise typer.BadParameter(f"--as {name} and --version {version} contradict each other; give one of them")
    name = canonical_name(name if version is None else versioned_name(base_name(name), str(version)))
    with errors_to_exit():
        if not force and name in bundle_names(store):
            folder = find_bundle(name, store)
            where = "embedded" if folder.parent == EMBEDDED_DIR else f"in {store}"
            raise BundleInvalid(f"model {name} exists already, {where}; --force replaces it in {store}")
        from model.zoo.class_names import read_class_names
        from model.zoo.importer import PipelineOptions, import_checkpoint
        from model.zoo.palette import read_palette

        notes: list[str] = []
        bundle = import_checkpoint(
            file,
            store,
            name,
            task=task,
            labels=None if labels is None else read_class_names(labels),
            palette=None if palette is None else read_palette(palette),
            precision=None if precision is None else precision.value,
            weights=None if weights is None else weights.value,
            pipeline=PipelineOptions(None if like is None else _pipeline_of(like, store), config, flags),
            on_note=notes.append,
        )
        print_model(bundle)
        for note in notes:
            print_output(printable(f"  {note}"))


def _flags(
    input_size: str | None,
    keep_ratio: bool | None,
    resize: int | None,
    crop: int | None,
    interpolation: Interpolation | None,
    mean: str | None,
    std: str | None,
    score_threshold: float | None,
) -> PipelineParts:
    """Raises typer.BadParameter: a flag's value is malformed, or two flags contradict each other."""
    if (mean is None) != (std is None):
        raise typer.BadParameter("--mean and --std belong together; give both")
    first, second = grey_levels(_channels("--mean", mean), _channels("--std", std))
    parts = PipelineParts(
        source="from the flags",
        resize=resize,
        crop=crop,
        interpolation=None if interpolation is None else interpolation.value,
        squash=None if keep_ratio is None else not keep_ratio,
        mean=first,
        std=second,
        thresholds={} if score_threshold is None else {"score_threshold": score_threshold},
    )
    if input_size is None:
        if keep_ratio is False:
            raise typer.BadParameter("--no-keep-ratio needs --input-size")
        return parts
    found = _SIZE.fullmatch(input_size)
    if found is None:
        raise typer.BadParameter(f"--input-size {input_size}: expected N, or LONGxSHORT such as 1333x800")
    if crop is not None:
        raise typer.BadParameter("--input-size and --crop exclude each other")
    if found[2] is None:
        side = int(found[1])
        return replace(parts, crop=side, resize=side if keep_ratio is False else resize)
    sides = int(found[1]), int(found[2])
    parts = replace(parts, squash=None)
    if keep_ratio is False:
        return replace(parts, fixed_size=sides)
    return replace(parts, long_side=max(sides), short_side=min(sides))


def _channels(flag: str, text: str | None) -> Channels | None:
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{flag} {text}: expected three numbers, such as 0.485,0.456,0.406") from None
    return red, green, blue


def _pipeline_of(name: str, store: Path) -> Pipeline:
    """The pipeline of a model in the store, or of a published one. Raises BundleInvalid."""
    if canonical_name(name) in bundle_names(store):
        config = read_bundle(find_bundle(name, store)).config
        return Pipeline(config.preprocessing, config.postprocessing, (f"as of {name}",))
    from model.zoo.catalogue import CATALOGUE

    if name not in CATALOGUE:
        known = ", ".join(bundle_names(store))
        raise BundleInvalid(
            f"there is no model {name!r} to serve it like: neither in the store ({known}) nor published"
        )
    entry = CATALOGUE[name]
    return Pipeline(entry.preprocessing, entry.postprocessing, (f"as of {name}",))
