"""Checkpoint → bundle: infers the architecture, adds labels and pipelines, computes the reference answer."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import torch

from model.bundle import Bundle, Source, file_sha256
from model.errors import BundleInvalid
from model.families.registry import Architecture, backbone_of, family_of, input_problem, preprocessing_of
from model.model_name import EXPECTED_NAME, base_name, canonical_name, is_name
from model.net.network import meta_network
from model.net.weights import DTYPES, BundleMetadata, DtypeName, write_bundle
from model.predictor import reference_answer
from model.spec import MAX_PIXEL_THRESHOLD, MIN_PIXEL_THRESHOLD, Postprocessing, SegmentPostSpec
from model.types import Palette, Task
from model.zoo.catalogue import CATALOGUE, CatalogueEntry
from model.zoo.checkpoint import Checkpoint, Weights, read_checkpoint
from model.zoo.checkpoint_file import INDEX_SUFFIX
from model.zoo.class_names import ClassNames, stored_class_names
from model.zoo.heads import (
    PIXEL_THRESHOLD,
    binary_class_colours,
    binary_class_names,
    complete_binary_head,
    is_binary,
    repeat_class_agnostic_heads,
)
from model.zoo.infer import infer_architecture
from model.zoo.palette import ClassColours, stored_palette
from model.zoo.pipeline import Pipeline, PipelineParts, require_served
from model.zoo.stored_bundle import StoredBundle, read_stored_bundle, tensors_sha256
from model.zoo.stored_pipeline import read_pipelines, stored_pipelines

MAX_LISTED = 3
"""Names of tensors or classes in a note."""


NO_FLAGS = PipelineParts("from the flags")


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """What the user gives about the pipeline; each precedes the former, and all precede what the file has.

    `like`: of another model. `config`: a configuration file of a training. `flags`: single fields.
    """

    like: Pipeline | None = None
    config: Path | None = None
    flags: PipelineParts = NO_FLAGS


def import_checkpoint(
    file: Path,
    store: Path,
    name: str,
    *,
    task: Task | None = None,
    labels: Sequence[str] | None = None,
    palette: Palette | None = None,
    precision: DtypeName | None = None,
    weights: Weights | None = None,
    pipeline: PipelineOptions = PipelineOptions(),
    on_note: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Write the bundle `store`/`name`. The write is atomic; an existing bundle is replaced.

    `name` may have a version. If it is a published model's, the file must have its network, and the bundle gets its
    labels, pipelines, source and accuracy. If the file's name is a published model's, `labels` is None, and the network
    matches, it gets labels and pipelines alone, unless the file has its own; the weights may be others. Any other
    checkpoint is the caller's own:
    its labels are `labels`, else those in the file, else `class 0` and so on; its pipeline is what the caller and the
    file give, and the family's default in all else.

    Args:
        file: as `read_checkpoint` takes it.
        store: a folder of bundles; created if missing.
        name: of the model.
        task: checked against the network's; None: not checked.
        labels: by class index.
        palette: colours by class index. None: those of the file, if it has any.
        precision: dtype of the weights in the bundle. None: of the bundle that the file was exported from, else fp32.
        weights: as for `read_checkpoint`.
        pipeline: what is known about it.
        on_note: called with each choice that the import made, in words, once the bundle is written.

    Raises:
        BundleInvalid: the name is not allowed, the file is no valid checkpoint, or its network is not the expected one.
        OSError: the store cannot be written.
    """
    name = canonical_name(name)
    _check_name(name)
    base = base_name(name)
    if labels is not None and base in CATALOGUE:
        raise BundleInvalid(
            f"{base} is a published model with labels of its own; choose another name, or give no labels"
        )
    read = read_checkpoint(file, weights or _published_weights(file, base))
    _refuse_int8(read)
    checkpoint, heads = repeat_class_agnostic_heads(read)
    binary, threshold = is_binary(checkpoint) and pipeline.flags.activation != "sigmoid", PIXEL_THRESHOLD
    if binary:
        pipeline, threshold = _without_pixel_threshold(checkpoint, pipeline)
        checkpoint = complete_binary_head(checkpoint, threshold)
    architecture, num_classes = infer_architecture(checkpoint)
    found = family_of(architecture).task
    if task is not None and task != found:
        raise BundleInvalid(f"{file} has a {architecture.family}, which is for {found.value}, not for {task.value}")
    stored = read_stored_bundle(checkpoint.file, checkpoint.tensors)
    published = None if labels is not None or stored is not None else _published(file, base, architecture, num_classes)
    known = _own_metadata(architecture, checkpoint, stored) if published is None else published_metadata(published)
    if published is not None and published.name != base:
        known = replace(known, source=_file_source(checkpoint), accuracy=None)
    as_published = "as published" if base in CATALOGUE else f"of the published {file.stem}, by the file's name"
    is_published = published is not None and published.name == base
    chosen = _pipeline(known, checkpoint, stored, published, pipeline, as_published, is_published=is_published)
    named = _labels(
        *(checkpoint, num_classes, labels, stored, published, found if binary else None, as_published),
        is_published=is_published,
    )
    coloured = _palette(checkpoint, num_classes, palette, stored, binary=binary)
    precision = precision or (stored.precision if stored is not None else "fp32")
    unchanged = (chosen.preprocessing, chosen.postprocessing) == (known.preprocessing, known.postprocessing)
    if problem := input_problem(architecture.backbone, chosen.preprocessing):
        raise BundleInvalid(f"{file}: {problem}")
    metadata = replace(
        known,
        name=name,
        architecture=architecture,  # in the file's form
        labels=named.names,
        palette=None if coloured is None else coloured.colours,
        preprocessing=chosen.preprocessing,
        postprocessing=_with_threshold(chosen.postprocessing, known.postprocessing, threshold if binary else None),
        precision=precision,
        accuracy=known.accuracy if unchanged else None,  # it was measured with another pipeline
    )
    _check_finite(checkpoint, precision)
    network = meta_network(architecture, num_classes).to_empty(device="cpu")
    network.load_state_dict(checkpoint.tensors)
    try:
        bundle = write_bundle(store, metadata, network, reference_answer)
    except safetensors.SafetensorError as error:  # raised if the disk is full
        raise OSError(errno.EIO, str(error), str(store / name)) from error
    if binary:
        above = f"a sigmoid above {threshold:g}" if found is Task.SEGMENT else "a sigmoid"
        heads.append(f"a single output channel: {named.names[1]} is {above}, {named.names[0]} the rest")
    on_note(f"pipeline: {chosen}")
    on_note(f"labels: {named}")
    if coloured is not None:
        on_note(f"palette: {coloured}")
    for note in (*_notes(checkpoint), *(f"head: {head}" for head in heads)):
        on_note(note)
    return bundle


