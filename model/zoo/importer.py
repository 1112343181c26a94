"""Checkpoint → bundle: infers the architecture, adds labels and pipelines, computes the reference answer."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import safetensors
from pydantic import TypeAdapter, ValidationError

from model.bundle import Bundle, ModelName, Source, file_sha256
from model.errors import BundleInvalid
from model.families.registry import Architecture, backbone_of, family_of, preprocessing_of
from model.net.network import meta_network
from model.net.weights import DTYPES, BundleMetadata, DtypeName, write_bundle
from model.predictor import reference_answer
from model.types import Task
from model.zoo.catalogue import CATALOGUE, CatalogueEntry
from model.zoo.checkpoint import Checkpoint, read_checkpoint
from model.zoo.infer import infer_architecture


def import_checkpoint(
    file: Path,
    store: Path,
    name: str,
    *,
    task: Task | None = None,
    labels: Sequence[str] | None = None,
    precision: DtypeName = "fp32",
) -> Bundle:
    """Write the bundle `store`/`name`. The write is atomic; an existing bundle is replaced.

    If `name` is a published model's, the file must have its network, and the bundle gets its labels, pipelines and
    source. So it does if the file's name is a published model's, `labels` is None, and the network matches. Any other
    checkpoint is the caller's own: its labels are `labels`, else those in the file, else `class 0` and so on; its
    pipelines are the family's defaults.

    Args:
        file: a `.pth`.
        store: a folder of bundles; created if missing.
        name: of the model.
        task: checked against the network's; None: not checked.
        labels: by class index.
        precision: dtype of the weights in the bundle.

    Raises:
        BundleInvalid: the name is not allowed, the file is no valid checkpoint, or its network is not the expected one.
        OSError: the store cannot be written.
    """
    _check_name(name)
    if labels is not None and name in CATALOGUE:
        raise BundleInvalid(
            f"{name} is a published model with labels of its own; choose another name, or give no labels"
        )
    checkpoint = read_checkpoint(file)
    architecture, num_classes = infer_architecture(checkpoint)
    found = family_of(architecture).task
    if task is not None and task != found:
        raise BundleInvalid(f"{file} has a {architecture.family}, which is for {found.value}, not for {task.value}")
    published = None if labels is not None else _published(file, name, architecture, num_classes)
    if published is None:
        metadata = _own_metadata(name, architecture, _own_labels(checkpoint, num_classes, labels), file, precision)
    else:
        metadata = replace(published_metadata(published), name=name, precision=precision)
    _check_finite(checkpoint, precision)
    network = meta_network(architecture, num_classes).to_empty(device="cpu")
    network.load_state_dict(checkpoint.tensors)
    try:
        return write_bundle(store, metadata, network, reference_answer)
    except safetensors.SafetensorError as error:  # raised if the disk is full
        raise OSError(errno.EIO, str(error), str(store / name)) from error


def _check_name(name: str) -> None:
    """Raises BundleInvalid: a model cannot have the name."""
    try:
        TypeAdapter[str](ModelName).validate_python(name)
    except ValidationError as error:
        raise BundleInvalid(
            f"{name!r} is not a valid model name; expected 1 to 64 of a-z, 0-9, '.', '_', '-', a letter or digit first"
        ) from error


def _published(file: Path, name: str, architecture: Architecture, num_classes: int) -> CatalogueEntry | None:
    for candidate, is_asked_for in ((name, True), (file.stem, False)):
        entry = CATALOGUE.get(candidate)
        if entry is None:
            continue
        if (entry.architecture, len(entry.labels)) == (architecture, num_classes):
            return entry
        if is_asked_for:
            raise BundleInvalid(
                f"{file} is not {name}: it has a {_describe(architecture, num_classes)}; the published model is a "
                f"{_describe(entry.architecture, len(entry.labels))}; choose another name for a model of your own"
            )
    return None


def _describe(architecture: Architecture, num_classes: int) -> str:
    backbone = architecture.backbone
    name = f"{architecture.family} on {backbone_of(backbone).name} of size {backbone.size}"
    return f"{name} and {num_classes} classes"


def _own_labels(checkpoint: Checkpoint, num_classes: int, given: Sequence[str] | None) -> tuple[str, ...]:
    if given is not None:
        if len(given) != num_classes:
            raise BundleInvalid(f"{len(given)} labels are given; {checkpoint.path} has {num_classes} classes")
        return tuple(given)
    if checkpoint.labels is not None and len(checkpoint.labels) == num_classes:
        return checkpoint.labels
    return tuple(f"class {index}" for index in range(num_classes))


def _own_metadata(
    name: str, architecture: Architecture, labels: tuple[str, ...], file: Path, precision: DtypeName
) -> BundleMetadata:
    family = family_of(architecture)
    return BundleMetadata(
        name=name,
        architecture=architecture,
        labels=labels,
        preprocessing=preprocessing_of(architecture),
        postprocessing=family.postprocessing,
        precision=precision,
        source=Source(
            description=f"imported from {file.name} (sha256 {file_sha256(file)})",
            url="",
            licence="unknown",
            attribution="",
        ),
        accuracy=None,
    )


def _check_finite(checkpoint: Checkpoint, precision: DtypeName) -> None:
    for name, tensor in checkpoint.tensors.items():
        if tensor.is_floating_point() and not bool(tensor.to(DTYPES[precision]).isfinite().all()):
            raise BundleInvalid(
                f"{checkpoint.path}: {name} has values that are not finite in {precision}; "
                "if they are too large for it, use fp32 or bf16"
            )


def published_metadata(entry: CatalogueEntry) -> BundleMetadata:
    """The config of a published checkpoint, with its weights in float32."""
    return BundleMetadata(
        name=entry.name,
        architecture=entry.architecture,
        labels=entry.labels,
        preprocessing=entry.preprocessing,
        postprocessing=entry.postprocessing,
        precision="fp32",
        source=entry.source,
        accuracy=entry.accuracy,
    )