def _without_pixel_threshold(checkpoint: Checkpoint, options: PipelineOptions) -> tuple[PipelineOptions, float]:
    """The threshold of a single output channel, which becomes a part of the weights, and the other options."""
    given = [] if options.config is None else read_pipelines(options.config)
    threshold = PIXEL_THRESHOLD
    for parts in (*stored_pipelines(checkpoint.file), *given):
        threshold = parts.thresholds.get("pixel_threshold", threshold)
    threshold = options.flags.thresholds.get("score_threshold", threshold)
    if not MIN_PIXEL_THRESHOLD <= threshold <= MAX_PIXEL_THRESHOLD:
        raise BundleInvalid(
            f"the threshold of a single output channel is {threshold:g}; expected one from {MIN_PIXEL_THRESHOLD} to "
            f"{MAX_PIXEL_THRESHOLD}"
        )
    return replace(options, flags=replace(options.flags, thresholds={})), threshold


def _with_threshold(chosen: Postprocessing, known: Postprocessing, threshold: float | None) -> Postprocessing:
    """A segmenter's threshold belongs to its weights, not to its pipeline: that of a single output channel, or what the
    weights were exported with."""
    if not isinstance(chosen, SegmentPostSpec) or not isinstance(known, SegmentPostSpec):
        return chosen
    return SegmentPostSpec(threshold=known.threshold if threshold is None else threshold)


def _pipeline(
    base: BundleMetadata,
    checkpoint: Checkpoint,
    stored: StoredBundle | None,
    published: CatalogueEntry | None,
    options: PipelineOptions,
    as_published: str,
    *,
    is_published: bool,
) -> Pipeline:
    """Raises BundleInvalid: a configuration cannot be read or served, or is for another task."""
    given = [] if options.config is None else read_pipelines(options.config)
    replaced = options.flags.fields
    if options.like is not None:
        if type(options.like.preprocessing) is not type(base.preprocessing):
            raise BundleInvalid(f"{checkpoint.path} is for another task than the model that it should be served like")
        pipeline = options.like
    elif stored is not None or is_published:
        source = "as exported" if published is None else as_published
        pipeline = Pipeline(base.preprocessing, base.postprocessing, (source,))
    else:
        pipeline = Pipeline.default(base.preprocessing, base.postprocessing)
        if published is not None:
            pipeline = Pipeline(base.preprocessing, base.postprocessing, (as_published,))
        overridden = replaced.union(*(parts.fields for parts in given))
        for parts in stored_pipelines(checkpoint.file):
            require_served(parts, overridden)
            pipeline = pipeline.updated(pipeline.fitting(parts))
    for parts in given:
        require_served(parts, replaced)
        pipeline = pipeline.updated(pipeline.fitting(parts))
    return pipeline.updated(options.flags)


def _notes(checkpoint: Checkpoint) -> Iterator[str]:
    yield f"weights: {checkpoint.weights}"
    if checkpoint.prefix:
        yield f"names: the prefix {checkpoint.prefix} is removed"
    if left_out := checkpoint.left_out:
        more = ", …" if len(left_out) > MAX_LISTED else ""
        yield f"left out: {len(left_out)} tensors that no answer needs ({', '.join(left_out[:MAX_LISTED])}{more})"


def _check_name(name: str) -> None:
    """Raises BundleInvalid: a model cannot have the name."""
    if not is_name(name):
        raise BundleInvalid(f"{name!r} is not a valid model name; {EXPECTED_NAME}")


def _published_weights(file: Path, name: str) -> Weights | None:
    """Those that the authors of a published model evaluate; None: the averaged ones, where a file has them."""
    entry = CATALOGUE.get(name) or CATALOGUE.get(file.stem)
    return None if entry is None else entry.weights


def _published(file: Path, name: str, architecture: Architecture, num_classes: int) -> CatalogueEntry | None:
    for candidate, is_asked_for in ((name, True), (file.stem, False)):
        entry = CATALOGUE.get(candidate)
        if entry is None:
            continue
        form = architecture.model_copy(update={"backbone": architecture.backbone.published_form})
        if (entry.architecture, len(entry.labels)) == (form, num_classes):
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


def _labels(
    checkpoint: Checkpoint,
    num_classes: int,
    given: Sequence[str] | None,
    stored: StoredBundle | None,
    published: CatalogueEntry | None,
    binary: Task | None,
    as_published: str,
    *,
    is_published: bool,
) -> ClassNames:
    """The names of all classes; `binary` is the task of a network with a single output channel.

    Raises:
        BundleInvalid: the number of names is not that of the classes.
    """
    path = checkpoint.path
    if given is not None:
        named = ClassNames(tuple(given), "as given")
        named = named if binary is None else binary_class_names(named, binary)
        if len(named.names) != num_classes:
            raise BundleInvalid(f"{len(given)} labels are given; {path} has {num_classes} classes")
        return named
    if is_published and published is not None:
        return ClassNames(published.labels, as_published)
    found = stored_class_names(checkpoint.file) if stored is None else ClassNames(stored.labels, "as exported")
    if found is None and published is not None:
        return ClassNames(published.labels, as_published)
    if found is None:
        return ClassNames(tuple(f"class {index}" for index in range(num_classes)), "assumed; --labels gives names")
    if binary is not None:
        found = binary_class_names(found, binary)
    if len(found.names) != num_classes:
        raise BundleInvalid(
            f"{path} has {len(found.names)} class names ({found.source}) and {num_classes} classes; give the right "
            "names with --labels FILE"
        )
    return found


def _palette(
    checkpoint: Checkpoint, num_classes: int, given: Palette | None, stored: StoredBundle | None, *, binary: bool
) -> ClassColours | None:
    """The colours of all classes; None if there are none. `binary`: of a single output channel.

    Raises:
        BundleInvalid: the number of colours is not that of the classes.
    """
    if given is not None:
        found: ClassColours | None = ClassColours(given, "as given")
    elif stored is not None:
        found = None if stored.palette is None else ClassColours(stored.palette, "as exported")
    else:
        found = stored_palette(checkpoint.file)
    if found is None:
        return None
    if binary:
        found = binary_class_colours(found)
    if len(found.colours) != num_classes:
        raise BundleInvalid(
            f"{checkpoint.path} has {num_classes} classes, and the palette {found}; give one of {num_classes} colours "
            "with --palette FILE"
        )
    return found


def _own_metadata(architecture: Architecture, checkpoint: Checkpoint, stored: StoredBundle | None) -> BundleMetadata:
    """Of a model that is not published: the family's, or what the file was exported with."""
    family = family_of(architecture)
    path = checkpoint.path
    source = _file_source(checkpoint)
    metadata = BundleMetadata(
        name="",
        architecture=architecture,
        labels=(),
        preprocessing=preprocessing_of(architecture),
        postprocessing=family.postprocessing,
        precision="fp32",
        source=source,
        accuracy=None,
    )
    if stored is None:
        return metadata
    if Task(stored.postprocessing.task) != family.task:
        raise BundleInvalid(f"{path} has a {architecture.family}, and was exported with the pipeline of another task")
    same = stored.tensors_sha256 == tensors_sha256(checkpoint.tensors)
    return replace(
        metadata,
        preprocessing=stored.preprocessing,
        postprocessing=stored.postprocessing,
        precision=stored.precision,
        source=stored.source if same else source,
        accuracy=stored.accuracy if same else None,
    )


def _file_source(checkpoint: Checkpoint) -> Source:
    """Of weights of which only the file is known."""
    description = f"imported from {checkpoint.path.name}{_key(checkpoint)} ({_digest(checkpoint)})"
    return Source(description=description, url="", licence="unknown", attribution="")


def _digest(checkpoint: Checkpoint) -> str:
    """A hash of the file. That of an index would not depend on the shards."""
    path = checkpoint.path
    if path.name.endswith(INDEX_SUFFIX):
        return f"sha256 of its tensors {tensors_sha256(checkpoint.tensors)}"
    return f"sha256 {file_sha256(path)}"


def _key(checkpoint: Checkpoint) -> str:
    """Which weights of the file, where there is a choice."""
    return f", {checkpoint.weights.partition(';')[0]}" if ", " in checkpoint.weights else ""


def _refuse_int8(checkpoint: Checkpoint) -> None:
    if any(tensor.dtype == torch.int8 for tensor in checkpoint.tensors.values()):
        raise BundleInvalid(
            f"{checkpoint.path} has int8 weights, which are not imported. The folder of a model that `convmlp models "
            "quantize` made is copied into the folder of models as it is; `convmlp models export` writes float weights"
        )


def _check_finite(checkpoint: Checkpoint, precision: DtypeName) -> None:
    for name, tensor in checkpoint.tensors.items():
        if not tensor.is_floating_point() or bool(tensor.to(DTYPES[precision]).isfinite().all()):
            continue
        if bool(tensor.isfinite().all()):
            raise BundleInvalid(
                f"{checkpoint.path}: {name} has values that are too large for {precision}; give --precision fp32 or "
                "bf16"
            )
        raise BundleInvalid(
            f"{checkpoint.path}: {name} has NaN or infinity: the training diverged; import an earlier checkpoint of it"
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
